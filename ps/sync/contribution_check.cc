#include "ps/sync/contribution_check.h"

#include <cmath>

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

}  // namespace parley
