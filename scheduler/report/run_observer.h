// RunObserver: what the scheduler tells the outside about a run; the node itself writes no files
// and no terminal.
//
// Called on the scheduler's loop, in the order things happen; implementations must not block for
// long.
#ifndef PARLEY_SCHEDULER_REPORT_RUN_OBSERVER_H_
#define PARLEY_SCHEDULER_REPORT_RUN_OBSERVER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "proto/experiment.pb.h"

namespace parley {

// Where the run stands, from heartbeats; a few times a second at most.
struct RunProgress {
  uint32_t epoch = 0;  // from 0; the slowest worker's
  uint32_t epochs = 0;
  uint64_t step = 0;     // the slowest worker's tick
  uint64_t steps = 0;    // planned in total; 0 = unknown
  double loss = 0;       // running mean of this epoch
  uint64_t samples = 0;  // trained on so far
  double samples_per_second = 0;
  uint64_t max_staleness = 0;
  std::string waiting_for;  // empty while all are busy
};

// One finished epoch, summed over workers.
struct EpochMetrics {
  uint32_t epoch = 0;  // from 0
  uint64_t step = 0;   // steps done at its end
  double train_loss = 0,
         train_accuracy = 0;  // running means over the epoch, or a full pass if so configured
  bool evaluated = false;     // the test values below are there
  double test_loss = 0, test_accuracy = 0;
  uint64_t train_samples = 0;
  double train_seconds = 0;  // the slowest worker's, without evaluation
  double compute_seconds = 0,
         wait_seconds = 0;  // means over workers: device busy, device waiting for weights
  double eval_seconds = 0;
  uint64_t max_staleness = 0;
};

// What a sparse table holds at the end, over all servers.
struct TableSummary {
  std::string name;
  uint64_t rows = 0, evicted = 0;
  uint64_t bytes = 0;  // memory of rows, keys, slots and index
  std::string digest;  // 32 hex digits: equal for equal rows, whatever the number of servers
};

struct RunSummary {
  bool ok = false;
  std::string reason;  // why it is not ok
  uint64_t steps = 0;
  double train_seconds = 0, wall_seconds = 0, samples_per_second = 0;
  double compute_seconds = 0, wait_seconds = 0;  // means over workers
  double apply_seconds = 0;  // inside the servers' update pass, the busiest shard
  uint64_t bytes_pushed = 0, bytes_pulled = 0;
  uint64_t pushes_acknowledged = 0, pushes_applied = 0, pushes_dropped = 0, pushes_duplicate = 0,
           rpc_retries = 0;
  uint64_t max_staleness = 0;
  // Of the samples that each partition should have had since the generation began, those that are
  // not in its weights (worker_loss: SKIP, backup workers), as a mean over partitions. Nothing: it
  // is not known, as where workers go by parts of their own (BY_WORKER).
  std::optional<double> samples_left_out;
  uint32_t restarts = 0;             // roll-backs to a checkpoint or to the start
  uint32_t failovers = 0;            // deaths of servers that copies made up for
  uint32_t workers_replaced = 0;     // logical workers that went on at another node
  uint32_t checkpoints = 0;          // written
  uint64_t frames_refused = 0;       // by servers: messages that were no valid frame
  std::string weights_sha256;        // of the dense table
  std::vector<TableSummary> tables;  // sparse ones, in the order of registration
  std::vector<EpochMetrics> epochs;
};

class RunObserver {
 public:
  virtual ~RunObserver() = default;
  // Once, when the experiment is known: before any node has arrived. Every field is set.
  virtual void OnStart(const std::string& job, const pb::Experiment& resolved) = 0;
  // One line for people: "server 1 (host:4242) joined", "training starts".
  virtual void OnEvent(const std::string& line) = 0;
  virtual void OnProgress(const RunProgress& progress) = 0;
  virtual void OnEpoch(const EpochMetrics& metrics) = 0;
  // Last, also after a failure.
  virtual void OnFinish(const RunSummary& summary) = 0;
};

}  // namespace parley

#endif  // PARLEY_SCHEDULER_REPORT_RUN_OBSERVER_H_
