#include "tests/sim/scenario.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/config/experiment.h"
#include "ps/server/key_cache.h"
#include "tests/sim/draw.h"
#include "tests/sim/failure_scenarios.h"
#include "tools/local/local_run.h"

namespace parley {
namespace {

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

// Of the rows, in the place of the experiment's.
const char* const kRowOptimizers[] = {
    "sgd {} lr: 0.1",   "sgd { momentum: 0.9 } lr: 0.05",      "adagrad {} lr: 0.05",
    "adam {} lr: 0.01", "ftrl { l1: 0.001 l2: 0.01 } lr: 0.1", "row_adagrad {} lr: 0.05",
};

const char* const kStatelessCodecs[] = {"none", "fp16", "bf16"};
const char* const kStatefulCodecs[] = {"int8", "one_bit", "top_k"};

// `stateful`: codecs that keep a residual may be drawn, too.
std::string RandomCodec(Draw& draw, bool stateful) {
  return stateful && draw.Chance(0.6) ? kStatefulCodecs[draw.Below(std::size(kStatefulCodecs))]
                                      : kStatelessCodecs[draw.Below(std::size(kStatelessCodecs))];
}

std::string RandomCompression(Draw& draw, bool stateful_push, bool stateful_pull) {
  std::string text = absl::StrCat("compression { push: '", RandomCodec(draw, stateful_push),
                                  "' pull: '", RandomCodec(draw, stateful_pull), "'");
  // Few values share a scale here, so that partitions have many scales.
  absl::StrAppend(&text, " top_k: ", draw.Chance(0.5) ? "0.05" : "0.3",
                  " block: ", 16 << draw.Below(5));
  if (draw.Chance(0.2)) absl::StrAppend(&text, " zstd_level: 1");
  return absl::StrCat(text, " } ");
}

// Data of keys and a model that begins with an embedding.
std::string RandomEmbedding(Draw& draw, const std::string& sharding, bool stateful_push) {
  std::string text = absl::StrCat(
      "data { synthetic_clicks { train_samples: ", 40 + draw.Below(80),
      " test_samples: 20 fields: ", 1 + draw.Below(5), " keys_per_field: ", 3 + draw.Below(60),
      " zipf: ", draw.Chance(0.3) ? "0" : "1.05", " } ", sharding, " } ");
  absl::StrAppend(&text, "model { layer { embedding { dim: ", 1 + draw.Below(9),
                  " bound: 0.3 pooling: ", draw.Chance(0.4) ? "SUM" : "CONCAT",
                  " partitions: ", 1 << draw.Below(4),
                  " row_type: ", pb::RowType_Name(static_cast<pb::RowType>(draw.Below(3))), " ");
  if (draw.Chance(0.7)) {
    absl::StrAppend(&text, "optimizer { ", kRowOptimizers[draw.Below(std::size(kRowOptimizers))],
                    " } ");
  }
  if (draw.Chance(0.3)) {
    absl::StrAppend(&text, "eviction { min_frequency: ", draw.Below(3),
                    " max_age: ", draw.Chance(0.5) ? 0 : 2 + draw.Below(5),
                    " max_rows: ", draw.Chance(0.5) ? 0 : 5 + draw.Below(20), " } ");
  }
  if (draw.Chance(0.4)) absl::StrAppend(&text, RandomCompression(draw, stateful_push, false));
  absl::StrAppend(&text, "} } layer { linear { out: 40 } } layer { relu {} } ",
                  draw.Chance(0.3) ? "layer { dropout { p: 0.1 } } " : "",
                  "layer { linear { out: 2 } } layer { log_softmax {} } } ");
  return text;
}

pb::Experiment RandomExperiment(Draw& draw) {
  const uint32_t workers = 1 + draw.Below(4);
  std::string text = absl::StrFormat(
      "seed: %d cluster { servers: %d shards_per_server: %d workers: %d max_request_kib: %d "
      "push_pull: %s } ",
      1 + draw.Below(1000), 1 + draw.Below(3), 1 + draw.Below(2), workers, 4 << draw.Below(3),
      draw.Chance(0.6) ? "true" : "false");
  absl::StrAppend(&text, "training { epochs: ", 1 + draw.Below(2),
                  " global_batch: ", 8 + draw.Below(24),
                  " evaluate: ", draw.Chance(0.5) ? "true" : "false", " } ");
  const std::string sharding = draw.Chance(0.25) ? "sharding: BY_WORKER" : "";
  const std::string consistency = RandomConsistency(draw, workers);
  absl::StrAppend(&text, "consistency { ", consistency, " } ");
  // A push that is dropped would lose its residual; changes need readers that hold a version.
  const bool backup = consistency.find("backup") != consistency.npos;
  const bool bsp = consistency.find("mode: BSP") != consistency.npos;
  const bool embedding = draw.Chance(0.4);
  if (embedding) {
    absl::StrAppend(&text, RandomEmbedding(draw, sharding, !backup));
  } else {
    absl::StrAppend(&text, "data { synthetic { train_samples: ", 40 + draw.Below(80), " } ",
                    sharding, " } ");
  }
  if (draw.Chance(0.4)) absl::StrAppend(&text, RandomCompression(draw, !backup, bsp));
  std::string optimizer = kOptimizers[draw.Below(std::size(kOptimizers))];
  // Rows are not clipped by norm.
  if (!embedding && draw.Chance(0.3)) absl::StrAppend(&optimizer, " clip_norm: 0.5");
  if (draw.Chance(0.2)) absl::StrAppend(&optimizer, " clip_value: 0.1");
  if (draw.Chance(0.3))
    absl::StrAppend(&optimizer, " schedule { cosine { steps: 20 } warmup_steps: 3 }");
  return TinyExperiment(text, optimizer);
}

// ", embedding 5 x sum, one_bit pushes": what is there besides a plain dense table.
std::string DescribeTables(const pb::Experiment& e) {
  std::string text;
  auto codecs = [&text](const pb::Compression& compression) {
    if (compression.push() != "none") absl::StrAppend(&text, ", ", compression.push(), " pushes");
    if (compression.pull() != "none") absl::StrAppend(&text, ", ", compression.pull(), " pulls");
    if (compression.zstd_level() > 0) absl::StrAppend(&text, ", zstd");
  };
  codecs(e.compression());
  if (e.cluster().push_pull()) absl::StrAppend(&text, ", push-pull");
  if (!e.model().layer(0).has_embedding()) return text;
  const pb::Embedding& rows = e.model().layer(0).embedding();
  absl::StrAppend(&text, "; ", absl::AsciiStrToLower(pb::RowType_Name(rows.row_type())),
                  " rows of ", rows.dim(), " in ", rows.partitions(), " partitions");
  codecs(rows.compression());
  if (rows.has_eviction()) absl::StrAppend(&text, ", eviction");
  return text;
}

// What differs between the outcome of the run and that of another with the same tables.
void CompareTables(const RunSummary& found, const std::string& weights,
                   const std::vector<std::string>& digests, const std::string& whose,
                   std::vector<std::string>* wrong) {
  if (found.weights_sha256 != weights || weights.empty()) {
    wrong->push_back(absl::StrFormat("the weights differ from the %s: %s, expected is %s", whose,
                                     found.weights_sha256, weights));
  }
  for (size_t i = 0; i < std::max(found.tables.size(), digests.size()); ++i) {
    const std::string here = i < found.tables.size() ? found.tables[i].digest : "none";
    const std::string there = i < digests.size() ? digests[i] : "none";
    if (here == there) continue;
    wrong->push_back(
        absl::StrFormat("the rows differ from the %s: %s, expected is %s", whose, here, there));
  }
}

// Against a run without faults on another number of servers, and against the naive run without any.
void CompareWithOthers(const SimRun& run, const RunSummary& found,
                       std::vector<std::string>* wrong) {
  SimRun clean;
  clean.seed = run.seed + 1;
  clean.experiment = run.experiment;
  clean.experiment.mutable_cluster()->set_servers(run.experiment.cluster().servers() % 3 + 1);
  clean.experiment.mutable_cluster()->set_replicas(0);
  clean.experiment.clear_checkpoints();
  ResolveExperiment(&clean.experiment);
  clean.key_cache_bytes = KeyCache::kMaxBytes;
  const RunSummary reference = RunCluster(clean).summary;
  std::vector<std::string> digests;
  for (const TableSummary& table : reference.tables) digests.push_back(table.digest);
  CompareTables(found, reference.weights_sha256, digests, "clean run's", wrong);

  const absl::StatusOr<LocalResult> local = RunLocal(run.experiment);
  if (!local.ok()) {
    wrong->push_back(absl::StrCat("the local run ended with: ", local.status().ToString()));
    return;
  }
  digests.clear();
  if (const pb::ServerCounts::Rows& rows = local->embedding; rows.has_table()) {
    digests.push_back(absl::StrFormat("%016x%016x", rows.digest_high(), rows.digest_low()));
  }
  CompareTables(found, local->weights_sha256, digests, "local run's", wrong);
}

// The same cluster and faults, but workers that send updates without ticks in place of training.
void MakeUpdates(Draw& draw, SimRun* run) {
  const pb::Cluster cluster = run->experiment.cluster();
  run->updates = 20 + draw.Below(400);
  run->experiment = TinyExperiment("consistency { mode: ASP }");
  *run->experiment.mutable_cluster() = cluster;
}

}  // namespace

SimRun RandomScenario(uint64_t seed, bool rare) {
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
  // Some servers forget lists of keys all the time.
  if (draw.Chance(0.3)) run.key_cache_bytes = 400 + draw.Below(2000);
  for (uint32_t i = 0; i < nodes; ++i) {
    run.slowness.push_back(draw.Chance(0.15) ? 1 + draw.Unit() * 50 : 1);
  }
  if (draw.Chance(0.12)) MakeUpdates(draw, &run);
  if (draw.Chance(0.5)) AddFailures(draw, &run);
  if (rare) AddRareFailures(&run);
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
  if (run.updates > 0) absl::StrAppend(&text, ", ", run.updates, " updates a worker");
  const char* const rules[] = {"none", "sgd", "adagrad", "adadelta", "rmsprop", "adam", "adamw"};
  return absl::StrFormat(
             "%s, %d x %d shards, %d workers, %s%s, loss %.0f%%, duplicates %.0f%%, delay to %s, "
             "%d cuts",
             text, e.cluster().servers(), e.cluster().shards_per_server(), e.cluster().workers(),
             rules[e.optimizer().rule_case()],
             absl::StrCat(e.optimizer().clip_norm() > 0 ? " clipped by norm" : "",
                          DescribeTables(e)),
             run.faults.loss * 100, run.faults.duplicate * 100,
             absl::FormatDuration(run.faults.max_delay), run.cuts) +
         DescribeFailures(run);
}

std::vector<std::string> CheckSeed(uint64_t seed, bool verbose, bool rare) {
  SimRun run = RandomScenario(seed, rare);
  run.verbose = verbose;
  SimFileSystem disk(seed);
  run.disk = &disk;
  if (verbose) std::printf("%s\n", Describe(run).c_str());
  const SimOutcome outcome = RunCluster(run);
  // Workers that send updates without a step cannot begin again: nothing was promised for them.
  if (run.updates > 0 && outcome.generation > 1) return {};
  std::vector<std::string> wrong = outcome.violations;
  if (!outcome.ended) wrong.push_back("it did not come to its end");
  if (!outcome.scheduler.ok()) {
    wrong.push_back(absl::StrCat("the scheduler ended with: ", outcome.scheduler.ToString()));
  }
  for (const absl::Status& status : outcome.nodes) {
    // Where things fail nodes end with errors, and others take their place.
    if (!status.ok() && run.failures.empty())
      wrong.push_back(absl::StrCat("a node ended with: ", status.ToString()));
  }
  // A check that saw nothing is no check.
  if (wrong.empty() && (outcome.reads == 0 || outcome.applies == 0)) {
    wrong.push_back("no read or no update was seen");
  }
  if (wrong.empty() && run.updates == 0 && outcome.generation == 1 &&
      outcome.samples_covered == 0) {
    wrong.push_back("no sample was seen");
  }
  if (wrong.empty() && run.updates > 0 && outcome.updates_without_tick == 0) {
    wrong.push_back("no update without a tick was seen");
  }
  const bool exact = MustBeExact(run, outcome);
  if (wrong.empty() && exact) CompareWithOthers(run, outcome.summary, &wrong);
  if (wrong.empty() && !run.checkpoint_root.empty()) {
    disk.SetFaults({});
    disk.Crash();
    wrong = CheckCheckpoints(run, outcome, exact);
  }
  return wrong;
}

}  // namespace parley
