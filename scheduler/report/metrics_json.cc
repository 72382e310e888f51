#include "scheduler/report/metrics_json.h"

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "scheduler/report/json_line.h"

namespace parley {
namespace {

using google::protobuf::Struct;

// Reads numbers out of one parsed line; remembers the first that is missing.
class NumberReader {
 public:
  explicit NumberReader(const Struct& object) : object_(object) {}

  bool Has(const std::string& key) const { return object_.fields().contains(key); }

  double Get(const std::string& key) {
    const auto found = object_.fields().find(key);
    if (found == object_.fields().end()) {
      if (missing_.empty()) missing_ = key;
      return 0;
    }
    // null stands for what was not finite.
    if (found->second.has_null_value()) return std::nan("");
    return found->second.number_value();
  }
  uint64_t Count(const std::string& key) {
    const double value = Get(key);
    return value >= 0 && value < 0x1p63 ? static_cast<uint64_t>(value) : 0;
  }
  const std::string& missing() const { return missing_; }

 private:
  const Struct& object_;
  std::string missing_;
};

EpochMetrics ReadEpoch(NumberReader* reader) {
  EpochMetrics epoch;
  epoch.epoch = static_cast<uint32_t>(std::max<uint64_t>(1, reader->Count("epoch")) - 1);
  epoch.step = reader->Count("step");
  epoch.train_loss = reader->Get("train_loss");
  epoch.train_accuracy = reader->Get("train_accuracy");
  epoch.evaluated = reader->Has("test_accuracy");
  if (epoch.evaluated) {
    epoch.test_loss = reader->Get("test_loss");
    epoch.test_accuracy = reader->Get("test_accuracy");
  }
  epoch.train_samples = reader->Count("train_samples");
  epoch.train_seconds = reader->Get("train_seconds");
  epoch.compute_seconds = reader->Get("compute_seconds");
  epoch.wait_seconds = reader->Get("wait_seconds");
  epoch.eval_seconds = reader->Get("eval_seconds");
  epoch.max_staleness = reader->Count("max_staleness");
  return epoch;
}

JsonLine EpochFields(const EpochMetrics& metrics) {
  JsonLine line;
  line.Count("epoch", uint64_t{metrics.epoch} + 1)
      .Count("step", metrics.step)
      .Number("train_loss", metrics.train_loss)
      .Number("train_accuracy", metrics.train_accuracy);
  if (metrics.evaluated) {
    line.Number("test_loss", metrics.test_loss).Number("test_accuracy", metrics.test_accuracy);
  }
  line.Count("train_samples", metrics.train_samples)
      .Number("train_seconds", metrics.train_seconds)
      .Number("samples_per_second",
              metrics.train_seconds > 0 ? metrics.train_samples / metrics.train_seconds : 0)
      .Number("compute_seconds", metrics.compute_seconds)
      .Number("wait_seconds", metrics.wait_seconds)
      .Number("eval_seconds", metrics.eval_seconds)
      .Count("max_staleness", metrics.max_staleness);
  return line;
}

// "{...}" with `type` and the time in front.
std::string Typed(absl::string_view type, double seconds, const std::string& object) {
  JsonLine head;
  head.Text("type", type).Number("seconds", std::round(seconds * 1000) / 1000);
  std::string line = head.str();
  line.pop_back();
  return absl::StrCat(line, ", ", object.substr(1));
}

}  // namespace

std::string EpochJson(const EpochMetrics& metrics, double seconds) {
  return Typed("epoch", seconds, EpochFields(metrics).str());
}

std::string ProgressJson(const RunProgress& progress, double seconds) {
  JsonLine line;
  line.Count("epoch", uint64_t{progress.epoch} + 1)
      .Count("step", progress.step)
      .Number("loss", progress.loss)
      .Count("samples", progress.samples)
      .Number("samples_per_second", progress.samples_per_second)
      .Count("max_staleness", progress.max_staleness)
      .Text("waiting_for", progress.waiting_for);
  return Typed("progress", seconds, line.str());
}

std::string EventJson(absl::string_view text, double seconds) {
  return Typed("event", seconds, JsonLine().Text("text", text).str());
}

TimeShares SharesOf(const RunSummary& summary) {
  TimeShares shares;
  const double total =
      std::max(summary.train_seconds, summary.compute_seconds + summary.wait_seconds);
  if (!(total > 0) || !std::isfinite(total)) return shares;
  shares.compute = summary.compute_seconds / total;
  // Servers also apply while devices are busy: only what could have been waited for counts.
  shares.server = std::min(summary.apply_seconds, summary.wait_seconds) / total;
  shares.wire = summary.wait_seconds / total - shares.server;
  shares.other = std::max(0.0, 1 - shares.compute - shares.server - shares.wire);
  double largest = shares.compute;
  const auto consider = [&](double share, const char* name) {
    if (share > largest) largest = share, shares.largest = name;
  };
  consider(shares.server, "server");
  consider(shares.wire, "wire");
  consider(shares.other, "other");
  return shares;
}

std::string SummaryJson(const std::string& job, const RunSummary& summary) {
  JsonLine line;
  line.Flag("ok", summary.ok).Text("reason", summary.reason).Text("job", job);
  const auto last = std::find_if(summary.epochs.rbegin(), summary.epochs.rend(),
                                 [](const EpochMetrics& epoch) { return epoch.evaluated; });
  const bool evaluated = last != summary.epochs.rend();
  // null rather than 0: a run without evaluation did not score zero.
  line.Raw("test_accuracy", evaluated ? JsonNumber(last->test_accuracy) : "null")
      .Raw("test_loss", evaluated ? JsonNumber(last->test_loss) : "null")
      .Number("train_seconds", summary.train_seconds)
      .Number("wall_seconds", summary.wall_seconds)
      .Number("samples_per_second", summary.samples_per_second)
      .Raw("samples_left_out",
           summary.samples_left_out ? JsonNumber(*summary.samples_left_out) : "null")
      .Count("steps", summary.steps)
      .Count("pushes_acknowledged", summary.pushes_acknowledged)
      .Count("pushes_applied", summary.pushes_applied)
      .Count("pushes_dropped", summary.pushes_dropped)
      .Count("pushes_duplicate", summary.pushes_duplicate)
      .Count("rpc_retries", summary.rpc_retries)
      .Count("bytes_pushed", summary.bytes_pushed)
      .Count("bytes_pulled", summary.bytes_pulled)
      .Count("max_staleness", summary.max_staleness)
      .Number("compute_seconds", summary.compute_seconds)
      .Number("wait_seconds", summary.wait_seconds)
      .Number("apply_seconds", summary.apply_seconds);
  const TimeShares shares = SharesOf(summary);
  line.Raw("limits", JsonLine()
                         .Text("largest", shares.largest)
                         .Number("compute", shares.compute)
                         .Number("server", shares.server)
                         .Number("wire", shares.wire)
                         .Number("other", shares.other)
                         .str());
  line.Count("restarts", summary.restarts)
      .Count("failovers", summary.failovers)
      .Count("workers_replaced", summary.workers_replaced)
      .Count("checkpoints", summary.checkpoints)
      .Count("frames_refused", summary.frames_refused)
      .Text("weights_sha256", summary.weights_sha256);
  std::string tables;
  for (const TableSummary& table : summary.tables) {
    absl::StrAppend(
        &tables, tables.empty() ? "\n    " : ",\n    ",
        JsonLine()
            .Text("name", table.name)
            .Count("rows", table.rows)
            .Count("evicted", table.evicted)
            .Count("bytes", table.bytes)
            .Number("bytes_per_row", table.rows > 0 ? 1.0 * table.bytes / table.rows : 0)
            .Text("digest", table.digest)
            .str());
  }
  line.Raw("tables", tables.empty() ? "[]" : absl::StrCat("[", tables, "\n  ]"));
  std::string epochs;
  for (const EpochMetrics& epoch : summary.epochs) {
    absl::StrAppend(&epochs, epochs.empty() ? "\n    " : ",\n    ", EpochFields(epoch).str());
  }
  line.Raw("epochs", epochs.empty() ? "[]" : absl::StrCat("[", epochs, "\n  ]"));
  return line.Indented();
}

absl::StatusOr<std::string> ReadSummaryReason(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  std::stringstream text;
  text << file.rdbuf();
  Struct object;
  if (!google::protobuf::util::JsonStringToMessage(text.str(), &object).ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a JSON object"));
  }
  const auto reason = object.fields().find("reason");
  return reason == object.fields().end() ? std::string() : reason->second.string_value();
}

absl::StatusOr<std::vector<EpochMetrics>> ParseEpochs(absl::string_view text) {
  std::vector<EpochMetrics> epochs;
  for (size_t number = 1; !text.empty(); ++number) {
    const size_t end = text.find('\n');
    if (end == absl::string_view::npos) break;
    const absl::string_view line = text.substr(0, end);
    text.remove_prefix(end + 1);
    if (line.empty()) continue;
    Struct object;
    const auto parsed = google::protobuf::util::JsonStringToMessage(
        google::protobuf::StringPiece(line.data(), line.size()), &object);
    if (!parsed.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, ": not a JSON object; allowed: one object a line"));
    }
    const auto type = object.fields().find("type");
    if (type == object.fields().end() || type->second.string_value() != "epoch") continue;
    NumberReader reader(object);
    epochs.push_back(ReadEpoch(&reader));
    if (!reader.missing().empty()) {
      return absl::InvalidArgumentError(absl::StrCat("line ", number, ": field '", reader.missing(),
                                                     "': is missing; allowed: a number"));
    }
  }
  return epochs;
}

}  // namespace parley
