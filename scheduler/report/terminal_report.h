// TerminalReport: the observer that shows a run to whoever started it.
//
// On a terminal a progress bar is rewritten in place below the lines of events and epochs;
// elsewhere (a pipe, a log file) there are plain lines: events, epochs, and progress every few
// seconds. Either way the run ends with a block of results. With `gradient` each epoch also prints
// lines {"chart": "loss", "y": 0.41, "x": 1}, which notebooks of that name draw as charts.
//
// Text from peers is shown without its control characters. Not thread-safe; called on the
// scheduler's loop.
#ifndef PARLEY_SCHEDULER_REPORT_TERMINAL_REPORT_H_
#define PARLEY_SCHEDULER_REPORT_TERMINAL_REPORT_H_

#include <functional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "scheduler/report/run_directory.h"
#include "scheduler/report/run_observer.h"

namespace parley {

struct TerminalOptions {
  bool terminal = false;  // rewrite in place
  int columns = 80;       // of the terminal
  bool gradient = false;
  bool quiet = false;        // the final block only (and gradient lines if asked for)
  std::string run_dir = {};  // named at the end; may be empty
};

// What standard output is right now: terminal and columns filled in.
TerminalOptions StandardOutputOptions();

class TerminalReport : public RunObserver {
 public:
  using Write = std::function<void(absl::string_view)>;

  // `write` takes text as it is and shows it at once.
  TerminalReport(TerminalOptions options, ReportClock now, Write write);
  // To standard output, flushed after every call.
  TerminalReport(TerminalOptions options, ReportClock now);

  void OnStart(const std::string& job, const pb::Experiment& resolved) override;
  void OnEvent(const std::string& line) override;
  void OnProgress(const RunProgress& progress) override;
  void OnEpoch(const EpochMetrics& metrics) override;
  void OnFinish(const RunSummary& summary) override;

 private:
  std::string ProgressText(const RunProgress& progress, int columns) const;
  std::string TimeLeft(const RunProgress& progress) const;
  void Line(absl::string_view line);  // above the bar
  void ClearBar();
  void GradientLines(const EpochMetrics& metrics);

  const TerminalOptions options_;
  const ReportClock now_;
  const Write write_;
  uint32_t epochs_ = 0;
  bool finished_ = false;  // the results stand last: nothing is shown after them
  std::string bar_;        // what stands on the last line of the terminal
  absl::Duration next_plain_ = absl::ZeroDuration();
  bool started_ = false;  // the first progress with a step has come:
  uint64_t first_step_ = 0;
  absl::Duration first_time_;
};

// 1234567 -> "1,234,567".
std::string WithCommas(double value);

// 75 s -> "1:15", 3700 s -> "1:01:40".
std::string ClockText(double seconds);

}  // namespace parley

#endif  // PARLEY_SCHEDULER_REPORT_TERMINAL_REPORT_H_
