// The JSON of a run directory: lines of metrics.jsonl and the whole of summary.json. For tools that
// read it: every object of metrics.jsonl has a "type".
//
// Pure functions, thread-safe.
#ifndef PARLEY_SCHEDULER_REPORT_METRICS_JSON_H_
#define PARLEY_SCHEDULER_REPORT_METRICS_JSON_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "scheduler/report/run_observer.h"

namespace parley {

// Without a line's end. Epochs count from 1 here, as people count them. `seconds` since the start
// of the run.
std::string EpochJson(const EpochMetrics& metrics, double seconds);     // "type": "epoch"
std::string ProgressJson(const RunProgress& progress, double seconds);  // "type": "progress"
std::string EventJson(absl::string_view line, double seconds);          // "type": "event"

// summary.json. Loss and accuracy are those of the last epoch that was evaluated.
std::string SummaryJson(const std::string& job, const RunSummary& summary);

// The epochs of a metrics.jsonl; lines of other types are passed over. kInvalidArgument names the
// line that is not JSON or lacks a number. A last line without its end, cut short by a crash, is
// passed over.
absl::StatusOr<std::vector<EpochMetrics>> ParseEpochs(absl::string_view metrics_jsonl);

// The "reason" of a summary.json. kNotFound if there is no such file, kInvalidArgument if it is
// none.
absl::StatusOr<std::string> ReadSummaryReason(const std::string& path);

// Where the workers' time of training went, as shares that add up to 1.
struct TimeShares {
  double compute = 0;               // device busy
  double server = 0;                // waiting while the busiest shard applied updates
  double wire = 0;                  // waiting for anything else: sending, receiving, other workers
  double other = 0;                 // reading data, splitting and joining tensors
  const char* largest = "compute";  // what to look at first
};
TimeShares SharesOf(const RunSummary& summary);

}  // namespace parley

#endif  // PARLEY_SCHEDULER_REPORT_METRICS_JSON_H_
