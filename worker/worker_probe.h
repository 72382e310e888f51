// WorkerProbe: watches what a worker node computes, from inside; for the simulation's checkers and
// for tracing.
#ifndef PARLEY_WORKER_WORKER_PROBE_H_
#define PARLEY_WORKER_WORKER_PROBE_H_

#include <cstdint>
#include <vector>

namespace parley {

// Called on the node's loop.
class WorkerProbe {
 public:
  virtual ~WorkerProbe() = default;
  // What is pushed next as the gradient of `tick` of the logical worker `rank` was computed from
  // these samples of the training set, in `epoch` (from 0). Several times a tick: with each piece.
  virtual void OnGradient(uint32_t rank, uint64_t tick, uint32_t epoch,
                          const std::vector<uint64_t>& samples) = 0;
};

}  // namespace parley

#endif  // PARLEY_WORKER_WORKER_PROBE_H_
