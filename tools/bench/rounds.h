// Rounds: runs the cases of a load. A case keeps `lanes` operations under way; each that ends is
// followed by another until the round's time is over, and a round ends when its last one has. All
// workers begin a round together.
//
// Thread-safety: as Env, everything on the loop.
#ifndef PARLEY_TOOLS_BENCH_ROUNDS_H_
#define PARLEY_TOOLS_BENCH_ROUNDS_H_

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "benchmarks/limits/stopwatch.h"
#include "tools/bench/load.h"

namespace parley {

struct BenchCase {
  std::string name;  // "push"
  std::string unit;  // of units_per_op a second
  double units_per_op = 1;
  uint32_t lanes = 1;
  // Begins an operation; calls back when it is over, never from within.
  std::function<void(uint32_t lane, absl::AnyInvocable<void()> done)> begin;
  // Record the median and the 99th percentile of an operation's time instead of a rate.
  bool latency = false;
};

class Rounds {
 public:
  // `context` must outlive this.
  Rounds(const LoadContext* context, std::vector<BenchCase> cases)
      : context_(*context), cases_(std::move(cases)) {}

  // REQUIRES: at least one case. Once only.
  void Run(absl::AnyInvocable<void()> done);

 private:
  void BeginCase();
  void MeetForRound();
  void BeginRound();
  void Begin(uint32_t lane);
  void OnDone(uint32_t lane);
  void EndRound();
  void EndCase();

  const LoadContext& context_;
  const std::vector<BenchCase> cases_;
  absl::AnyInvocable<void()> done_;
  size_t case_ = 0;
  uint32_t round_ = 0;   // 0 is not counted
  uint32_t active_ = 0;  // lanes
  uint64_t ops_ = 0;     // of the round
  std::optional<Stopwatch> watch_;
  std::vector<double> begun_;  // by lane, on watch_; for latency
  std::vector<double> times_us_;
  std::vector<double> values_, p99_;
};

}  // namespace parley

#endif  // PARLEY_TOOLS_BENCH_ROUNDS_H_
