// SlowWorkers: how long each logical worker computes for a step, and whose steps take much longer
// than the others'. Pure state; owned by the scheduler's loop; not thread-safe.
#ifndef PARLEY_SCHEDULER_SLOW_WORKERS_H_
#define PARLEY_SCHEDULER_SLOW_WORKERS_H_

#include <cstdint>
#include <map>
#include <set>

#include "ps/base/ids.h"

namespace parley {

class SlowWorkers {
 public:
  // Steps before a node is judged.
  static constexpr uint64_t kMinSteps = 8;

  // A heartbeat: `rank`, at `node`, is at `tick` and has computed for so long since it began there.
  void Add(uint32_t rank, NodeId node, uint64_t tick, double compute_seconds);
  // All begin again.
  void Clear() { ranks_.clear(); }

  // Computing of one step of one logical worker at the node; 0: not known.
  double StepSeconds(NodeId node) const;
  // Nodes whose steps take more than `factor` times the median of all logical workers.
  std::set<NodeId> Slow(double factor) const;

 private:
  struct Rank {
    NodeId node = kNoNode;
    uint64_t tick = 0, first_tick = 0;
    double seconds = 0, first_seconds = 0;
    double StepSeconds() const;  // 0: too few steps
  };
  std::map<uint32_t, Rank> ranks_;
};

}  // namespace parley

#endif  // PARLEY_SCHEDULER_SLOW_WORKERS_H_
