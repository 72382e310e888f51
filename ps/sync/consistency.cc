#include "ps/sync/consistency.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace parley {

ConsistencyPolicy::ConsistencyPolicy(uint32_t workers, uint64_t staleness)
    : staleness_(staleness),
      clocks_(workers, 0),
      is_live_(workers, true),
      live_(workers),
      at_min_(workers) {}

uint64_t ConsistencyPolicy::StalenessOf(const pb::Consistency& consistency) {
  switch (consistency.mode()) {
    case pb::Consistency::BSP:
      return 0;
    case pb::Consistency::SSP:
      return consistency.staleness();
    case pb::Consistency::ASP:
      return kUnbounded;
  }
  return 0;
}

void ConsistencyPolicy::OnTick(uint32_t worker, uint64_t tick) {
  assert(worker < workers());
  if (tick < clocks_[worker]) return;
  const uint64_t before = clocks_[worker];
  clocks_[worker] = tick + 1;
  if (live_ == 0) {
    Recompute();
  } else if (is_live_[worker] && before == min_clock_ && --at_min_ == 0) {
    Recompute();  // the last of the slowest has moved: once a step, not once a tick
  }
}

void ConsistencyPolicy::OnLeave(uint32_t worker) {
  assert(worker < workers());
  if (!is_live_[worker]) return;
  is_live_[worker] = false;
  --live_;
  Recompute();
}

void ConsistencyPolicy::OnJoin(uint32_t worker, uint64_t clock) {
  assert(worker < workers());
  if (!is_live_[worker]) {
    is_live_[worker] = true;
    ++live_;
  }
  clocks_[worker] = std::max(clocks_[worker], clock);
  Recompute();
}

void ConsistencyPolicy::Load(std::vector<uint64_t> clocks, std::vector<bool> live) {
  assert(clocks.size() == workers() && live.size() == workers());
  clocks_ = std::move(clocks);
  is_live_ = std::move(live);
  live_ = static_cast<uint32_t>(std::count(is_live_.begin(), is_live_.end(), true));
  Recompute();
}

void ConsistencyPolicy::Recompute() {
  min_clock_ = 0;
  at_min_ = 0;
  if (live_ == 0) {
    for (const uint64_t clock : clocks_) min_clock_ = std::max(min_clock_, clock);
    return;
  }
  min_clock_ = kUnbounded;
  for (uint32_t w = 0; w < workers(); ++w) {
    if (!is_live_[w] || clocks_[w] > min_clock_) continue;
    at_min_ = clocks_[w] == min_clock_ ? at_min_ + 1 : 1;
    min_clock_ = clocks_[w];
  }
}

std::string ConsistencyPolicy::WaitsFor(uint64_t tick) const {
  if (MayRead(tick)) return "";
  constexpr int kNamed = 4;
  std::string names;
  int laggards = 0;
  for (uint32_t w = 0; w < workers(); ++w) {
    if (!is_live_[w] || clocks_[w] >= tick || tick - clocks_[w] <= staleness_) continue;
    if (++laggards > kNamed) continue;
    absl::StrAppendFormat(&names, "%sworker %u (at tick %u)", laggards > 1 ? ", " : "", w,
                          clocks_[w]);
  }
  if (laggards > kNamed) absl::StrAppend(&names, " and ", laggards - kNamed, " more");
  return names;
}

}  // namespace parley
