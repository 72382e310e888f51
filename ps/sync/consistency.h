// Consistency: when may a worker read. ("When is a gradient applied" is aggregator.h; the two are
// kept apart.)
//
// One object per partition. A worker's clock is the number of its ticks that are closed here:
// applied, or - with backup workers - passed over. A worker may read for tick t once the slowest
// live worker's clock is at least t - staleness: BSP is staleness 0, SSP(s) is s (Ho et al.,
// NIPS'13), ASP is infinity. Pure: no time, no I/O. Not thread-safe.
#ifndef PARLEY_PS_SYNC_CONSISTENCY_H_
#define PARLEY_PS_SYNC_CONSISTENCY_H_

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "proto/experiment.pb.h"

namespace parley {

class ConsistencyPolicy {
 public:
  static constexpr uint64_t kUnbounded = std::numeric_limits<uint64_t>::max();

  // All `workers` are live with clock 0.
  ConsistencyPolicy(uint32_t workers, uint64_t staleness);

  // The staleness that an experiment asks for.
  static uint64_t StalenessOf(const pb::Consistency& consistency);

  // Tick `tick` of `worker` is closed. Clocks never go back; a tick closed before is ignored.
  void OnTick(uint32_t worker, uint64_t tick);
  // From now on nobody waits for `worker`.
  void OnLeave(uint32_t worker);
  // A worker comes (back) with all ticks below `clock` behind it. Its own clock does not go back,
  // but min_clock() does if it is behind the others: they wait for it again.
  void OnJoin(uint32_t worker, uint64_t clock);

  // As saved elsewhere: by worker its clock, and whether it is live. REQUIRES: workers() of each.
  void Load(std::vector<uint64_t> clocks, std::vector<bool> live);

  bool MayRead(uint64_t tick) const {
    return tick <= min_clock_ || tick - min_clock_ <= staleness_ || live_ == 0;
  }

  // Ticks that every live worker has closed; the largest clock when none is live.
  uint64_t min_clock() const { return min_clock_; }
  uint64_t clock(uint32_t worker) const { return clocks_[worker]; }
  bool live(uint32_t worker) const { return is_live_[worker]; }
  uint32_t workers() const { return static_cast<uint32_t>(clocks_.size()); }

  // Whom a reader of `tick` waits for: "worker 1 (at tick 6)", of many the first four and how many
  // more; empty if it may read.
  std::string WaitsFor(uint64_t tick) const;

 private:
  void Recompute();

  const uint64_t staleness_;
  std::vector<uint64_t> clocks_;
  std::vector<bool> is_live_;
  uint32_t live_;
  uint64_t min_clock_ = 0;
  uint32_t at_min_;  // live workers whose clock is min_clock_; at 0 it has moved
};

}  // namespace parley

#endif  // PARLEY_PS_SYNC_CONSISTENCY_H_
