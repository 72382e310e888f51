// DenseTable: a worker's way to one dense table.
//
// A pull fetches every partition into one arena, a push sends slices of a gradient arena without
// copying them (unless the table has a push codec), and a push-pull does both in one request: the
// server answers it when the new weights may be read. Requests are cut into messages of at most
// max_request_bytes, one owner each, and wait in their shard's queue (shard_queues.h), those that
// forward needs first in front.
//
// Made and owned by a PsClient. Thread-safety: as Env, everything on the loop. Callbacks may call
// any method.
#ifndef PARLEY_WORKER_CLIENT_DENSE_TABLE_H_
#define PARLEY_WORKER_CLIENT_DENSE_TABLE_H_

#include <cstdint>
#include <limits>

#include "absl/functional/any_invocable.h"
#include "absl/types/span.h"
#include "ps/base/buffer.h"
#include "ps/base/dense_layout.h"

namespace parley {

// What a pull found out.
struct PullResult {
  uint64_t min_clock = 0;  // the smallest over all partitions: ticks every live worker has closed
  uint64_t min_version = 0, max_version = 0;  // updates applied to the partitions
};

class DenseTable {
 public:
  // A pull of this tick is answered once every worker has left.
  static constexpr uint64_t kFinalTick = std::numeric_limits<uint64_t>::max();

  using OnArrived = absl::AnyInvocable<void(absl::Span<const uint32_t> partitions)>;
  using OnPulled = absl::AnyInvocable<void(const PullResult&)>;

  virtual ~DenseTable() = default;

  virtual const DenseLayout& layout() const = 0;

  // Fetches all partitions for `tick` into `parameters`, float32 [layout().elements()], which must
  // stay valid until `done` or the end of the client. `on_arrived` runs for each answer, with the
  // partitions that are in `parameters` now. One pull at a time. A pull of kFinalTick asks again
  // when its deadline passes, since others may have long to go; the scheduler watches over them.
  virtual void Pull(uint64_t tick, float* parameters, OnArrived on_arrived, OnPulled done) = 0;

  // Sends the gradients of `partitions` for `tick`: slices of `gradients`, laid out as the table.
  // With weight 0 (no samples) there is no payload and `gradients` may be empty.
  virtual void Push(uint64_t tick, double weight, absl::Span<const uint32_t> partitions,
                    const Buffer& gradients) = 0;

  // Opens the pull of `tick` as Pull does, but asks for nothing: its partitions come with the
  // PushPull calls that follow, which must name each partition once.
  virtual void BeginPull(uint64_t tick, float* parameters, OnArrived on_arrived, OnPulled done) = 0;
  // As Push of `tick`, and brings those partitions of the pull that is open. They may be
  // overwritten in its `parameters` as soon as this is called.
  virtual void PushPull(uint64_t tick, double weight, absl::Span<const uint32_t> partitions,
                        const Buffer& gradients) = 0;
};

}  // namespace parley

#endif  // PARLEY_WORKER_CLIENT_DENSE_TABLE_H_
