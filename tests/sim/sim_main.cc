// parley-sim: runs seeds of the simulated cluster and says which fail.
//
//   parley-sim --seeds 500 [--first 1]     seeds 1 .. 500
//   parley-sim --seed 42 --verbose         one, with what every node says
//   parley-sim --seeds 2000 --expect-caught TEXT    for mutants: succeeds once a seed fails with
//   TEXT, fails if none does parley-sim --experiment FILE [--set a.b=c]    that experiment without
//   faults; prints "weights_sha256 <hash>" and the digests of sparse tables, which real processes
//   must arrive at, too
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "ps/config/experiment.h"
#include "tests/sim/cluster.h"
#include "tests/sim/scenario.h"

namespace {

struct Args {
  uint64_t first = 1, seeds = 500;
  bool verbose = false, bad = false;
  std::string expect_caught;  // what the checkers must say; empty: nothing is expected
  std::string experiment;     // a file; empty: seeds
  std::vector<std::string> overrides;
};

Args Parse(int argc, char** argv) {
  Args args;
  auto number = [&](int& i) -> uint64_t {
    if (i + 1 >= argc) return args.bad = true, 0;
    char* end = nullptr;
    const uint64_t value = std::strtoull(argv[++i], &end, 10);
    if (*end != 0) args.bad = true;
    return value;
  };
  for (int i = 1; i < argc; ++i) {
    if (!std::strcmp(argv[i], "--seeds")) {
      args.seeds = number(i);
    } else if (!std::strcmp(argv[i], "--first")) {
      args.first = number(i);
    } else if (!std::strcmp(argv[i], "--seed")) {
      args.first = number(i), args.seeds = 1;
    } else if (!std::strcmp(argv[i], "--verbose")) {
      args.verbose = true;
    } else if (!std::strcmp(argv[i], "--expect-caught")) {
      if (i + 1 >= argc) return args.bad = true, args;
      args.expect_caught = argv[++i];
    } else if (!std::strcmp(argv[i], "--experiment") && i + 1 < argc) {
      args.experiment = argv[++i];
    } else if (!std::strcmp(argv[i], "--set") && i + 1 < argc) {
      args.overrides.push_back(argv[++i]);
    } else {
      args.bad = true;
    }
  }
  return args;
}

// The run that all others are compared with: nothing is lost, late or slow.
int RunExperiment(const Args& args) {
  absl::StatusOr<parley::pb::Experiment> experiment =
      parley::LoadExperiment(args.experiment, args.overrides);
  if (!experiment.ok()) {
    std::fprintf(stderr, "parley-sim: %s\n", std::string(experiment.status().message()).c_str());
    return 2;
  }
  parley::SimRun run;
  run.experiment = *std::move(experiment);
  run.verbose = args.verbose;
  const parley::SimOutcome outcome = parley::RunCluster(run);
  for (const std::string& line : outcome.violations) std::printf("violation: %s\n", line.c_str());
  if (!outcome.ended || !outcome.scheduler.ok()) {
    std::fprintf(stderr, "parley-sim: the job failed: %s\n",
                 std::string(outcome.scheduler.message()).c_str());
    return 1;
  }
  std::printf("weights_sha256 %s\n", outcome.summary.weights_sha256.c_str());
  for (const parley::TableSummary& table : outcome.summary.tables) {
    std::printf("%s_rows %lu\n%s_digest %s\n", table.name.c_str(), table.rows, table.name.c_str(),
                table.digest.c_str());
  }
  return outcome.violations.empty() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const Args args = Parse(argc, argv);
  if (args.bad) {
    std::fprintf(
        stderr,
        "usage: parley-sim [--seeds N] [--first S] [--seed S] [--verbose] [--expect-caught TEXT]\n"
        "       parley-sim --experiment FILE [--set A.B=C] [--verbose]\n");
    return 2;
  }
  if (!args.experiment.empty()) return RunExperiment(args);
  uint64_t failed = 0;
  for (uint64_t seed = args.first; seed < args.first + args.seeds; ++seed) {
    const auto wrong = parley::CheckSeed(seed, args.verbose);
    if (wrong.empty()) continue;
    ++failed;
    std::printf("seed %lu fails: %s\n", seed,
                parley::Describe(parley::RandomScenario(seed)).c_str());
    for (const std::string& line : wrong) std::printf("  %s\n", line.c_str());
    std::printf("  replay: %s --seed %lu --verbose\n", argv[0], seed);
    if (!args.expect_caught.empty()) {
      for (const std::string& line : wrong) {
        if (line.find(args.expect_caught) == std::string::npos) continue;
        std::printf("caught at seed %lu\n", seed);
        return 0;
      }
      continue;  // it broke, but nobody saw why
    }
    if (failed >= 10) break;
  }
  if (!args.expect_caught.empty()) {
    std::printf("not caught in %lu seeds\n", args.seeds);
    return 1;
  }
  std::printf("%lu seeds, %lu failed\n", args.seeds, failed);
  return failed == 0 ? 0 : 1;
}
