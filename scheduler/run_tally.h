// RunTally: adds up what workers and servers report into the numbers of a run. Each report counts
// once, however often it arrives. Pure state; owned by the scheduler's loop; not thread-safe.
#ifndef PARLEY_SCHEDULER_RUN_TALLY_H_
#define PARLEY_SCHEDULER_RUN_TALLY_H_

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/cluster.pb.h"
#include "scheduler/membership.h"
#include "scheduler/report/run_observer.h"

namespace parley {

class RunTally {
 public:
  explicit RunTally(const pb::Experiment& experiment);

  // What the workers train: the summary names its sparse tables.
  void SetTables(const pb::Register& tables) { tables_ = tables; }

  // The metrics of an epoch when this report was the last one missing for it.
  std::optional<EpochMetrics> AddReport(uint32_t worker, const pb::Report& report);
  void AddFinished(uint32_t worker, const pb::Finished& finished);
  bool all_finished() const { return finished_.size() == workers_; }
  void AddCounts(NodeId server, const pb::ServerCounts& counts);

  // Where things stand, from the newest heartbeats. `now` counts from any fixed moment.
  RunProgress Progress(const std::vector<Member*>& workers, uint64_t train_samples,
                       absl::Duration now);

  // The whole run so far; `ok` and `reason` are the caller's to set, except that pushes
  // acknowledged but not applied make it not ok.
  RunSummary Summary(absl::Duration wall) const;

 private:
  std::vector<TableSummary> SparseTables() const;

  const pb::Experiment experiment_;
  const uint32_t workers_;
  pb::Register tables_;
  std::map<uint32_t, std::map<uint32_t, pb::Report>> reports_;  // epoch -> worker
  std::vector<EpochMetrics> epochs_;
  std::map<uint32_t, pb::Finished> finished_;
  std::map<NodeId, pb::ServerCounts> counts_;
  // Samples done at earlier moments, for a rate over the last seconds.
  std::vector<std::pair<absl::Duration, uint64_t>> history_;
};

}  // namespace parley

#endif  // PARLEY_SCHEDULER_RUN_TALLY_H_
