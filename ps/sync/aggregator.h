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
#include <vector>

#include "absl/status/statusor.h"
#include "proto/experiment.pb.h"
#include "ps/base/buffer.h"

namespace parley {

struct Contribution {
  uint32_t worker = 0;
  double weight = 0;  // samples summed in `values`; 0 for a worker that had none in this step
  Buffer values;      // float32: dense [partition size], sparse [keys, dim]; empty if weight is 0
  Buffer keys = {};   // sparse: uint64 [keys], which may be none; dense: empty
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

  // Open steps at a time; staleness beyond this is refused by the configuration check.
  static constexpr uint64_t kMaxAhead = 1024;
};

}  // namespace parley

#endif  // PARLEY_PS_SYNC_AGGREGATOR_H_
