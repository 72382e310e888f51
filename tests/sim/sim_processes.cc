#include "tests/sim/sim_processes.h"

#include <algorithm>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"

namespace parley {
namespace {

constexpr absl::Duration kSupervisorDelay = absl::Seconds(1);

}  // namespace

SimProcesses::SimProcesses(const SimRun& run, SimWorld* world, SimNetwork* network,
                           HistoryChecker* checker, RunObserver* observer, Record record)
    : run_(run),
      world_(world),
      network_(network),
      checker_(checker),
      observer_(observer),
      record_(std::move(record)),
      own_disk_(run.seed + 2),
      disk_(run.disk == nullptr ? &own_disk_ : run.disk),
      journal_(run.seed + 1) {
  // The directory is the user's, and older than any fault: a job whose directory is gone is right
  // to wait for it.
  if (!run_.checkpoint_root.empty()) {
    disk_->MakeDirectory(run_.checkpoint_root).IgnoreError();  // there, if it is a job resumed
    disk_->SyncDirectory("/").IgnoreError();
  }
}

SimProcesses::~SimProcesses() = default;

void SimProcesses::Say(const std::string& line) const {
  if (!run_.verbose) return;
  std::printf("%s %s\n", absl::FormatDuration(world_->Now()).c_str(), line.c_str());
}

void SimProcesses::StartScheduler() {
  scheduler_ = std::make_unique<Scheduler>();
  scheduler_->env = std::make_unique<SimEnv>(world_, "scheduler");
  scheduler_->transport =
      network_->CreateTransport(scheduler_->env.get(), kSchedulerNode, kSchedulerEndpoint);
  SchedulerNode::Options options;
  options.job = "sim";
  options.experiment = run_.experiment;
  options.files = disk_;
  options.checkpoint_root = run_.checkpoint_root;
  options.restore = run_.restore;
  if (!run_.failures.empty()) {
    scheduler_->store = std::make_unique<DiskStore>(
        DiskStore::Options{.directory = "/state", .files = &journal_, .lock = false});
    scheduler_->store->Attach(scheduler_->env.get());
    options.store = scheduler_->store.get();
  }
  scheduler_->node = std::make_unique<SchedulerNode>(
      scheduler_->env.get(), scheduler_->transport.get(), std::move(options), observer_,
      [this](absl::Status status) {
        Say(absl::StrCat("scheduler ends: ", status.ToString()));
        scheduler_end_ = std::move(status);
        // Its process exits, but not from within its own code.
        world_->Schedule(absl::ZeroDuration(), [env = scheduler_->env.get()] { env->Kill(); });
      });
  scheduler_->node->Start();
}

size_t SimProcesses::AddServer(bool spare) {
  processes_.push_back({.is_server = true, .spare = spare, .number = servers_++});
  Start(processes_.size() - 1);
  return processes_.size() - 1;
}

size_t SimProcesses::AddWorker(bool spare) {
  processes_.push_back({.spare = spare, .number = workers_++});
  Start(processes_.size() - 1);
  return processes_.size() - 1;
}

void SimProcesses::Start(size_t process) {
  Process& started = processes_[process];
  started.awaited = false;
  started.nodes.clear();
  ++started.starts;
  if (!started.is_server) return StartWorker(process);
  for (uint32_t shard = 0; shard < run_.experiment.cluster().shards_per_server(); ++shard) {
    StartShard(process, shard);
  }
}

SimProcesses::Node* SimProcesses::AddNode(const std::string& name, const std::string& endpoint) {
  auto node = std::make_unique<Node>();
  node->name = name;
  node->id = NodeId{100 + nodes_.size()};
  node->env = std::make_unique<SimEnv>(world_, name);
  node->transport = network_->CreateTransport(node->env.get(), node->id, endpoint);
  nodes_.push_back(std::move(node));
  return nodes_.back().get();
}

void SimProcesses::StartShard(size_t process, uint32_t shard) {
  Process& server = processes_[process];
  std::string name = absl::StrCat("server-", server.number, "-", shard);
  if (server.starts > 1) absl::StrAppend(&name, "-", server.starts);
  Node* node = AddNode(name, "sim://" + name);
  node->probe = checker_->ProbeOf(node->id);
  ServerNode::Options options;
  options.scheduler = kSchedulerEndpoint;
  options.node_name = name;
  options.process = 1000 + 100 * server.starts + server.number;
  options.shard = shard;
  options.spare = server.spare;
  options.probe = node->probe.get();
  options.files = disk_;
  options.key_cache_bytes = run_.key_cache_bytes;
  options.log = [this, name](const std::string& line) { Say(absl::StrCat(name, ": ", line)); };
  node->server = std::make_unique<ServerNode>(
      node->env.get(), node->transport.get(), std::move(options),
      [this, process, node](absl::Status status) { OnEnd(process, node, std::move(status)); });
  server.nodes.push_back(node);
  node->server->Start();
}

void SimProcesses::StartWorker(size_t process) {
  Process& worker = processes_[process];
  std::string name = absl::StrCat("worker-", worker.number);
  if (worker.starts > 1) absl::StrAppend(&name, "-", worker.starts);
  Node* node = AddNode(name, "");
  worker.nodes.push_back(node);
  auto done = [this, process, node](absl::Status status) {
    OnEnd(process, node, std::move(status));
  };
  if (run_.updates > 0) {
    UpdateWorker::Options updates;
    updates.scheduler = kSchedulerEndpoint;
    updates.job = "sim";
    updates.node_name = name;
    updates.plan = {run_.seed, run_.experiment.cluster().workers(), run_.updates};
    updates.max_request_bytes = uint64_t{run_.experiment.cluster().max_request_kib()} << 10;
    updates.violation = [this](std::string line) { checker_->Violation(std::move(line)); };
    node->updater = std::make_unique<UpdateWorker>(node->env.get(), node->transport.get(),
                                                   std::move(updates), std::move(done));
    node->updater->Start();
    return;
  }
  WorkerNode::Options options;
  options.scheduler = kSchedulerEndpoint;
  options.node_name = name;
  options.spare = worker.spare;
  options.probe = worker_probe_;
  options.log = [this, name](const std::string& line) { Say(absl::StrCat(name, ": ", line)); };
  node->worker = std::make_unique<WorkerNode>(node->env.get(), node->transport.get(),
                                              std::move(options), std::move(done));
  node->worker->Start();
}

// A process whose node has failed ends with all its nodes, and the supervisor starts it again.
void SimProcesses::OnEnd(size_t process, Node* node, absl::Status status) {
  Say(absl::StrCat(node->name, " ends: ", status.ToString()));
  node->end = status;
  if (status.ok() || run_.failures.empty() || scheduler_end_.has_value()) return;
  // Not from within the node's own code.
  world_->Schedule(absl::ZeroDuration(), [this, process, node] {
    const std::vector<Node*>& nodes = processes_[process].nodes;
    if (std::find(nodes.begin(), nodes.end(), node) == nodes.end()) return;
    Crash(static_cast<int>(process), kSupervisorDelay);
  });
}

bool SimProcesses::alive(size_t process) const {
  for (const Node* node : processes_[process].nodes) {
    if (!node->end.has_value()) return true;
  }
  return false;
}

std::vector<NodeId> SimProcesses::NodesOf(int process) const {
  if (process == kSchedulerProcess) return {kSchedulerNode};
  std::vector<NodeId> ids;
  for (const Node* node : processes_[process].nodes) ids.push_back(node->id);
  return ids;
}

std::vector<SimEnv*> SimProcesses::EnvsOf(int process) const {
  if (process == kSchedulerProcess) {
    return scheduler_ == nullptr ? std::vector<SimEnv*>() : std::vector{scheduler_->env.get()};
  }
  std::vector<SimEnv*> envs;
  for (const Node* node : processes_[process].nodes) {
    if (!node->end.has_value()) envs.push_back(node->env.get());
  }
  return envs;
}

void SimProcesses::Crash(int process, absl::Duration again_after) {
  if (process == kSchedulerProcess) return CrashScheduler(again_after, /*power_lost=*/false);
  bool died = false;
  for (Node* node : processes_[process].nodes) {
    if (!node->env->alive() || (node->end.has_value() && node->end->ok())) continue;
    died = true;
    if (!node->end.has_value()) {
      Say(absl::StrCat(node->name, " dies"));
      node->end = absl::CancelledError("killed");
    }
    node->env->Kill();
    network_->TellGone(node->id);
  }
  if (!died || again_after == absl::InfiniteDuration()) return;
  processes_[process].awaited = true;
  world_->Schedule(again_after, [this, process] {
    if (!processes_[process].awaited || scheduler_end_.has_value()) return;
    ++restarts_;
    Start(static_cast<size_t>(process));
  });
}

void SimProcesses::CrashScheduler(absl::Duration again_after, bool power_lost) {
  if (scheduler_ == nullptr || scheduler_end_.has_value()) return;
  Say(power_lost ? "the scheduler's machine loses its power" : "the scheduler dies");
  scheduler_->env->Kill();
  network_->TellGone(kSchedulerNode);
  dead_schedulers_.push_back(std::move(scheduler_));
  if (power_lost) journal_.Crash();
  if (again_after == absl::InfiniteDuration()) {
    scheduler_end_ = absl::CancelledError("killed");
    return;
  }
  world_->Schedule(again_after, [this] {
    ++restarts_;
    Say("the scheduler is started again");
    // Its program ends at once if it cannot open its state, and is started until it can.
    journal_.SetFaults({});
    // As its program does: if the record says that the job is over, it is.
    scheduler_end_ = record_();
    if (!scheduler_end_.has_value()) StartScheduler();
  });
}

void SimProcesses::SetSlowness(size_t node, double network, double compute) {
  network_->SetSlow(nodes_[node]->id, network);
  nodes_[node]->env->SetOffloadDelay(absl::Microseconds(100) * compute,
                                     absl::Milliseconds(1) * compute);
}

bool SimProcesses::AllEnded() const {
  if (!scheduler_end_.has_value()) return false;
  for (const auto& node : nodes_) {
    if (!node->end.has_value()) return false;
  }
  return true;
}

std::vector<absl::Status> SimProcesses::Ends() const {
  std::vector<absl::Status> ends;
  for (const auto& node : nodes_) {
    ends.push_back(node->end.value_or(absl::DeadlineExceededError("still running")));
  }
  return ends;
}

}  // namespace parley
