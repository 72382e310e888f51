#include "ps/sync/aggregator.h"

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

}  // namespace parley
