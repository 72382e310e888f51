#include "scheduler/report/terminal_report.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "scheduler/report/json_line.h"
#include "scheduler/report/metrics_json.h"

namespace parley {
namespace {

constexpr absl::Duration kPlainEvery = absl::Seconds(5);
constexpr int kLongestBar = 30, kShortestBar = 8;

std::string Printable(absl::string_view text) {
  std::string out(text);
  // An escape sequence in a node's name must not reach the terminal.
  std::replace_if(
      out.begin(), out.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
  return out;
}

std::string Bar(double fraction, int width) {
  const int filled = static_cast<int>(std::clamp(fraction, 0.0, 1.0) * width);
  std::string bar(filled, '=');
  if (filled < width) bar += '>';
  bar.resize(width, ' ');
  return absl::StrCat("[", bar, "]");
}

// The part of the current epoch that is done; negative if the number of steps is unknown.
double EpochFraction(const RunProgress& progress) {
  if (progress.steps == 0 || progress.epochs == 0) return -1;
  const double per_epoch = static_cast<double>(progress.steps) / progress.epochs;
  return std::clamp(progress.step / per_epoch - progress.epoch, 0.0, 1.0);
}

}  // namespace

std::string WithCommas(double value) {
  if (!std::isfinite(value)) return "?";
  std::string digits = absl::StrFormat("%.0f", std::abs(value));
  for (int i = static_cast<int>(digits.size()) - 3; i > 0; i -= 3) digits.insert(i, 1, ',');
  return value <= -0.5 ? absl::StrCat("-", digits) : digits;
}

std::string ClockText(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0 || seconds > 1e8) return "?";
  const int64_t whole = std::llround(seconds);
  const int64_t h = whole / 3600, m = whole / 60 % 60, s = whole % 60;
  return h > 0 ? absl::StrFormat("%d:%02d:%02d", h, m, s) : absl::StrFormat("%d:%02d", m, s);
}

TerminalOptions StandardOutputOptions() {
  TerminalOptions options;
  options.terminal = isatty(STDOUT_FILENO) == 1;
  winsize size{};
  if (options.terminal && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    options.columns = size.ws_col;
  }
  return options;
}

TerminalReport::TerminalReport(TerminalOptions options, ReportClock now, Write write)
    : options_(std::move(options)), now_(std::move(now)), write_(std::move(write)) {}

TerminalReport::TerminalReport(TerminalOptions options, ReportClock now)
    : TerminalReport(std::move(options), std::move(now), [](absl::string_view text) {
        fwrite(text.data(), 1, text.size(), stdout);
        fflush(stdout);
      }) {}

void TerminalReport::ClearBar() {
  if (!bar_.empty()) write_("\r\x1b[K");
}

void TerminalReport::Line(absl::string_view line) {
  ClearBar();
  write_(absl::StrCat(line, "\n"));
  if (!bar_.empty()) write_(bar_);
}

void TerminalReport::OnStart(const std::string& job, const pb::Experiment& resolved) {
  epochs_ = resolved.training().epochs();
  if (options_.quiet) return;
  const pb::Cluster& cluster = resolved.cluster();
  std::string mode = pb::Consistency::Mode_Name(resolved.consistency().mode());
  if (resolved.consistency().mode() == pb::Consistency::SSP) {
    absl::StrAppend(&mode, "(", resolved.consistency().staleness(), ")");
  }
  Line(absl::StrFormat("%s: %u servers, %u workers, %s, %u epochs, global batch %u", Printable(job),
                       cluster.servers(), cluster.workers(), mode, epochs_,
                       resolved.training().global_batch()));
}

void TerminalReport::OnEvent(const std::string& line) {
  if (!options_.quiet && !finished_) Line(Printable(line));
}

std::string TerminalReport::TimeLeft(const RunProgress& progress) const {
  if (!started_ || progress.steps <= progress.step || progress.step <= first_step_) return "";
  const double elapsed = absl::ToDoubleSeconds(now_() - first_time_);
  const double per_step = elapsed / (progress.step - first_step_);
  return absl::StrCat("  ETA ", ClockText(per_step * (progress.steps - progress.step)));
}

std::string TerminalReport::ProgressText(const RunProgress& progress, int columns) const {
  const std::string head = absl::StrFormat("epoch %u/%u ", progress.epoch + 1, progress.epochs);
  const std::string numbers =
      absl::StrFormat("loss %.4f  %s samples/s  staleness %u", progress.loss,
                      WithCommas(progress.samples_per_second), progress.max_staleness);
  std::string step = absl::StrCat("step ", progress.step);
  if (progress.steps > 0) absl::StrAppend(&step, "/", progress.steps);
  std::string waiting;
  if (!progress.waiting_for.empty()) {
    waiting = absl::StrCat("  waiting for ", Printable(progress.waiting_for));
  }
  const double fraction = EpochFraction(progress);
  const auto size = [](const std::string& text) { return static_cast<int>(text.size()); };
  // What a narrow terminal has no room for goes first: the bar and the numbers are what people
  // watch, the percentage stands for the step, and what is waited for takes what is left.
  int room = columns - 1 - size(head) - size(numbers) - 1;
  int width = 0;
  if (fraction >= 0) {
    room -= 5;                                           // "100% "
    if (room >= kShortestBar + 3) width = kShortestBar;  // "[] "
    if (width > 0) room -= width + 3;
  }
  std::string tail = numbers;
  if (room >= size(step) + 2) {
    tail = absl::StrCat(step, "  ", numbers);
    room -= size(step) + 2;
  }
  if (const std::string left = TimeLeft(progress); room >= size(left)) {
    tail += left;
    room -= size(left);
  }
  std::string bar;
  if (width > 0) {
    width = std::min(kLongestBar, width + room);
    bar = absl::StrCat(Bar(fraction, width), " ");
  }
  if (fraction >= 0) absl::StrAppendFormat(&bar, "%3.0f%% ", std::floor(fraction * 100));
  return absl::StrCat(head, bar, " ", tail, waiting).substr(0, std::max(1, columns - 1));
}

void TerminalReport::OnProgress(const RunProgress& progress) {
  const absl::Duration now = now_();
  if (!started_ && progress.step > 0) {
    started_ = true;
    first_step_ = progress.step;
    first_time_ = now;
  }
  if (options_.quiet || finished_) return;
  if (options_.terminal) {
    ClearBar();
    bar_ = ProgressText(progress, options_.columns);
    return write_(bar_);
  }
  // Lines stay: none for steps that no heartbeat has told of yet.
  if (!started_ || now < next_plain_) return;
  next_plain_ = now + kPlainEvery;
  Line(ProgressText(progress, 1000));
}

void TerminalReport::OnEpoch(const EpochMetrics& metrics) {
  if (!options_.quiet) {
    std::string line = absl::StrFormat("epoch %u/%u  train loss %.4f accuracy %.4f",
                                       metrics.epoch + 1, std::max(epochs_, metrics.epoch + 1),
                                       metrics.train_loss, metrics.train_accuracy);
    if (metrics.evaluated) {
      absl::StrAppendFormat(&line, "  test loss %.4f accuracy %.4f", metrics.test_loss,
                            metrics.test_accuracy);
    }
    absl::StrAppendFormat(&line, "  %.1f s", metrics.train_seconds);
    if (metrics.train_seconds > 0) {
      absl::StrAppend(&line, "  ", WithCommas(metrics.train_samples / metrics.train_seconds),
                      " samples/s");
    }
    Line(line);
  }
  if (options_.gradient) GradientLines(metrics);
}

void TerminalReport::GradientLines(const EpochMetrics& metrics) {
  const auto chart = [&](const char* name, double value) {
    // A chart takes numbers only.
    if (!std::isfinite(value)) return;
    Line(JsonLine().Text("chart", name).Number("y", value).Count("x", metrics.epoch + 1).str());
  };
  chart("loss", metrics.train_loss);
  chart("accuracy", metrics.train_accuracy);
  if (!metrics.evaluated) return;
  chart("test_loss", metrics.test_loss);
  chart("test_accuracy", metrics.test_accuracy);
}

void TerminalReport::OnFinish(const RunSummary& summary) {
  ClearBar();
  bar_.clear();
  finished_ = true;
  const auto last = std::find_if(summary.epochs.rbegin(), summary.epochs.rend(),
                                 [](const EpochMetrics& epoch) { return epoch.evaluated; });
  if (!summary.ok) {
    Line(absl::StrCat("failed: ", Printable(summary.reason)));
  } else if (last != summary.epochs.rend()) {
    Line(absl::StrFormat("done: test accuracy %.4f, test loss %.4f", last->test_accuracy,
                         last->test_loss));
  } else {
    Line("done");
  }
  if (summary.steps > 0) {
    Line(absl::StrFormat("  training    %s steps in %.1f s (%.1f s in all), %s samples/s",
                         WithCommas(summary.steps), summary.train_seconds, summary.wall_seconds,
                         WithCommas(summary.samples_per_second)));
  }
  if (summary.ok) {
    const TimeShares shares = SharesOf(summary);
    Line(absl::StrFormat(
        "  limited by  %s (compute %.0f%%, wire %.0f%%, server %.0f%%, other %.0f%%)",
        shares.largest, 100 * shares.compute, 100 * shares.wire, 100 * shares.server,
        100 * shares.other));
    if (!summary.weights_sha256.empty()) {
      Line(absl::StrCat("  weights     sha256 ", Printable(summary.weights_sha256)));
    }
    for (const TableSummary& table : summary.tables) {
      Line(absl::StrCat(
          "  rows        ", Printable(table.name), ": ", WithCommas(table.rows), ", ",
          table.evicted > 0 ? absl::StrCat(WithCommas(table.evicted), " evicted, ") : "",
          absl::StrFormat("%.1f MiB", table.bytes / 0x1p20), ", digest ", table.digest));
    }
  }
  if (summary.restarts + summary.failovers + summary.workers_replaced + summary.checkpoints > 0) {
    Line(absl::StrCat("  survived    ", summary.failovers, " failovers, ", summary.restarts,
                      " roll-backs, ", summary.workers_replaced, " workers replaced; ",
                      summary.checkpoints, " checkpoints written"));
  }
  if (!options_.run_dir.empty()) Line(absl::StrCat("  run         ", options_.run_dir));
}

}  // namespace parley
