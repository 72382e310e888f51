// What every Aggregator refuses; internal to ps/sync. The rules are those of Aggregator::Add.
#ifndef PARLEY_PS_SYNC_CONTRIBUTION_CHECK_H_
#define PARLEY_PS_SYNC_CONTRIBUTION_CHECK_H_

#include <cstdint>
#include <limits>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "ps/sync/aggregator.h"

namespace parley {

inline constexpr uint64_t kNeverLeaves = std::numeric_limits<uint64_t>::max();

// The worker exists and the weight is a finite number >= 0.
absl::Status CheckContribution(uint64_t tick, uint32_t worker, double weight, uint64_t workers);

// The tick is one the worker said it would push, and not too far ahead. REQUIRES: tick >= oldest.
absl::Status CheckTick(uint64_t tick, uint32_t worker, uint64_t oldest, uint64_t leaves_at);

// What Aggregator::Close and Load refuse in any mode: workers that do not exist; in a state also
// weights that are none and two gradients of one worker and tick.
absl::Status CheckClosed(uint64_t tick, absl::Span<const uint32_t> closed, uint64_t workers);
absl::Status CheckState(const Aggregator::State& state, uint64_t workers);

absl::Status SecondGradientError(uint64_t tick, uint32_t worker);

}  // namespace parley

#endif  // PARLEY_PS_SYNC_CONTRIBUTION_CHECK_H_
