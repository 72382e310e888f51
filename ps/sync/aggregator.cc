#include "ps/sync/aggregator.h"

#include <algorithm>

#include "ps/sync/bsp_aggregator.h"
#include "ps/sync/immediate_aggregator.h"

namespace parley {

std::unique_ptr<Aggregator> Aggregator::Create(const pb::Consistency& consistency,
                                               uint32_t workers) {
  if (consistency.mode() == pb::Consistency::BSP) {
    return std::make_unique<BspAggregator>(workers, consistency.backup_workers());
  }
  return std::make_unique<ImmediateAggregator>(workers);
}

void Aggregator::State::Return(const CompleteStep& step) {
  for (uint32_t worker : step.closed) {
    next_tick[worker] = std::min(next_tick[worker], step.tick);
  }
  for (const Contribution& c : step.contributions) held.emplace_back(step.tick, c);
}

}  // namespace parley
