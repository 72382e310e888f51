#include "tests/sim/scenario.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/base/philox.h"

namespace parley {
namespace {

// Draws for one scenario; apart from the world's own randomness, so that a change in one does not
// move the other.
class Draw {
 public:
  explicit Draw(uint64_t seed) : seed_(seed) {}
  uint64_t Below(uint64_t n) { return Philox(seed_, 0x5ce7a210, index_++)[0] % n; }
  double Unit() { return ToUnitFloat(Philox(seed_, 0x5ce7a210, index_++)[0]); }
  bool Chance(double p) { return Unit() < p; }

 private:
  const uint64_t seed_;
  uint64_t index_ = 0;
};

const char* const kOptimizers[] = {
    "sgd {} lr: 0.1",
    "sgd { momentum: 0.9 } lr: 0.05",
    "sgd { momentum: 0.9 nesterov: true } lr: 0.05",
    "adagrad {} lr: 0.05",
    "adadelta {} lr: 0.5",
    "rmsprop {} lr: 0.001",
    "adam {} lr: 0.001",
    "adamw {} lr: 0.001 weight_decay: 0.01",
};

std::string RandomConsistency(Draw& draw, uint32_t workers) {
  switch (draw.Below(5)) {
    case 0:
      return absl::StrCat("mode: SSP staleness: ", draw.Below(5));
    case 1:
      return "mode: ASP";
    case 2:
      return workers > 1 ? absl::StrCat("mode: BSP backup_workers: ", 1 + draw.Below(workers - 1))
                         : "mode: BSP";
    default:
      return "mode: BSP";
  }
}

pb::Experiment RandomExperiment(Draw& draw) {
  const uint32_t workers = 1 + draw.Below(4);
  std::string text = absl::StrFormat(
      "seed: %d cluster { servers: %d shards_per_server: %d workers: %d max_request_kib: %d } ",
      1 + draw.Below(1000), 1 + draw.Below(3), 1 + draw.Below(2), workers, 4 << draw.Below(3));
  absl::StrAppend(&text, "training { epochs: ", 1 + draw.Below(2),
                  " global_batch: ", 8 + draw.Below(24),
                  " evaluate: ", draw.Chance(0.5) ? "true" : "false", " } ");
  absl::StrAppend(&text, "data { synthetic { train_samples: ", 40 + draw.Below(80),
                  " } sharding: ", draw.Chance(0.25) ? "BY_WORKER" : "GLOBAL_BATCH", " } ");
  absl::StrAppend(&text, "consistency { ", RandomConsistency(draw, workers), " } ");
  std::string optimizer = kOptimizers[draw.Below(std::size(kOptimizers))];
  if (draw.Chance(0.3)) absl::StrAppend(&optimizer, " clip_norm: 0.5");
  if (draw.Chance(0.2)) absl::StrAppend(&optimizer, " clip_value: 0.1");
  if (draw.Chance(0.3))
    absl::StrAppend(&optimizer, " schedule { cosine { steps: 20 } warmup_steps: 3 }");
  return TinyExperiment(text, optimizer);
}

}  // namespace

SimRun RandomScenario(uint64_t seed) {
  Draw draw(seed);
  SimRun run;
  run.seed = seed;
  run.experiment = RandomExperiment(draw);
  if (draw.Chance(0.9)) {
    run.faults.loss = draw.Chance(0.7) ? draw.Unit() * 0.25 : 0;
    run.faults.duplicate = draw.Chance(0.7) ? draw.Unit() * 0.25 : 0;
    // Up to a delay at which frames of different steps overtake each other.
    run.faults.max_delay =
        absl::Milliseconds(draw.Chance(0.3) ? 1 + draw.Below(400) : 1 + draw.Below(10));
    run.cuts = draw.Chance(0.3) ? 1 + draw.Below(4) : 0;
  }
  run.faults_until = absl::Seconds(1 + draw.Below(60));
  const pb::Cluster& cluster = run.experiment.cluster();
  const uint32_t nodes = cluster.servers() * cluster.shards_per_server() + cluster.workers();
  for (uint32_t i = 0; i < nodes; ++i) {
    run.slowness.push_back(draw.Chance(0.15) ? 1 + draw.Unit() * 50 : 1);
  }
  return run;
}

std::string Describe(const SimRun& run) {
  const pb::Experiment& e = run.experiment;
  std::string text = absl::AsciiStrToLower(pb::Consistency::Mode_Name(e.consistency().mode()));
  if (e.consistency().mode() == pb::Consistency::SSP) {
    absl::StrAppend(&text, "(", e.consistency().staleness(), ")");
  }
  if (e.consistency().backup_workers() > 0) {
    absl::StrAppend(&text, " with ", e.consistency().backup_workers(), " backup");
  }
  const char* const rules[] = {"none", "sgd", "adagrad", "adadelta", "rmsprop", "adam", "adamw"};
  return absl::StrFormat(
      "%s, %d x %d shards, %d workers, %s%s, loss %.0f%%, duplicates %.0f%%, delay to %s, %d cuts",
      text, e.cluster().servers(), e.cluster().shards_per_server(), e.cluster().workers(),
      rules[e.optimizer().rule_case()], e.optimizer().clip_norm() > 0 ? " clipped by norm" : "",
      run.faults.loss * 100, run.faults.duplicate * 100, absl::FormatDuration(run.faults.max_delay),
      run.cuts);
}

std::vector<std::string> CheckSeed(uint64_t seed, bool verbose) {
  SimRun run = RandomScenario(seed);
  run.verbose = verbose;
  const SimOutcome outcome = RunCluster(run);
  std::vector<std::string> wrong = outcome.violations;
  if (!outcome.ended) wrong.push_back("it did not come to its end");
  if (!outcome.scheduler.ok()) {
    wrong.push_back(absl::StrCat("the scheduler ended with: ", outcome.scheduler.ToString()));
  }
  for (const absl::Status& status : outcome.nodes) {
    if (!status.ok()) wrong.push_back(absl::StrCat("a node ended with: ", status.ToString()));
  }
  // A check that saw nothing is no check.
  if (wrong.empty() && (outcome.reads == 0 || outcome.applies == 0)) {
    wrong.push_back("no read or no update was seen");
  }
  const pb::Consistency& consistency = run.experiment.consistency();
  if (wrong.empty() && consistency.mode() == pb::Consistency::BSP &&
      consistency.backup_workers() == 0) {
    SimRun clean;
    clean.seed = seed + 1;
    clean.experiment = run.experiment;
    clean.experiment.mutable_cluster()->set_servers(run.experiment.cluster().servers() % 3 + 1);
    const SimOutcome reference = RunCluster(clean);
    if (reference.summary.weights_sha256 != outcome.summary.weights_sha256 ||
        reference.summary.weights_sha256.empty()) {
      wrong.push_back(absl::StrFormat("weights %s differ from the clean run's %s",
                                      outcome.summary.weights_sha256,
                                      reference.summary.weights_sha256));
    }
  }
  return wrong;
}

}  // namespace parley
