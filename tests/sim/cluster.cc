#include "tests/sim/cluster.h"

#include <google/protobuf/text_format.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "ps/base/dense_layout.h"
#include "ps/base/sim_env.h"
#include "ps/config/experiment.h"
#include "ps/server/server_node.h"
#include "scheduler/scheduler_node.h"
#include "tests/sim/checkers.h"
#include "tests/sim/update_worker.h"
#include "worker/worker_node.h"
#include "worker/workload.h"

namespace parley {
namespace {

constexpr char kScheduler[] = "sim://scheduler";

class SummaryKeeper : public RunObserver {
 public:
  explicit SummaryKeeper(bool verbose) : verbose_(verbose) {}
  void OnStart(const std::string&, const pb::Experiment&) override {}
  void OnEvent(const std::string& line) override {
    if (verbose_) std::printf("scheduler: %s\n", line.c_str());
  }
  void OnProgress(const RunProgress&) override {}
  void OnEpoch(const EpochMetrics& metrics) override {
    if (verbose_) std::printf("epoch %u: train loss %g\n", metrics.epoch, metrics.train_loss);
  }
  void OnFinish(const RunSummary& summary) override { summary_ = summary; }
  const RunSummary& summary() const { return summary_; }

 private:
  const bool verbose_;
  RunSummary summary_;
};

struct SimNode {
  std::string name;
  NodeId id = kNoNode;
  std::unique_ptr<SimEnv> env;
  std::unique_ptr<Transport> transport;
  std::unique_ptr<ServerNode> server;
  std::unique_ptr<WorkerNode> worker;
  std::unique_ptr<UpdateWorker> updater;
  std::optional<absl::Status> end;
  bool killed = false;
};

class Cluster {
 public:
  explicit Cluster(const SimRun& run)
      : run_(run),
        world_(run.seed),
        network_(&world_, run.faults),
        keeper_(run.verbose),
        checker_(run.experiment.consistency(), run.experiment.cluster().workers()) {}

  SimOutcome Run() {
    ExpectTables();
    StartScheduler();
    const pb::Cluster& cluster = run_.experiment.cluster();
    for (uint32_t server = 0; server < cluster.servers(); ++server) {
      for (uint32_t shard = 0; shard < cluster.shards_per_server(); ++shard)
        AddServer(server, shard);
    }
    for (uint32_t worker = 0; worker < cluster.workers(); ++worker) AddWorker(worker);
    for (size_t i = 0; i < nodes_.size(); ++i) {
      const double network = i < run_.slowness.size() ? run_.slowness[i] : 1;
      const double compute = i < run_.compute_slowness.size() ? run_.compute_slowness[i] : network;
      network_.SetSlow(nodes_[i]->id, network);
      nodes_[i]->env->SetOffloadDelay(absl::Microseconds(100) * compute,
                                      absl::Milliseconds(1) * compute);
    }
    ScheduleFaults();
    const bool ended = world_.RunUntil([this] { return AllEnded(); }, run_.limit);
    return Outcome(ended);
  }

 private:
  // Every partition there should be, worked out from the experiment and not from what anybody says.
  void ExpectTables() {
    if (run_.updates > 0) return;  // nothing has ticks
    const absl::StatusOr<std::unique_ptr<Workload>> workload = LoadWorkload(run_.experiment);
    if (!workload.ok()) return;  // the workers will say so
    const absl::StatusOr<DenseLayout> layout =
        DenseLayout::Create(ModelTable(run_.experiment, *(*workload)->model));
    if (layout.ok()) checker_.ExpectTable(kModelTable, layout->partitions());
    if ((*workload)->embedding.has_value()) {
      checker_.ExpectTable(kEmbeddingTable, EmbeddingTable(run_.experiment).sparse().partitions());
    }
  }

  void StartScheduler() {
    scheduler_env_ = std::make_unique<SimEnv>(&world_, "scheduler");
    scheduler_transport_ =
        network_.CreateTransport(scheduler_env_.get(), kSchedulerNode, kScheduler);
    SchedulerNode::Options options;
    options.job = "sim";
    options.experiment = run_.experiment;
    scheduler_ =
        std::make_unique<SchedulerNode>(scheduler_env_.get(), scheduler_transport_.get(),
                                        std::move(options), &keeper_, [this](absl::Status status) {
                                          Say("scheduler", status);
                                          scheduler_end_ = std::move(status);
                                        });
    scheduler_->Start();
  }

  SimNode* AddNode(const std::string& name, const std::string& endpoint) {
    auto node = std::make_unique<SimNode>();
    node->name = name;
    node->id = NodeId{100 + nodes_.size()};
    node->env = std::make_unique<SimEnv>(&world_, name);
    node->transport = network_.CreateTransport(node->env.get(), node->id, endpoint);
    nodes_.push_back(std::move(node));
    return nodes_.back().get();
  }

  auto Done(SimNode* node) {
    return [this, node](absl::Status status) {
      Say(node->name, status);
      node->end = std::move(status);
    };
  }

  void AddServer(uint32_t server, uint32_t shard) {
    const std::string name = absl::StrCat("server-", server, "-", shard);
    SimNode* node = AddNode(name, "sim://" + name);
    ServerNode::Options options;
    options.scheduler = kScheduler;
    options.node_name = name;
    options.process = 1000 + server;
    options.shard = shard;
    options.probe = &checker_;
    options.key_cache_bytes = run_.key_cache_bytes;
    node->server = std::make_unique<ServerNode>(node->env.get(), node->transport.get(),
                                                std::move(options), Done(node));
    node->server->Start();
  }

  void AddWorker(uint32_t worker) {
    const std::string name = absl::StrCat("worker-", worker);
    SimNode* node = AddNode(name, "");
    if (run_.updates > 0) {
      UpdateWorker::Options updates;
      updates.scheduler = kScheduler;
      updates.job = "sim";
      updates.node_name = name;
      updates.plan = {run_.seed, run_.experiment.cluster().workers(), run_.updates};
      updates.max_request_bytes = uint64_t{run_.experiment.cluster().max_request_kib()} << 10;
      updates.violation = [this](std::string line) { checker_.Violation(std::move(line)); };
      node->updater = std::make_unique<UpdateWorker>(node->env.get(), node->transport.get(),
                                                     std::move(updates), Done(node));
      node->updater->Start();
      return;
    }
    WorkerNode::Options options;
    options.scheduler = kScheduler;
    options.node_name = name;
    if (run_.verbose) {
      options.log = [name](const std::string& line) {
        std::printf("%s: %s\n", name.c_str(), line.c_str());
      };
    }
    node->worker = std::make_unique<WorkerNode>(node->env.get(), node->transport.get(),
                                                std::move(options), Done(node));
    node->worker->Start();
  }

  void ScheduleFaults() {
    world_.Schedule(run_.faults_until, [this] {
      network_.SetOptions(SimNetwork::Options());
      network_.Heal();
    });
    for (int i = 0; i < run_.cuts; ++i) {
      const absl::Duration start = world_.RandomDuration(absl::ZeroDuration(), run_.faults_until);
      const absl::Duration length = world_.RandomDuration(absl::ZeroDuration(), run_.max_cut);
      const NodeId a = RandomNode(), b = RandomNode();
      if (a == b) continue;
      world_.Schedule(start, [this, a, b] { network_.Cut(a, b); });
      world_.Schedule(start + length, [this] { network_.Heal(); });
    }
    if (run_.kill != -1) world_.Schedule(run_.kill_at, [this] { Kill(run_.kill); });
  }

  NodeId RandomNode() {
    const uint64_t index = world_.Random() % (nodes_.size() + 1);
    return index == nodes_.size() ? kSchedulerNode : nodes_[index]->id;
  }

  void Kill(int index) {
    if (index == -2) {
      scheduler_env_->Kill();
      scheduler_end_ = absl::CancelledError("killed");
      return;
    }
    SimNode& node = *nodes_[index];
    if (node.end.has_value()) return;
    node.env->Kill();
    node.killed = true;
    node.end = absl::CancelledError("killed");
  }

  bool AllEnded() const {
    if (!scheduler_end_.has_value()) return false;
    for (const auto& node : nodes_) {
      if (!node->end.has_value()) return false;
    }
    return true;
  }

  void Say(const std::string& name, const absl::Status& status) {
    if (run_.verbose) {
      std::printf("%s ends at %s: %s\n", name.c_str(), absl::FormatDuration(world_.Now()).c_str(),
                  status.ToString().c_str());
    }
  }

  SimOutcome Outcome(bool ended) {
    SimOutcome outcome;
    outcome.ended = ended;
    outcome.scheduler = scheduler_end_.value_or(absl::DeadlineExceededError("still running"));
    for (const auto& node : nodes_) {
      outcome.nodes.push_back(node->end.value_or(absl::DeadlineExceededError("still running")));
    }
    outcome.summary = keeper_.summary();
    if (outcome.scheduler.ok() || absl::IsDataLoss(outcome.scheduler)) {
      checker_.Finish(outcome.summary.pushes_acknowledged, outcome.summary.pushes_applied,
                      outcome.summary.pushes_dropped);
    }
    outcome.violations = checker_.violations();
    outcome.reads = checker_.reads();
    outcome.applies = checker_.applies();
    outcome.updates_without_tick = checker_.updates_without_tick();
    outcome.events = world_.events();
    outcome.network = network_.counters();
    outcome.virtual_time = world_.Now();
    return outcome;
  }

  const SimRun run_;
  SimWorld world_;
  SimNetwork network_;
  SummaryKeeper keeper_;
  HistoryChecker checker_;
  std::unique_ptr<SimEnv> scheduler_env_;
  std::unique_ptr<Transport> scheduler_transport_;
  std::unique_ptr<SchedulerNode> scheduler_;
  std::optional<absl::Status> scheduler_end_;
  std::vector<std::unique_ptr<SimNode>> nodes_;
};

constexpr char kTiny[] = R"pb(
  name: "sim"
  seed: 7
  cluster {
    servers: 2
    workers: 2
    partition_kib: 4
    max_request_kib: 4
    node_timeout_ms: 20000
    progress_timeout_ms: 300000
    start_timeout_ms: 300000
  }
  data { synthetic { train_samples: 90 test_samples: 20 width: 24 classes: 5 } }
  model {
    layer { linear { out: 64 } }
    layer { relu {} }
    layer { dropout { p: 0.1 } }
    layer { linear { out: 5 } }
    layer { log_softmax {} }
  }
  training { epochs: 1 global_batch: 16 }
  optimizer {
    sgd { momentum: 0.9 }
    lr: 0.1
  }
)pb";

}  // namespace

SimOutcome RunCluster(const SimRun& run) { return Cluster(run).Run(); }

pb::Experiment TinyExperiment(const std::string& text, const std::string& optimizer) {
  pb::Experiment experiment, changes;
  pb::Optimizer rule;
  using google::protobuf::TextFormat;
  if (!TextFormat::ParseFromString(kTiny, &experiment) ||
      !TextFormat::ParseFromString(text, &changes) ||
      !TextFormat::ParseFromString(optimizer, &rule)) {
    std::fprintf(stderr, "not an experiment: %s %s\n", text.c_str(), optimizer.c_str());
    std::abort();
  }
  if (changes.has_model()) experiment.clear_model();  // layers replace layers
  experiment.MergeFrom(changes);
  if (!optimizer.empty()) *experiment.mutable_optimizer() = rule;
  ResolveExperiment(&experiment);
  if (absl::Status status = ValidateExperiment(experiment); !status.ok()) {
    std::fprintf(stderr, "impossible experiment: %s\n", status.ToString().c_str());
    std::abort();
  }
  return experiment;
}

}  // namespace parley
