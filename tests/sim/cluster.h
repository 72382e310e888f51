// A whole cluster - the real scheduler, server and worker code - in one thread on a virtual clock
// and network.
#ifndef PARLEY_TESTS_SIM_CLUSTER_H_
#define PARLEY_TESTS_SIM_CLUSTER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/experiment.pb.h"
#include "ps/base/sim_file_system.h"
#include "ps/net/sim_network.h"
#include "ps/server/key_cache.h"
#include "scheduler/report/run_observer.h"
#include "tests/sim/faults.h"

namespace parley {

struct SimRun {
  uint64_t seed = 1;
  pb::Experiment experiment;  // resolved
  SimNetwork::Options faults;
  // Until then, faults; from then on a clean network: the run must come to its end.
  absl::Duration faults_until = absl::Seconds(20);
  // Now and then a pair of nodes cannot reach each other for a while.
  int cuts = 0;
  absl::Duration max_cut = absl::Seconds(2);
  // Nodes whose frames and computing take that many times as long, by index over servers (with
  // their shards), then workers.
  std::vector<double> slowness;
  // The same for computing alone.
  std::vector<double> compute_slowness;
  // Kill this process (index over servers, then workers; -1: nobody, kSchedulerProcess) at this
  // time; nobody takes its place.
  int kill = -1;
  absl::Duration kill_at;
  // What else happens. If there is anything, the scheduler keeps its state on a disk, and processes
  // that end with an error are started again, as a supervisor would.
  std::vector<SimFault> failures;
  uint32_t spare_servers = 0, spare_workers = 0;
  // Where checkpoints are written; empty: none are. And the disk they are on; null: one of its own.
  std::string checkpoint_root;
  SimFileSystem* disk = nullptr;
  std::string restore;  // as SchedulerNode's
  // Not 0: workers do not train, but send so many updates each that belong to no step
  // (update_worker.h). REQUIRES: ASP.
  uint32_t updates = 0;
  // What servers remember of each worker's lists of keys.
  size_t key_cache_bytes = KeyCache::kMaxBytes;
  absl::Duration limit = absl::Minutes(30);
  bool verbose = false;
};

struct SimOutcome {
  bool ended = false;      // every node that was not killed ended by itself within the limit
  absl::Status scheduler;  // how the scheduler ended
  // And the servers, then the workers, then all that came later.
  std::vector<absl::Status> nodes;
  RunSummary summary;
  std::vector<std::string> violations;  // of HistoryChecker; filled if the run ended well
  uint64_t reads = 0, applies = 0, events = 0;
  uint64_t updates_without_tick = 0;  // pieces of them, each of one partition
  uint64_t samples_covered = 0;       // found once, by the partition
  SimNetworkCounters network;
  absl::Duration virtual_time;
  uint32_t restarts = 0;    // processes that took the place of others
  uint64_t promises = 0;    // acknowledgements given with copies
  uint64_t generation = 0;  // the last
  size_t happened = 0;      // of SimRun::failures
};

SimOutcome RunCluster(const SimRun& run);

// A small experiment, resolved, from text that is merged over a tiny default; a model in it
// replaces the default's, and `optimizer` its optimizer. Aborts on text that does not parse: it is
// the test's own.
pb::Experiment TinyExperiment(const std::string& text, const std::string& optimizer = "");

}  // namespace parley

#endif  // PARLEY_TESTS_SIM_CLUSTER_H_
