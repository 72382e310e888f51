// RunTally: adds up what workers and servers report into the numbers of a run. Each report counts
// once, however often it arrives. Pure state; owned by the scheduler's loop; not thread-safe.
#ifndef PARLEY_SCHEDULER_RUN_TALLY_H_
#define PARLEY_SCHEDULER_RUN_TALLY_H_

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/cluster.pb.h"
#include "proto/scheduler.pb.h"
#include "scheduler/membership.h"
#include "scheduler/report/run_observer.h"

namespace parley {

class RunTally {
 public:
  explicit RunTally(const pb::Experiment& experiment);

  // What the workers train: the summary names its sparse tables.
  void SetTables(const pb::Register& tables) { tables_ = tables; }

  // The metrics of an epoch when this report was the last one missing for it. A report counts for
  // its own rank, if it names one, and is of no account if it is of another generation.
  std::optional<EpochMetrics> AddReport(uint32_t worker, const pb::Report& report);
  void AddFinished(uint32_t worker, const pb::Finished& finished);
  bool all_finished() const { return finished_.size() == workers_; }
  std::set<uint32_t> finished_ranks() const;
  // Steps that the workers had done when they finished; the most.
  uint64_t finished_steps() const;
  void AddCounts(NodeId server, const pb::ServerCounts& counts);
  // Before they are asked for again.
  void ForgetCounts() { counts_.clear(); }

  // The epochs that some have not reported, though a later one is complete, or all have finished:
  // who died before it said so will not. With what there is.
  std::vector<EpochMetrics> TakeIncomplete();

  // All begin again from `step` (a roll-back, or the resumption of an earlier run): what was told
  // of steps after it is forgotten, and so is who has finished.
  void BeginGeneration(uint64_t generation, uint64_t step);

  // What happened, for the summary.
  void CountRestart() { ++restarts_; }
  void CountFailover() { ++failovers_; }
  // `exact`: the steps that its predecessor had begun are computed again.
  void CountReplaced(bool exact) {
    ++workers_replaced_;
    skipped_ |= !exact;
  }
  void CountCheckpoint() { ++checkpoints_; }
  uint32_t restarts() const { return restarts_; }

  // For the state that outlives this process; `before_step` given: for a checkpoint, epochs up to
  // there alone.
  pb::TallyState Save(std::optional<uint64_t> before_step = std::nullopt) const;
  void Load(const pb::TallyState& state);

  // Steps of the whole job by what the experiment says; 0: not known.
  uint64_t PlannedSteps(uint64_t train_samples) const;

  // Where things stand, from the newest heartbeats. `now` counts from any fixed moment.
  RunProgress ProgressOf(const std::vector<pb::Heartbeat>& beats, uint64_t train_samples,
                         absl::Duration now);

  // The whole run so far; `ok` and `reason` are the caller's to set, except that pushes
  // acknowledged but not applied, and samples that were not applied once each, make it not ok.
  RunSummary Summary(absl::Duration wall) const;

 private:
  EpochMetrics Sum(uint32_t epoch, const std::map<uint32_t, pb::Report>& reports) const;
  std::vector<TableSummary> SparseTables() const;
  void CheckPushes(RunSummary* summary) const;
  void CheckSamples(RunSummary* summary) const;
  uint64_t SamplesBefore(uint64_t step) const;

  const pb::Experiment experiment_;
  const uint32_t workers_;
  uint64_t generation_ = 0, first_step_ = 0;
  bool skipped_ = false;  // samples were left out, as configured
  uint32_t restarts_ = 0, failovers_ = 0, workers_replaced_ = 0, checkpoints_ = 0;
  pb::Register tables_;
  std::map<uint32_t, std::map<uint32_t, pb::Report>> reports_;  // epoch -> rank; not in epochs_
  std::vector<EpochMetrics> epochs_;
  std::map<uint32_t, pb::Finished> finished_;
  std::map<NodeId, pb::ServerCounts> counts_;
  // Samples done at earlier moments, for a rate over the last seconds.
  std::vector<std::pair<absl::Duration, uint64_t>> history_;
};

}  // namespace parley

#endif  // PARLEY_SCHEDULER_RUN_TALLY_H_
