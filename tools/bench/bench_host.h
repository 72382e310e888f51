// BenchHost: runs the processes of `parley bench` one group after the other - limits, a cluster
// with its load, an experiment - and brings back what they measured.
//
// All of them work in a scratch directory of their own. It goes with this object, unless a group
// failed: its logs are what the error line points to. No process is left behind (supervisor.h). Not
// thread-safe; one per process.
//
// Errors: one line each. kCancelled: interrupted by a signal.
#ifndef PARLEY_TOOLS_BENCH_BENCH_HOST_H_
#define PARLEY_TOOLS_BENCH_BENCH_HOST_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "benchmarks/limits/series.h"
#include "scheduler/report/run_observer.h"
#include "tools/bench/bench_plan.h"
#include "tools/parley/supervisor.h"

namespace parley {

class BenchHost {
 public:
  // Programs are looked for in `bin`.
  static absl::StatusOr<std::unique_ptr<BenchHost>> Create(std::string bin);
  ~BenchHost();
  BenchHost(const BenchHost&) = delete;
  BenchHost& operator=(const BenchHost&) = delete;

  // parley-limits with these arguments.
  absl::StatusOr<SeriesFile> RunLimits(const std::vector<std::string>& args);

  // A scheduler, the plan's servers, and workers that drive its load. Values of several workers are
  // put together round by round, since they begin each together: rates add up, of times the mean is
  // taken. Notes: "path", how payloads travelled as the nodes' logs tell it.
  absl::StatusOr<SeriesFile> RunCluster(const BenchPlan& plan);

  // `parley run` of an experiment file; what its epochs took.
  absl::StatusOr<std::vector<EpochMetrics>> RunExperiment(
      const std::string& file, const std::vector<std::string>& overrides);

 private:
  BenchHost(std::string bin, std::string scratch)
      : bin_(std::move(bin)), scratch_(std::move(scratch)) {}

  std::string NextDirectory(const std::string& name);
  absl::Status Finish(Supervisor* supervisor, const std::string& directory);
  absl::Status StartCluster(Supervisor* supervisor, const BenchPlan& plan,
                            const std::string& directory);
  absl::StatusOr<SeriesFile> CollectWorkers(const BenchPlan& plan, const std::string& directory);

  const std::string bin_, scratch_;
  int groups_ = 0;
  bool keep_ = false;
};

// Puts together what several workers measured of the same load. kInternal if they measured
// different things.
absl::StatusOr<SeriesFile> CombineWorkers(const std::vector<SeriesFile>& workers);

}  // namespace parley

#endif  // PARLEY_TOOLS_BENCH_BENCH_HOST_H_
