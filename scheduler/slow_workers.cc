#include "scheduler/slow_workers.h"

#include <algorithm>
#include <vector>

namespace parley {

double SlowWorkers::Rank::StepSeconds() const {
  if (tick < first_tick + kMinSteps) return 0;
  return (seconds - first_seconds) / static_cast<double>(tick - first_tick);
}

void SlowWorkers::Add(uint32_t rank, NodeId node, uint64_t tick, double compute_seconds) {
  Rank& known = ranks_[rank];
  if (known.node != node || tick < known.tick || compute_seconds < known.seconds) {
    known = {node, tick, tick, compute_seconds, compute_seconds};
    return;
  }
  known.tick = tick;
  known.seconds = compute_seconds;
}

double SlowWorkers::StepSeconds(NodeId node) const {
  double longest = 0;
  for (const auto& [rank, known] : ranks_) {
    if (known.node == node) longest = std::max(longest, known.StepSeconds());
  }
  return longest;
}

std::set<NodeId> SlowWorkers::Slow(double factor) const {
  std::vector<double> all;
  for (const auto& [rank, known] : ranks_) {
    if (known.StepSeconds() > 0) all.push_back(known.StepSeconds());
  }
  std::set<NodeId> slow;
  // Before everybody has been measured the median is nobody's.
  if (all.size() < 2 || all.size() < ranks_.size()) return slow;
  std::sort(all.begin(), all.end());
  const double median = all[(all.size() - 1) / 2];
  for (const auto& [rank, known] : ranks_) {
    if (known.StepSeconds() > factor * median) slow.insert(known.node);
  }
  return slow;
}

}  // namespace parley
