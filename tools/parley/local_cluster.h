// LocalCluster: an experiment's processes on this machine, from start to end.
//
// One scheduler, and as many servers, workers and spares as are asked for, under a Supervisor that
// starts again who dies: the scheduler with the address it had, so that the others find it; servers
// and workers anew, to take whatever place there is for them. Files in the run directory: logs/,
// experiment.resolved.textproto, scheduler.endpoint, state/, and what the scheduler leaves.
//
// Not thread-safe; one per process (Supervisor).
#ifndef PARLEY_TOOLS_PARLEY_LOCAL_CLUSTER_H_
#define PARLEY_TOOLS_PARLEY_LOCAL_CLUSTER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/experiment.pb.h"
#include "tools/parley/supervisor.h"

namespace parley {

class LocalCluster {
 public:
  struct Options {
    std::string run_dir;       // exists, with logs/ in it
    std::string bin;           // where the roles' programs are
    std::string restore = "";  // a checkpoint to begin from; empty: from the first weights
    std::string keys = "";     // a directory of keys for all; empty: without
    bool append = false;       // add to the record that is in run_dir
    uint32_t spare_servers = 0, spare_workers = 0;
    uint32_t max_restarts = 0;    // of each process
    uint32_t progress_ms = 1000;  // between lines of progress in metrics.jsonl
    std::string metrics_format = "plain";
    bool quiet = false;
  };

  LocalCluster(Options options, const pb::Experiment& experiment);
  ~LocalCluster();

  // Until the end of the job; says on stderr what went wrong. Returns the exit code.
  int Run();

 private:
  class SocketDirectory;

  absl::Status StartAll();
  ChildSpec Spec(const std::string& role, uint32_t index) const;
  std::string SchedulerBind() const;
  void AddSpin(ChildSpec* spec) const;
  std::vector<std::string> SchedulerArgs(const std::string& resolved,
                                         const std::string& endpoint_file,
                                         const std::string& bind) const;
  static void AddPlace(uint32_t index, uint32_t places, ChildSpec* spec);
  absl::Status StartScheduler(const std::string& resolved, const std::string& endpoint_file);
  absl::Status StartServer(uint32_t index, const std::string& endpoint);
  absl::Status StartWorker(uint32_t index, const std::string& endpoint);
  void Tell(const std::string& line) const;
  void FillInSummary(const std::string& reason);

  const Options options_;
  const pb::Experiment& experiment_;
  std::unique_ptr<SocketDirectory> sockets_;
  std::unique_ptr<Supervisor> supervisor_;  // dies first: sockets outlive those who use them
};

}  // namespace parley

#endif  // PARLEY_TOOLS_PARLEY_LOCAL_CLUSTER_H_
