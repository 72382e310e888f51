// ServerProbe: watches what a server does to parameters, from inside; for the simulation's checkers
// and for tracing.
#ifndef PARLEY_PS_SERVER_SERVER_PROBE_H_
#define PARLEY_PS_SERVER_SERVER_PROBE_H_

#include <cstdint>
#include <vector>

namespace parley {

// Called on the shard's loop.
class ServerProbe {
 public:
  virtual ~ServerProbe() = default;
  // Before each of the following, and at a copy whenever it changes: how many operations the
  // partition has done (HostedPartition::last_index); OnApply and OnUpdateWithoutTick speak of the
  // last of them.
  virtual void OnIndex(uint32_t table, uint32_t partition, uint64_t index) {
    static_cast<void>(table), static_cast<void>(partition), static_cast<void>(index);
  }
  // The gradients of `workers` for `tick` went into the weights, which are at `version` now.
  virtual void OnApply(uint32_t table, uint32_t partition, uint64_t tick,
                       const std::vector<uint32_t>& workers, uint64_t version) = 0;
  // The gradient of `worker` that belongs to no step, known by its sequence on this partition, went
  // into the weights, which are at `version` now.
  virtual void OnUpdateWithoutTick(uint32_t table, uint32_t partition, uint32_t worker,
                                   uint64_t sequence, uint64_t version) = 0;
  // A push part was taken for the first time (and will be acknowledged): to be applied, unless
  // `late`.
  virtual void OnAccept(uint32_t table, uint32_t partition, uint32_t worker, uint64_t tick,
                        bool late) = 0;
  // `worker` is sent the weights at `version` to compute its `tick` with.
  virtual void OnRead(uint32_t table, uint32_t partition, uint32_t worker, uint64_t tick,
                      uint64_t version) = 0;
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_SERVER_PROBE_H_
