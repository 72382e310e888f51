// Aggregator: when is a gradient applied, and with which others.
//
// One object per partition. Under BSP a step is complete when every live worker (less
// `backup_workers`) has pushed its tick; its gradients then come out together in worker-rank order,
// never in order of arrival, since float addition does not associate. Under SSP and ASP each
// gradient comes out at once and alone. Holds the received Buffers themselves, no copies. Pure: no
// time, no I/O. Not thread-safe.
#ifndef PARLEY_PS_SYNC_AGGREGATOR_H_
#define PARLEY_PS_SYNC_AGGREGATOR_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/experiment.pb.h"
#include "ps/base/buffer.h"

namespace parley {

struct Contribution {
  uint32_t worker = 0;
  double weight = 0;  // samples summed in `values`; 0 for a worker that had none in this step
  Buffer values;      // float32: dense [partition size], sparse [keys, dim]; empty if weight is 0
  Buffer keys = {};   // sparse: uint64 [keys], which may be none; dense: empty
  // Of its push, for the replay guards of copies; nothing here looks at them.
  uint32_t incarnation = 0;
  uint64_t sequence = 0;
  uint64_t acked_below = 0;
};

// Gradients to be applied together, ascending by worker.
struct CompleteStep {
  uint64_t tick = 0;
  std::vector<Contribution> contributions;
  std::vector<uint32_t>
      closed;  // workers whose `tick` is closed by this, contributing or passed over
};

class Aggregator {
 public:
  enum class Verdict {
    kAccepted,  // held or ready
    kLate,      // its step is closed already (backup workers): acknowledge, never apply
  };

  virtual ~Aggregator() = default;

  static std::unique_ptr<Aggregator> Create(const pb::Consistency& consistency, uint32_t workers);

  // Whether Add would take it; changes nothing. Errors and verdicts are Add's.
  virtual absl::StatusOr<Verdict> Check(uint64_t tick, uint32_t worker, double weight) const = 0;

  // kInvalidArgument: no such worker; a weight that is negative or no number; a second gradient of
  // the same worker and tick (the replay guard lets no replay this far); a tick that the worker
  // said it would not push (OnLeave); or a tick more than kMaxAhead past the oldest open one -
  // under SSP and ASP, of this worker: no honest worker can be there, and memory is bounded.
  virtual absl::StatusOr<Verdict> Add(uint64_t tick, Contribution contribution) = 0;

  // The next step that is ready, oldest first; call until it returns false. Under SSP and ASP those
  // of one worker come in tick order, those of several in the order in which they became ready.
  virtual bool PopComplete(CompleteStep* step) = 0;

  // `worker` pushes no tick >= `after_tick`: steps from there on do not wait for it. What it pushed
  // before counts. Of several calls the lowest tick holds; unknown workers are ignored. May make
  // steps ready. A step that nobody is left to push completes with what it has, as soon as anything
  // from there on is held.
  virtual void OnLeave(uint32_t worker, uint64_t after_tick) = 0;

  // Workers whose push the oldest open step still lacks; none where nothing waits for others.
  virtual std::vector<uint32_t> Missing() const = 0;

  // Gradients held that are not yet applied.
  virtual size_t held() const = 0;

  // The first tick of `worker` that is not closed; and what is held of a tick, else null (until
  // anything is changed). REQUIRES: such a worker.
  virtual uint64_t NextTick(uint32_t worker) const = 0;
  virtual const Contribution* Find(uint64_t tick, uint32_t worker) const = 0;
  // The lowest after_tick that it was told; kNever: the worker stays. REQUIRES: such a worker.
  virtual uint64_t LeavesAt(uint32_t worker) const = 0;
  static constexpr uint64_t kNever = ~uint64_t{0};

  // `tick` of these workers was closed elsewhere, with gradients that are not held here: what is
  // held of it goes to `dropped`. For a copy, which is told of closed steps in their order and
  // never asked for complete ones. kInvalidArgument, and nothing has changed: no such worker, or a
  // tick that is closed already or (BSP) not the oldest open one.
  virtual absl::Status Close(uint64_t tick, absl::Span<const uint32_t> workers,
                             std::vector<Contribution>* dropped) = 0;

  // All there is, for a copy; what was popped may be put back with Return.
  struct State {
    std::vector<uint64_t> next_tick, leaves_at;           // by worker
    std::vector<std::pair<uint64_t, Contribution>> held;  // with their ticks
    // A step that was popped but is not in the weights: it is open again.
    void Return(const CompleteStep& step);
  };
  virtual State Save() const = 0;
  // Becomes what was saved. What is complete in it is to be popped. kInvalidArgument, and nothing
  // has changed: not what an aggregator of this mode and number of workers can hold.
  virtual absl::Status Load(State state) = 0;

  // Open steps at a time; staleness beyond this is refused by the configuration check.
  static constexpr uint64_t kMaxAhead = 1024;
};

}  // namespace parley

#endif  // PARLEY_PS_SYNC_AGGREGATOR_H_
