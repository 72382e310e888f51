// SimProcesses: the scheduler, the servers and the workers of a simulated cluster as processes that
// can die at any moment and be started again.
//
// A process that dies says nothing any more, and what it had asked of a disk is done or not; its
// objects stay until the end, for what is on its way to them. The one that takes its place has new
// node ids; a scheduler has the old one, and the state that its predecessor left on its disk.
//
// Thread-safety: none, as SimWorld.
#ifndef PARLEY_TESTS_SIM_SIM_PROCESSES_H_
#define PARLEY_TESTS_SIM_SIM_PROCESSES_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "ps/base/sim_env.h"
#include "ps/base/sim_file_system.h"
#include "ps/net/sim_network.h"
#include "ps/server/server_node.h"
#include "scheduler/disk_store.h"
#include "scheduler/report/run_observer.h"
#include "scheduler/scheduler_node.h"
#include "tests/sim/checkers.h"
#include "tests/sim/cluster.h"
#include "tests/sim/update_worker.h"
#include "worker/worker_node.h"

namespace parley {

inline constexpr char kSchedulerEndpoint[] = "sim://scheduler";

class SimProcesses {
 public:
  // How the job ended, once the scheduler has told its observer.
  using Record = std::function<std::optional<absl::Status>()>;

  // All but `run` and `record` outlive this.
  SimProcesses(const SimRun& run, SimWorld* world, SimNetwork* network, HistoryChecker* checker,
               RunObserver* observer, Record record);
  ~SimProcesses();

  // For all workers that are started from now on; outlives this.
  void SetWorkerProbe(WorkerProbe* probe) { worker_probe_ = probe; }

  void StartScheduler();
  size_t AddServer(bool spare);
  size_t AddWorker(bool spare);

  size_t size() const { return processes_.size(); }
  size_t nodes() const { return nodes_.size(); }
  bool is_server(size_t process) const { return processes_[process].is_server; }
  bool alive(size_t process) const;
  // Of a process, or of the scheduler.
  std::vector<NodeId> NodesOf(int process) const;
  std::vector<SimEnv*> EnvsOf(int process) const;

  // Sudden death. The next takes its place after `again_after`, unless that is infinite. One that
  // has ended by itself stays as it is.
  void Crash(int process, absl::Duration again_after);
  // After the power of its machine was lost, as well: what its disk had not synced.
  void CrashScheduler(absl::Duration again_after, bool power_lost);

  // Whoever lives goes at this speed.
  void SetSlowness(size_t node, double network, double compute);

  SchedulerNode* scheduler() { return scheduler_ == nullptr ? nullptr : scheduler_->node.get(); }
  const std::optional<absl::Status>& scheduler_end() const { return scheduler_end_; }
  // The scheduler has ended, and so has everybody who did not die.
  bool AllEnded() const;
  // How each node ended that was ever there, in the order in which they came.
  std::vector<absl::Status> Ends() const;
  // Processes that ended with an error, or died, and that another took the place of.
  uint32_t restarts() const { return restarts_; }

  SimFileSystem& disk() { return *disk_; }  // of the checkpoints
  SimFileSystem& scheduler_disk() { return journal_; }

 private:
  struct Node {
    std::string name;
    NodeId id = kNoNode;
    std::unique_ptr<SimEnv> env;
    std::unique_ptr<Transport> transport;
    std::unique_ptr<ServerProbe> probe;
    std::unique_ptr<ServerNode> server;
    std::unique_ptr<WorkerNode> worker;
    std::unique_ptr<UpdateWorker> updater;
    std::optional<absl::Status> end;
  };
  struct Process {
    bool is_server = false, spare = false;
    uint32_t number = 0;  // among servers, or among workers
    uint32_t starts = 0;
    std::vector<Node*> nodes = {};  // of the one that lives, or lived last
    bool awaited = false;           // another is about to take its place
  };
  struct Scheduler {
    std::unique_ptr<SimEnv> env;
    std::unique_ptr<Transport> transport;
    std::unique_ptr<DiskStore> store;
    std::unique_ptr<SchedulerNode> node;
  };

  void Start(size_t process);
  Node* AddNode(const std::string& name, const std::string& endpoint);
  void StartShard(size_t process, uint32_t shard);
  void StartWorker(size_t process);
  void OnEnd(size_t process, Node* node, absl::Status status);
  void Say(const std::string& line) const;

  const SimRun run_;
  SimWorld* const world_;
  SimNetwork* const network_;
  HistoryChecker* const checker_;
  RunObserver* const observer_;
  WorkerProbe* worker_probe_ = nullptr;
  const Record record_;
  SimFileSystem own_disk_;
  SimFileSystem* const disk_;
  SimFileSystem journal_;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::vector<Process> processes_;
  std::vector<std::unique_ptr<Scheduler>> dead_schedulers_;
  std::unique_ptr<Scheduler> scheduler_;
  std::optional<absl::Status> scheduler_end_;
  uint32_t servers_ = 0, workers_ = 0, restarts_ = 0;
};

}  // namespace parley

#endif  // PARLEY_TESTS_SIM_SIM_PROCESSES_H_
