// RunDirectory: the observer that leaves a run's record on disk.
//
//   experiment.resolved.textproto   at the start: every field, defaults included
//   metrics.jsonl                   a JSON object a line: events, progress (once a second at most),
//   epochs curves.svg                      loss and accuracy, drawn anew after every epoch
//   summary.json                    at the end, also after a failure
//   logs/                           made here; the roles write into it
//
// Files other than metrics.jsonl appear whole or not at all (written beside and renamed). A write
// that fails (a full disk) does not stop training: the first error is kept in status().
// Not thread-safe; called on the scheduler's loop.
#ifndef PARLEY_SCHEDULER_REPORT_RUN_DIRECTORY_H_
#define PARLEY_SCHEDULER_REPORT_RUN_DIRECTORY_H_

#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "scheduler/report/run_observer.h"

namespace parley {

// Monotonic, from any origin: Env::Now of the scheduler.
using ReportClock = std::function<absl::Duration()>;

class RunDirectory : public RunObserver {
 public:
  // Makes the directory and its parents where they are missing; files of these names in it are
  // replaced. Errors name the path and the system's reason.
  static absl::StatusOr<std::unique_ptr<RunDirectory>> Create(const std::string& path,
                                                              ReportClock now);

  // For a scheduler that goes on with a job: metrics.jsonl is kept and added to - but for a last
  // line that was cut short - and its times go on from there.
  static absl::StatusOr<std::unique_ptr<RunDirectory>> Continue(const std::string& path,
                                                                ReportClock now);

  // Least time between two lines of progress; a second by default.
  void set_progress_every(absl::Duration period) { progress_every_ = period; }

  void OnStart(const std::string& job, const pb::Experiment& resolved) override;
  void OnEvent(const std::string& line) override;
  void OnProgress(const RunProgress& progress) override;
  void OnEpoch(const EpochMetrics& metrics) override;
  void OnFinish(const RunSummary& summary) override;

  const std::string& path() const { return path_; }
  const absl::Status& status() const { return status_; }

 private:
  using File = std::unique_ptr<FILE, int (*)(FILE*)>;
  RunDirectory(std::string path, ReportClock now, File metrics);
  static absl::StatusOr<std::unique_ptr<RunDirectory>> Open(const std::string& path,
                                                            ReportClock now, bool empty);
  void AppendMetric(const std::string& line);
  void Replace(const std::string& name, absl::string_view content);
  double Seconds() const;

  const std::string path_;
  const ReportClock now_;
  absl::Duration start_;
  File metrics_;
  absl::Duration next_progress_, progress_every_ = absl::Seconds(1);
  std::string job_;
  std::vector<EpochMetrics> epochs_;
  absl::Status status_;
};

// Writes `content` beside `path` and renames it into place. Errors name the path.
absl::Status WriteFileWhole(const std::string& path, absl::string_view content);

}  // namespace parley

#endif  // PARLEY_SCHEDULER_REPORT_RUN_DIRECTORY_H_
