#include "scheduler/report/run_directory.h"

#include <google/protobuf/text_format.h>

#include <cerrno>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "scheduler/report/curves_svg.h"
#include "scheduler/report/metrics_json.h"

namespace parley {
namespace {

absl::Status MakeDirectories(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (!error) return absl::OkStatus();
  return absl::ErrnoToStatus(error.value(),
                             absl::StrCat("run directory '", path, "' cannot be made"));
}

// The file without a last line that has no end; empty if there is none.
std::string WholeLines(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  const std::string all = text.str();
  return all.substr(0, all.rfind('\n') + 1);
}

// The time of the last line of a metrics.jsonl. In a text the quotes would be escaped.
double LastSeconds(absl::string_view metrics_jsonl) {
  constexpr absl::string_view kKey = "\"seconds\": ";
  const size_t at = metrics_jsonl.rfind(kKey);
  if (at == absl::string_view::npos) return 0;
  absl::string_view number = metrics_jsonl.substr(at + kKey.size());
  number = number.substr(0, number.find_first_of(",}"));
  double seconds = 0;
  return absl::SimpleAtod(number, &seconds) && std::isfinite(seconds) ? seconds : 0;
}

}  // namespace

absl::Status WriteFileWhole(const std::string& path, absl::string_view content) {
  const std::string beside = path + ".new";
  const auto failed = [&] {
    return absl::ErrnoToStatus(errno, absl::StrCat("'", path, "' cannot be written"));
  };
  FILE* file = fopen(beside.c_str(), "wb");
  if (file == nullptr) return failed();
  const bool written = fwrite(content.data(), 1, content.size(), file) == content.size();
  // Closing is what reports a full disk.
  if ((fclose(file) != 0) || !written) return failed();
  if (rename(beside.c_str(), path.c_str()) != 0) return failed();
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<RunDirectory>> RunDirectory::Create(const std::string& path,
                                                                   ReportClock now) {
  return Open(path, std::move(now), /*empty=*/true);
}

absl::StatusOr<std::unique_ptr<RunDirectory>> RunDirectory::Continue(const std::string& path,
                                                                     ReportClock now) {
  const std::string metrics_path = path + "/metrics.jsonl";
  const std::string before = WholeLines(metrics_path);
  std::error_code error;
  // No such file: it is made.
  if (std::filesystem::exists(metrics_path, error)) {
    std::filesystem::resize_file(metrics_path, before.size(), error);
  }
  absl::StatusOr<std::unique_ptr<RunDirectory>> directory =
      Open(path, std::move(now), /*empty=*/false);
  if (!directory.ok()) return directory.status();
  (*directory)->start_ -= absl::Seconds(LastSeconds(before));
  absl::StatusOr<std::vector<EpochMetrics>> epochs = ParseEpochs(before);
  if (epochs.ok()) (*directory)->epochs_ = *std::move(epochs);
  return directory;
}

absl::StatusOr<std::unique_ptr<RunDirectory>> RunDirectory::Open(const std::string& path,
                                                                 ReportClock now, bool empty) {
  if (absl::Status status = MakeDirectories(path + "/logs"); !status.ok()) return status;
  const std::string metrics_path = path + "/metrics.jsonl";
  // Lines always go to the end: a scheduler that stood still while another took over may have a
  // last word, and is not to write it over what the other has written.
  File metrics(empty ? fopen(metrics_path.c_str(), "wb") : nullptr, fclose);
  if (!empty || metrics) metrics.reset(fopen(metrics_path.c_str(), "ab"));
  if (!metrics) {
    return absl::ErrnoToStatus(errno, absl::StrCat("'", metrics_path, "' cannot be written"));
  }
  // Whole lines reach the file at once, so that it can be followed while the run goes on.
  setvbuf(metrics.get(), nullptr, _IOLBF, 1 << 16);
  return std::unique_ptr<RunDirectory>(new RunDirectory(path, std::move(now), std::move(metrics)));
}

RunDirectory::RunDirectory(std::string path, ReportClock now, File metrics)
    : path_(std::move(path)),
      now_(std::move(now)),
      start_(now_()),
      metrics_(std::move(metrics)),
      next_progress_(start_) {}

double RunDirectory::Seconds() const { return absl::ToDoubleSeconds(now_() - start_); }

void RunDirectory::AppendMetric(const std::string& line) {
  if (fputs(absl::StrCat(line, "\n").c_str(), metrics_.get()) < 0 && status_.ok()) {
    status_ =
        absl::ErrnoToStatus(errno, absl::StrCat("'", path_, "/metrics.jsonl' cannot be written"));
  }
}

void RunDirectory::Replace(const std::string& name, absl::string_view content) {
  status_.Update(WriteFileWhole(absl::StrCat(path_, "/", name), content));
}

void RunDirectory::OnStart(const std::string& job, const pb::Experiment& resolved) {
  job_ = job;
  std::string text;
  google::protobuf::TextFormat::PrintToString(resolved, &text);
  Replace("experiment.resolved.textproto", text);
}

void RunDirectory::OnEvent(const std::string& line) { AppendMetric(EventJson(line, Seconds())); }

void RunDirectory::OnProgress(const RunProgress& progress) {
  const absl::Duration now = now_();
  if (now < next_progress_) return;
  next_progress_ = now + progress_every_;
  AppendMetric(ProgressJson(progress, Seconds()));
}

void RunDirectory::OnEpoch(const EpochMetrics& metrics) {
  // Begun again from an earlier state: what was after it is done anew.
  while (!epochs_.empty() && epochs_.back().epoch >= metrics.epoch) epochs_.pop_back();
  epochs_.push_back(metrics);
  AppendMetric(EpochJson(metrics, Seconds()));
  Replace("curves.svg", CurvesSvg(job_, epochs_));
}

void RunDirectory::OnFinish(const RunSummary& summary) {
  Replace("summary.json", SummaryJson(job_, summary));
  Replace("curves.svg", CurvesSvg(job_, summary.epochs.empty() ? epochs_ : summary.epochs));
}

}  // namespace parley
