// Env: a node's only view of time, timers, randomness and other threads.
//
// Role logic (scheduler, server, worker) is a set of event handlers over an Env and a Transport and
// sees the world through nothing else. The real Env is an event loop with a thread pool
// (loop_env.h); the simulated one is a virtual clock shared by a whole cluster in one thread
// (sim_env.h). That is what makes a failing schedule replayable.
//
// Thread-safety: every task runs on the node's loop, one at a time. All methods must be called on
// the loop, except Post, which may be called from any thread. Tasks may call any method, including
// Cancel on their own timer.
#ifndef PARLEY_PS_BASE_ENV_H_
#define PARLEY_PS_BASE_ENV_H_

#include <cstdint>

#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"

namespace parley {

using Task = absl::AnyInvocable<void()>;

enum class TimerId : uint64_t {};
inline constexpr TimerId kNoTimer = TimerId{0};

class Env {
 public:
  virtual ~Env() = default;

  // Monotonic, since this Env started. Constant within one task in simulation.
  virtual absl::Duration Now() const = 0;

  // Runs `task` on the loop once `delay` has passed; a delay <= 0 means as soon as the current task
  // returns.
  virtual TimerId After(absl::Duration delay, Task task) = 0;

  // A cancelled task never runs afterwards. Unknown, fired and kNoTimer ids are ignored.
  virtual void Cancel(TimerId id) = 0;

  // Runs `task` on the loop, in the order of posting. Thread-safe; the only door from other
  // threads.
  virtual void Post(Task task) = 0;

  // Runs `work` off the loop, then `done` on it. Works of one Env may run at the same time as each
  // other; the caller orders what must be ordered by starting the next from `done`. `work` may call
  // Post and nothing else. In simulation `work` runs inline at the time of the call and `done`
  // after a virtual delay.
  virtual void Offload(Task work, Task done) = 0;

  // For back-off, jitter and node ids. Never for training: that is counter-based (philox.h).
  virtual uint64_t Random() = 0;
};

}  // namespace parley

#endif  // PARLEY_PS_BASE_ENV_H_
