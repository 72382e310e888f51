#include "ps/sync/contribution_check.h"

#include <cmath>
#include <set>
#include <utility>

#include "absl/strings/str_format.h"

namespace parley {

absl::Status CheckContribution(uint64_t tick, uint32_t worker, double weight, uint64_t workers) {
  if (worker >= workers) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "gradient of tick %u: worker is %u; allowed: below %u", tick, worker, workers));
  }
  if (!std::isfinite(weight) || weight < 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("gradient of tick %u from worker %u: weight is %g; allowed: 0 or more, "
                        "finite",
                        tick, worker, weight));
  }
  return absl::OkStatus();
}

absl::Status CheckTick(uint64_t tick, uint32_t worker, uint64_t oldest, uint64_t leaves_at) {
  if (tick >= leaves_at) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "gradient of tick %u from worker %u, which left after pushing those below %u", tick, worker,
        leaves_at));
  }
  if (tick - oldest > Aggregator::kMaxAhead) {
    return absl::InvalidArgumentError(
        absl::StrFormat("gradient of worker %u: tick is %u; allowed: up to %u past the oldest open "
                        "one, %u",
                        worker, tick, Aggregator::kMaxAhead, oldest));
  }
  return absl::OkStatus();
}

absl::Status SecondGradientError(uint64_t tick, uint32_t worker) {
  return absl::InvalidArgumentError(
      absl::StrFormat("a second gradient of tick %u from worker %u", tick, worker));
}

absl::Status CheckClosed(uint64_t tick, absl::Span<const uint32_t> closed, uint64_t workers) {
  for (const uint32_t worker : closed) {
    if (worker < workers) continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "tick %u was closed elsewhere for worker %u; allowed: below %u", tick, worker, workers));
  }
  return absl::OkStatus();
}

absl::Status CheckState(const Aggregator::State& state, uint64_t workers) {
  if (workers == 0 || state.next_tick.size() != workers || state.leaves_at.size() != workers) {
    return absl::InvalidArgumentError(
        absl::StrFormat("saved gradients are of %u workers and leavers of %u; allowed: %u",
                        state.next_tick.size(), state.leaves_at.size(), workers));
  }
  for (uint64_t tick : state.next_tick) {
    if (tick < kNeverLeaves / 2) continue;
    return absl::InvalidArgumentError(
        absl::StrFormat("the oldest open tick is %u; allowed: below %u", tick, kNeverLeaves / 2));
  }
  std::set<std::pair<uint64_t, uint32_t>> seen;
  for (const auto& [tick, c] : state.held) {
    if (absl::Status status = CheckContribution(tick, c.worker, c.weight, workers); !status.ok()) {
      return status;
    }
    if (!seen.emplace(tick, c.worker).second) return SecondGradientError(tick, c.worker);
  }
  return absl::OkStatus();
}

}  // namespace parley
