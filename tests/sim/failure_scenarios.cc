#include "tests/sim/failure_scenarios.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/checkpoint/checkpoint_files.h"
#include "ps/config/experiment.h"

namespace parley {
namespace {

constexpr char kRoot[] = "/checkpoints";

bool Stateful(const std::string& codec) {
  return codec == "int8" || codec == "one_bit" || codec == "top_k";
}

bool KeepsResiduals(const pb::Experiment& experiment) {
  return Stateful(experiment.compression().push()) ||
         Stateful(experiment.model().layer(0).embedding().compression().push());
}

bool Evicts(const pb::Experiment& experiment) {
  const pb::Eviction& eviction = experiment.model().layer(0).embedding().eviction();
  return eviction.min_frequency() > 0 || eviction.max_age() > 0 || eviction.max_rows() > 0;
}

void AddCopies(Draw& draw, SimRun* run);

// The draws that all profiles are made of.
class Failures {
 public:
  Failures(Draw& draw, SimRun* run) : draw_(draw), run_(run) {
    const pb::Experiment& e = run->experiment;
    const bool clicks = e.data().has_synthetic_clicks();
    const uint64_t samples =
        clicks ? e.data().synthetic_clicks().train_samples() : e.data().synthetic().train_samples();
    const uint64_t batch = std::max<uint64_t>(1, e.training().global_batch());
    updates_ = (samples / batch + 1) * e.training().epochs() * 3;
    if (e.consistency().mode() != pb::Consistency::BSP) updates_ *= e.cluster().workers();
    if (run->updates > 0) updates_ = uint64_t{run->updates} * e.cluster().workers();
  }

  int Server() { return static_cast<int>(draw_.Below(cluster().servers())); }
  int Worker() { return static_cast<int>(cluster().servers() + draw_.Below(cluster().workers())); }
  int Anybody() {
    const uint64_t process = draw_.Below(cluster().servers() + cluster().workers() + 1);
    return process == cluster().servers() + cluster().workers() ? kSchedulerProcess
                                                                : static_cast<int>(process);
  }
  absl::Duration Seconds(double most) { return absl::Milliseconds(1 + draw_.Below(most * 1000)); }

  // At any event: of the training as a rule, now and then of the time before it.
  void Add(SimFault fault) {
    if (draw_.Chance(0.9)) {
      fault.updates = 1 + draw_.Below(updates_);
      fault.events = draw_.Below(draw_.Chance(0.5) ? 20 : 300);
    } else {
      fault.at = Seconds(1);
    }
    run_->failures.push_back(fault);
  }
  void AddInTraining(SimFault fault) {
    fault.updates = 1 + draw_.Below(updates_);
    fault.events = draw_.Below(40);
    run_->failures.push_back(fault);
  }
  void Crash(int process) {
    Add({.kind = SimFault::kCrash,
         .process = process,
         .length = Seconds(draw_.Chance(0.5) ? 1 : 9)});
  }
  void SchedulerDies() {
    if (draw_.Chance(0.5)) return Crash(kSchedulerProcess);
    Add({.kind = SimFault::kPowerLoss, .length = Seconds(5), .count = draw_.Below(12)});
  }
  void Disk() {
    const SimFault::Kind kinds[] = {SimFault::kDiskLost, SimFault::kDiskLies, SimFault::kDiskFull,
                                    SimFault::kDiskErrors};
    SimFault fault{.kind = kinds[draw_.Below(4)], .length = Seconds(3)};
    fault.count = fault.kind == SimFault::kDiskFull ? draw_.Below(40000) : draw_.Below(30);
    Add(fault);
  }
  void Hindrance() {
    SimFault fault;
    fault.kind = static_cast<SimFault::Kind>(SimFault::kStall + draw_.Below(5));
    fault.process = Anybody();
    fault.other = Anybody();
    fault.length = Seconds(draw_.Chance(0.6) ? 1 : 8);
    Add(fault);
  }
  // One that everybody but the scheduler hears, or that sleeps, for longer than it may be silent.
  // Some workers do not hear the scheduler meanwhile, so they go on with a server that is replaced;
  // and all take their time, or they would be done before.
  void ReplacedWhileAlive() {
    if (cluster().replicas() == 0 && draw_.Chance(0.6)) AddCopies(draw_, run_);
    run_->experiment.mutable_cluster()->set_node_timeout_ms(3000);
    run_->compute_slowness.assign(cluster().servers() * cluster().shards_per_server(), 1);
    const double slow = 200 + draw_.Below(800);
    run_->compute_slowness.resize(run_->compute_slowness.size() + cluster().workers(), slow);
    // A logical worker that dies again and again at one long step is given up, and with it the job.
    const bool server = run_->failures.size() > 1;
    SimFault fault{.kind = draw_.Chance(0.7) ? SimFault::kMute : SimFault::kStall,
                   .updates = 1 + draw_.Below(updates_ / 4 + 1),
                   .events = draw_.Below(40),
                   .process = server || draw_.Chance(0.8) ? Server() : Worker(),
                   .other = kSchedulerProcess,
                   .length = absl::Seconds(3) + Seconds(4)};
    run_->failures.push_back(fault);
    fault.kind = SimFault::kMute;
    fault.process = kSchedulerProcess;
    for (uint32_t worker = 0; worker < cluster().workers(); ++worker) {
      fault.other = static_cast<int>(cluster().servers() + worker);
      if (draw_.Chance(0.7)) run_->failures.push_back(fault);
    }
  }
  // There are others; but a resize lets servers go, and may leave one alone (seed 28488).
  void Leave() {
    uint64_t stay = cluster().servers() + run_->spare_servers;
    for (const SimFault& fault : run_->failures) {
      if (fault.kind == SimFault::kResize) stay = std::min(stay, fault.count);
    }
    const bool servers = stay > 1;
    const bool workers = cluster().workers() + run_->spare_workers > 1;
    if (!servers && !workers) return;
    AddInTraining({.kind = SimFault::kCrash,
                   .process = servers && (!workers || draw_.Chance(0.5)) ? Server() : Worker(),
                   .length = absl::InfiniteDuration()});
  }
  void SlowLink() {
    AddInTraining({.kind = SimFault::kSlowLink,
                   .process = Anybody(),
                   .other = Anybody(),
                   .length = Seconds(8)});
  }
  void StateDisk() {
    AddInTraining({.kind = draw_.Chance(0.5) ? SimFault::kStateFull : SimFault::kStateErrors,
                   .length = Seconds(4),
                   .count = draw_.Below(4000)});
  }
  void Move() {
    switch (draw_.Below(4)) {
      case 0:
        return Add({.kind = SimFault::kJoinServer});
      case 1:
        return Add({.kind = SimFault::kJoinWorker});
      case 2:
        return Add({.kind = SimFault::kCheckpoint});
      default:
        return Add({.kind = SimFault::kResize,
                    .count = 1 + draw_.Below(cluster().servers() + run_->spare_servers)});
    }
  }

 private:
  const pb::Cluster& cluster() const { return run_->experiment.cluster(); }

  Draw& draw_;
  SimRun* const run_;
  uint64_t updates_;  // about so many in all
};

void AddCheckpoints(Draw& draw, SimRun* run) {
  pb::Checkpoints& checkpoints = *run->experiment.mutable_checkpoints();
  checkpoints.set_every_steps(1 + draw.Below(4));
  checkpoints.set_keep(1 + draw.Below(3));
  checkpoints.set_full_every(1 + draw.Below(3));
  checkpoints.set_at_end(draw.Chance(0.3));
  run->checkpoint_root = kRoot;
}

void AddCopies(Draw& draw, SimRun* run) {
  // Totals of groups that are a worker's alone are not copied.
  if (run->experiment.optimizer().clip_norm() > 0 &&
      run->experiment.consistency().mode() != pb::Consistency::BSP) {
    return;
  }
  // Nor is what a passed-over worker holds of weights that are sent as changes: refused, as above.
  const std::string& pull = run->experiment.compression().pull();
  if (run->experiment.consistency().backup_workers() > 0 &&
      (pull == "int8" || pull == "one_bit" || pull == "top_k")) {
    return;
  }
  pb::Cluster& cluster = *run->experiment.mutable_cluster();
  cluster.set_servers(std::max(2u, cluster.servers()));
  cluster.set_replicas(1 + draw.Below(cluster.servers() - 1));
  cluster.set_replica_check_steps(draw.Chance(0.7) ? 1 + draw.Below(4) : 0);
}

void AbortIfImpossible(const SimRun& run) {
  if (absl::Status status = ValidateExperiment(run.experiment); !status.ok()) {
    std::fprintf(stderr, "impossible experiment: %s\n", status.ToString().c_str());
    std::abort();
  }
}

enum Profile { kServers, kWorkers, kScheduler, kRollBack, kDisk, kMoves, kHindrances, kAll };

}  // namespace

void AddFailures(Draw& draw, SimRun* run) {
  pb::Cluster& cluster = *run->experiment.mutable_cluster();
  // What is slow for good makes nodes die of it again and again.
  for (double& slow : run->slowness) slow = std::min(slow, 4.0);
  run->faults.max_delay = std::min(run->faults.max_delay, absl::Milliseconds(30));
  run->faults.loss = std::min(run->faults.loss, 0.1);
  // Workers that send updates without a step cannot be replaced: none is to be taken for dead.
  if (run->updates > 0) {
    run->faults = {.duplicate = run->faults.duplicate};
    run->cuts = 0;
    run->slowness.clear();
  }
  cluster.set_node_timeout_ms(draw.Chance(0.5) ? 3000 : 8000);
  cluster.set_scheduler_timeout_ms(120000);
  cluster.set_max_restarts(40);
  const Profile profile = run->updates > 0 ? (draw.Chance(0.5) ? kServers : kScheduler)
                                           : static_cast<Profile>(draw.Below(8));
  if (profile == kServers || (profile != kRollBack && profile != kDisk && draw.Chance(0.4))) {
    AddCopies(draw, run);
  }
  if (run->updates == 0 && (profile == kDisk || draw.Chance(0.35))) AddCheckpoints(draw, run);
  if (draw.Chance(0.3)) run->spare_servers = 1;
  if (run->updates == 0 && draw.Chance(0.3)) run->spare_workers = 1;
  if (draw.Chance(0.15)) cluster.set_worker_loss(pb::Cluster::SKIP);
  Failures failures(draw, run);
  const uint64_t times = 1 + draw.Below(3);
  for (uint64_t i = 0; i < times; ++i) {
    switch (profile) {
      case kServers:
        // What updates without a step have done is not done again: no roll-back.
        if (run->updates > 0 && (i > 0 || cluster.replicas() == 0)) break;
        failures.Crash(failures.Server());
        break;
      case kWorkers:
        failures.Crash(failures.Worker());
        break;
      case kScheduler:
        failures.SchedulerDies();
        break;
      case kRollBack:
        failures.Crash(failures.Server());
        break;
      case kDisk:
        if (i == 0) failures.Crash(failures.Server());
        failures.Disk();
        break;
      case kMoves:
        failures.Move();
        failures.Move();
        break;
      case kHindrances:
        failures.Hindrance();
        break;
      case kAll:
        failures.Crash(failures.Anybody());
        if (draw.Chance(0.5)) failures.Hindrance();
        if (draw.Chance(0.5)) failures.Move();
        if (draw.Chance(0.3)) failures.SchedulerDies();
        break;
    }
  }
  AbortIfImpossible(*run);
}

void AddRareFailures(SimRun* run) {
  // Workers that send updates without a step cannot be replaced.
  if (run->failures.empty() || run->updates > 0) return;
  Draw draw(run->seed ^ 0x9e3779b97f4a7c15);
  if (!draw.Chance(0.5)) return;
  Failures failures(draw, run);
  switch (draw.Below(5)) {
    case 0:
    case 1:
      failures.ReplacedWhileAlive();
      break;
    case 2:
      failures.Leave();
      break;
    case 3:
      failures.SlowLink();
      break;
    default:
      failures.StateDisk();
  }
  AbortIfImpossible(*run);
}

std::string DescribeFailures(const SimRun& run) {
  if (run.failures.empty()) return "";
  const pb::Cluster& cluster = run.experiment.cluster();
  std::string text = absl::StrFormat("; %d copies, %s", cluster.replicas(),
                                     pb::Cluster::WorkerLoss_Name(cluster.worker_loss()));
  if (!run.checkpoint_root.empty()) {
    absl::StrAppend(&text, ", checkpoint every ", run.experiment.checkpoints().every_steps());
  }
  if (run.spare_servers > 0) absl::StrAppend(&text, ", a spare server");
  if (run.spare_workers > 0) absl::StrAppend(&text, ", a spare worker");
  for (const SimFault& fault : run.failures) absl::StrAppend(&text, "; ", Describe(fault));
  return text;
}

bool MustBeExact(const SimRun& run, const SimOutcome& outcome) {
  const pb::Consistency& consistency = run.experiment.consistency();
  if (consistency.mode() != pb::Consistency::BSP || consistency.backup_workers() > 0) return false;
  const bool replaced = outcome.summary.workers_replaced > 0;
  if (replaced && run.experiment.cluster().worker_loss() == pb::Cluster::SKIP) return false;
  if (replaced && Evicts(run.experiment)) return false;
  return !KeepsResiduals(run.experiment) || (!replaced && outcome.summary.restarts == 0);
}

std::vector<std::string> CheckCheckpoints(const SimRun& run, const SimOutcome& outcome,
                                          bool is_exact) {
  std::vector<std::string> wrong;
  const absl::StatusOr<FoundCheckpoint> found =
      FindCheckpoint(run.disk, run.checkpoint_root, [](const std::string&) {});
  if (!found.ok()) {
    // Whatever else fails, what was written before a disk that syncs is there.
    const bool lies =
        std::any_of(run.failures.begin(), run.failures.end(),
                    [](const SimFault& fault) { return fault.kind == SimFault::kDiskLies; });
    if (outcome.summary.checkpoints > 0 && !lies) {
      wrong.push_back(absl::StrFormat("%d checkpoints were written, and none is there: %s",
                                      outcome.summary.checkpoints, found.status().ToString()));
    }
    return wrong;
  }
  SimRun resumed;
  resumed.seed = run.seed + 3;
  resumed.experiment = run.experiment;
  resumed.experiment.clear_checkpoints();
  resumed.experiment.mutable_cluster()->set_replicas(0);
  resumed.experiment.mutable_cluster()->set_servers(run.experiment.cluster().servers() % 3 + 1);
  ResolveExperiment(&resumed.experiment);
  resumed.disk = run.disk;
  resumed.restore = found->directory;
  resumed.verbose = run.verbose;
  const SimOutcome again = RunCluster(resumed);
  const uint64_t step = found->manifest.step();
  if (!again.ended || !again.scheduler.ok()) {
    wrong.push_back(absl::StrFormat("resumed from step %d it ended with: %s", step,
                                    again.scheduler.ToString()));
    return wrong;
  }
  for (const std::string& line : again.violations) {
    wrong.push_back(absl::StrFormat("resumed from step %d: %s", step, line));
  }
  if (!is_exact || KeepsResiduals(run.experiment)) return wrong;
  if (again.summary.weights_sha256 != outcome.summary.weights_sha256) {
    wrong.push_back(absl::StrFormat("resumed from step %d the weights differ: %s, expected is %s",
                                    step, again.summary.weights_sha256,
                                    outcome.summary.weights_sha256));
  }
  for (size_t i = 0; i < std::min(again.summary.tables.size(), outcome.summary.tables.size());
       ++i) {
    if (again.summary.tables[i].digest == outcome.summary.tables[i].digest) continue;
    wrong.push_back(absl::StrFormat("resumed from step %d the rows differ: %s, expected is %s",
                                    step, again.summary.tables[i].digest,
                                    outcome.summary.tables[i].digest));
  }
  return wrong;
}

}  // namespace parley
