#include "tests/sim/cluster.h"

#include <google/protobuf/text_format.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <utility>

#include "ps/base/dense_layout.h"
#include "ps/base/sim_env.h"
#include "ps/config/experiment.h"
#include "ps/net/rpc.h"
#include "tests/sim/checkers.h"
#include "tests/sim/sample_checker.h"
#include "tests/sim/sim_processes.h"
#include "worker/workload.h"

namespace parley {
namespace {

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
  void OnFinish(const RunSummary& summary) override {
    summary_ = summary;
    end_ = summary.ok ? absl::OkStatus() : absl::AbortedError(summary.reason);
  }
  const RunSummary& summary() const { return summary_; }
  const std::optional<absl::Status>& end() const { return end_; }

 private:
  const bool verbose_;
  RunSummary summary_;
  std::optional<absl::Status> end_;
};

class Cluster {
 public:
  explicit Cluster(const SimRun& run)
      : run_(run),
        world_(run.seed),
        network_(&world_, run.faults),
        keeper_(run.verbose),
        checker_(run.experiment.consistency(), run.experiment.cluster().workers()),
        processes_(run, &world_, &network_, &checker_, &keeper_, [this] { return keeper_.end(); }),
        pending_(run.failures) {}

  SimOutcome Run() {
    ExpectTables();
    network_.SetTap([this](NodeId from, NodeId to, const Frame& frame) {
      if (run_.verbose) SayFrame(from, to, frame.header);
      checker_.OnArrival(from, to, frame);
    });
    network_.SetSendTap(
        [this](NodeId from, NodeId to, const Frame& frame) { checker_.OnSend(from, to, frame); });
    processes_.StartScheduler();
    const pb::Cluster& cluster = run_.experiment.cluster();
    for (uint32_t server = 0; server < cluster.servers(); ++server) processes_.AddServer(false);
    for (uint32_t worker = 0; worker < cluster.workers(); ++worker) processes_.AddWorker(false);
    for (size_t i = 0; i < processes_.nodes(); ++i) {
      const double network = i < run_.slowness.size() ? run_.slowness[i] : 1;
      const double compute = i < run_.compute_slowness.size() ? run_.compute_slowness[i] : network;
      processes_.SetSlowness(i, network, compute);
    }
    for (uint32_t i = 0; i < run_.spare_servers; ++i) processes_.AddServer(true);
    for (uint32_t i = 0; i < run_.spare_workers; ++i) processes_.AddWorker(true);
    ScheduleFaults();
    const bool ended = world_.RunUntil([this] { return Look(); }, run_.limit);
    return Outcome(ended);
  }

 private:
  // What matters between servers, and every refusal.
  void SayFrame(NodeId from, NodeId to, const pb::FrameHeader& header) const {
    const bool copies = header.kind() == pb::SYNC || header.kind() == pb::REPLICATE ||
                        header.kind() == pb::BACKUP_NEWS;
    if (!copies && header.status_code() == 0) return;
    const int partition =
        header.part_size() == 1 ? static_cast<int>(header.part(0).partition()) : -1;
    std::printf("%s node %x -> %x: %s of table %u, partition %d, in epoch %lu, request %lx%s\n",
                absl::FormatDuration(world_.Now()).c_str(), static_cast<unsigned>(Value(from)),
                static_cast<unsigned>(Value(to)), pb::Kind_Name(header.kind()).c_str(),
                header.table(), partition, header.epoch(), header.request_id() & 0xffff,
                header.has_status_message() ? (": " + header.status_message()).c_str() : "");
  }

  // Every partition there should be, worked out from the experiment and not from what anybody says.
  void ExpectTables() {
    if (run_.updates > 0) return;  // nothing has ticks
    const absl::StatusOr<std::unique_ptr<Workload>> workload = LoadWorkload(run_.experiment);
    if (!workload.ok()) return;  // the workers will say so
    samples_.emplace(run_.experiment, (*workload)->data.train->samples(),
                     [this](std::string line) { checker_.Violation(std::move(line)); });
    processes_.SetWorkerProbe(&*samples_);
    const absl::StatusOr<DenseLayout> layout =
        DenseLayout::Create(ModelTable(run_.experiment, *(*workload)->model));
    if (layout.ok()) checker_.ExpectTable(kModelTable, layout->partitions());
    if ((*workload)->embedding.has_value()) {
      checker_.ExpectTable(kEmbeddingTable, EmbeddingTable(run_.experiment).sparse().partitions());
    }
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
    if (run_.kill != -1) {
      world_.Schedule(run_.kill_at,
                      [this] { processes_.Crash(run_.kill, absl::InfiniteDuration()); });
    }
    std::erase_if(pending_, [this](const SimFault& fault) {
      if (fault.updates > 0) return false;
      world_.Schedule(fault.at, [this, fault] { Do(fault); });
      return true;
    });
  }

  NodeId RandomNode() {
    const uint64_t index = world_.Random() % (processes_.nodes() + 1);
    return index == processes_.nodes() ? kSchedulerNode : NodeId{100 + index};
  }

  // Between any two events: what is due by then; then whether all is over.
  bool Look() {
    if (power_back_.has_value() && processes_.scheduler_disk().halted()) {
      processes_.CrashScheduler(*std::exchange(power_back_, std::nullopt), /*power_lost=*/true);
    }
    for (size_t i = 0; i < pending_.size(); ++i) {
      SimFault& fault = pending_[i];
      if (checker_.applies() < fault.updates) continue;
      if (fault.events-- > 0) continue;
      const SimFault due = fault;
      pending_.erase(pending_.begin() + static_cast<ptrdiff_t>(i--));
      Do(due);
    }
    return processes_.AllEnded();
  }

  void Do(const SimFault& fault) {
    const bool process = fault.kind <= SimFault::kSlowLink;
    const int last = static_cast<int>(processes_.size());
    if (process && (fault.process >= last || fault.other >= last)) return;
    if (processes_.scheduler_end().has_value()) return;
    ++happened_;
    if (run_.verbose) {
      std::printf("%s --- %s\n", absl::FormatDuration(world_.Now()).c_str(),
                  Describe(fault).c_str());
    }
    if (process) {
      HitProcess(fault);
    } else if (fault.kind <= SimFault::kStateErrors) {
      HitDisk(fault);
    } else {
      Ask(fault);
    }
  }

  void HitProcess(const SimFault& fault) {
    switch (fault.kind) {
      case SimFault::kCrash:
        return processes_.Crash(fault.process, fault.length);
      case SimFault::kStall:
        for (SimEnv* env : processes_.EnvsOf(fault.process)) env->Stall(fault.length);
        return;
      case SimFault::kJump:
        for (SimEnv* env : processes_.EnvsOf(fault.process)) env->JumpAhead(fault.length);
        return;
      case SimFault::kMute:
        for (NodeId from : processes_.NodesOf(fault.process)) {
          for (NodeId to : processes_.NodesOf(fault.other)) network_.CutOneWay(from, to);
        }
        break;
      case SimFault::kSlowLink:
        for (NodeId a : processes_.NodesOf(fault.process)) {
          for (NodeId b : processes_.NodesOf(fault.other)) {
            network_.SetSlowLink(a, b, 50);
            world_.Schedule(fault.length, [this, a, b] { network_.SetSlowLink(a, b, 1); });
          }
        }
        return;
      case SimFault::kIsolate:
        for (NodeId node : processes_.NodesOf(fault.process)) network_.Isolate(node);
        break;
      default:
        for (NodeId node : processes_.NodesOf(fault.process)) {
          network_.SetSlow(node, 50);
          world_.Schedule(fault.length, [this, node] { network_.SetSlow(node, 1); });
        }
        return;
    }
    world_.Schedule(fault.length, [this] { network_.Heal(); });
  }

  void HitDisk(const SimFault& fault) {
    SimFileSystem& disk = processes_.disk();
    SimFileSystem::Faults faults;
    switch (fault.kind) {
      case SimFault::kPowerLoss:
        power_back_ = fault.length;
        return processes_.scheduler_disk().HaltAfter(fault.count);
      case SimFault::kDiskLost:
        disk.HaltAfter(fault.count);
        world_.Schedule(fault.length, [this] { processes_.disk().Crash(); });
        return;
      case SimFault::kDiskLies:
        faults.lost_sync = 1;
        break;
      case SimFault::kDiskFull:
        faults.capacity_bytes = disk.used_bytes() + fault.count;
        break;
      case SimFault::kStateFull:
      case SimFault::kStateErrors:
        return HitState(fault);
      default:
        faults.write_error = 0.25;
        faults.read_error = 0.25;
    }
    disk.SetFaults(faults);
    world_.Schedule(fault.length, [this, lies = fault.kind == SimFault::kDiskLies] {
      processes_.disk().SetFaults({});
      if (lies) processes_.disk().Crash();
    });
  }

  // What it reads is never hit: a scheduler that cannot read its state does not begin at all.
  void HitState(const SimFault& fault) {
    SimFileSystem& disk = processes_.scheduler_disk();
    SimFileSystem::Faults faults;
    if (fault.kind == SimFault::kStateFull) {
      faults.capacity_bytes = disk.used_bytes() + fault.count;
    } else {
      faults.write_error = 0.5;
    }
    disk.SetFaults(faults);
    world_.Schedule(fault.length, [this] { processes_.scheduler_disk().SetFaults({}); });
  }

  void Ask(const SimFault& fault) {
    switch (fault.kind) {
      case SimFault::kJoinServer:
        processes_.AddServer(/*spare=*/true);
        return;
      case SimFault::kJoinWorker:
        processes_.AddWorker(/*spare=*/true);
        return;
      case SimFault::kCheckpoint:
        if (processes_.scheduler() != nullptr) processes_.scheduler()->RequestCheckpoint();
        return;
      default:
        break;
    }
    pb::Control control;
    control.set_servers(static_cast<uint32_t>(fault.count));
    Frame frame;
    frame.header.set_kind(pb::CONTROL);
    frame.header.set_body(control.SerializeAsString());
    tools_.push_back(std::make_unique<Tool>(&world_, &network_, tools_.size()));
    // Refused, or forgotten by a scheduler that dies: a user would see that and ask again.
    tools_.back()->rpc.Call(kSchedulerNode, std::move(frame),
                            {.deadline = absl::Minutes(2), .what = "resize"},
                            [](const absl::StatusOr<Frame>&) {});
  }

  SimOutcome Outcome(bool ended) {
    SimOutcome outcome;
    outcome.ended = ended;
    outcome.scheduler =
        processes_.scheduler_end().value_or(absl::DeadlineExceededError("still running"));
    outcome.nodes = processes_.Ends();
    outcome.summary = keeper_.summary();
    if (outcome.scheduler.ok() || absl::IsDataLoss(outcome.scheduler)) {
      checker_.Finish(outcome.summary.pushes_acknowledged, outcome.summary.pushes_applied,
                      outcome.summary.pushes_dropped, ClosedWithout(outcome.summary));
      if (samples_.has_value()) samples_->Finish(checker_, outcome.summary);
    }
    outcome.violations = checker_.violations();
    outcome.reads = checker_.reads();
    outcome.applies = checker_.applies();
    outcome.updates_without_tick = checker_.updates_without_tick();
    outcome.events = world_.events();
    outcome.network = network_.counters();
    outcome.virtual_time = world_.Now();
    outcome.restarts = processes_.restarts();
    outcome.promises = checker_.promises();
    outcome.generation = checker_.generation();
    if (samples_.has_value()) outcome.samples_covered = samples_->covered();
    outcome.happened = happened_;
    return outcome;
  }

  // With backup workers who comes late, or anew, begins where the others are.
  bool ClosedWithout(const RunSummary& summary) const {
    return summary.workers_replaced > 0 ||
           (run_.experiment.consistency().backup_workers() > 0 && !run_.failures.empty());
  }

  // A command line tool.
  struct Tool {
    Tool(SimWorld* world, SimNetwork* network, size_t index)
        : env(world, "tool"),
          transport(network->CreateTransport(&env, NodeId{50000 + index}, "")),
          rpc(&env, transport.get()) {
      transport->Connect(kSchedulerNode, kSchedulerEndpoint).IgnoreError();
    }
    SimEnv env;
    std::unique_ptr<Transport> transport;
    Rpc rpc;
  };

  const SimRun run_;
  SimWorld world_;
  SimNetwork network_;
  SummaryKeeper keeper_;
  HistoryChecker checker_;
  std::optional<SampleChecker> samples_;  // none: nobody trains
  SimProcesses processes_;
  std::vector<std::unique_ptr<Tool>> tools_;
  std::vector<SimFault> pending_;             // that wait for updates
  std::optional<absl::Duration> power_back_;  // of the scheduler's machine, which is to lose it
  size_t happened_ = 0;
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
