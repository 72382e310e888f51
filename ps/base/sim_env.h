// SimWorld and SimEnv: a whole cluster's time, timers and randomness in one thread, from one seed.
//
// All that happens is in one queue of events, ordered by (virtual time, order of insertion); the
// clock jumps from event to event. Two runs with the same seed and the same code do the same things
// in the same order, so a failing run is a number that replays. Anything that iterates in an order
// that differs from process to process (hash maps) would break this, and nothing here does.
//
// Thread-safety: none; one thread drives everything, SimEnv::Post included.
#ifndef PARLEY_PS_BASE_SIM_ENV_H_
#define PARLEY_PS_BASE_SIM_ENV_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "ps/base/env.h"

namespace parley {

class SimWorld {
 public:
  explicit SimWorld(uint64_t seed);
  SimWorld(const SimWorld&) = delete;
  SimWorld& operator=(const SimWorld&) = delete;

  uint64_t seed() const { return seed_; }
  absl::Duration Now() const { return now_; }

  // Uniform numbers for faults and delays; each call moves on.
  uint64_t Random();
  double RandomUnit();  // [0, 1)
  absl::Duration RandomDuration(absl::Duration min, absl::Duration max);

  // Runs `task` after `delay` (negative: 0) of virtual time, after all events already due then.
  void Schedule(absl::Duration delay, Task task);

  // Moves the clock to the next event and runs it; false if there is none.
  bool RunOne();

  // Runs events until `pred` holds, which is asked before the first and after each. Gives up, with
  // false, when no event is left or the next one lies beyond `virtual_limit` from now; then the
  // clock stands at that limit, so that calling again goes on from there.
  bool RunUntil(const std::function<bool()>& pred, absl::Duration virtual_limit);

  uint64_t events() const { return events_; }  // run so far
  size_t pending() const { return queue_.size(); }

 private:
  friend class SimEnv;
  struct Event {
    absl::Duration when;
    uint64_t order;
    Task task;
  };
  static bool Later(const Event& a, const Event& b);

  const uint64_t seed_;
  absl::Duration now_ = absl::ZeroDuration();
  uint64_t draws_ = 0, next_order_ = 0, events_ = 0;
  uint64_t envs_ = 0;         // numbers the random streams of SimEnvs
  std::vector<Event> queue_;  // a heap, soonest first
};

// One node's Env in a SimWorld. Destroying it, or Kill, is the node's sudden death: none of its
// tasks runs from then on. REQUIRES: the world outlives it.
class SimEnv : public Env {
 public:
  // `name` is for people: checkers and logs.
  SimEnv(SimWorld* world, std::string name);
  ~SimEnv() override;
  SimEnv(const SimEnv&) = delete;
  SimEnv& operator=(const SimEnv&) = delete;

  absl::Duration Now() const override;  // since this SimEnv was made
  TimerId After(absl::Duration delay, Task task) override;
  void Cancel(TimerId id) override;
  void Post(Task task) override { After(absl::ZeroDuration(), std::move(task)); }
  // `work` runs inline; `done` after a random delay, so that offloaded works finish in any order.
  void Offload(Task work, Task done) override;
  uint64_t Random() override;

  // The node stands still for so long (SIGSTOP, a long pause of its machine): what falls due
  // meanwhile runs right after, and its clock shows the gap. Twice at once: the later end counts.
  void Stall(absl::Duration length);
  // The virtual time until which it stands still; in the past: it does not.
  absl::Duration stalled_until() const { return stalled_until_; }
  // The node's clock, and it alone, is `gap` ahead from now on, so its timers end sooner.
  void JumpAhead(absl::Duration gap);

  // Bounds of Offload's delay from now on; [0.1 ms, 1 ms] at first. A slow machine has large ones.
  void SetOffloadDelay(absl::Duration min, absl::Duration max);

  // Pending and future tasks never run. Dropped tasks are destroyed at once, with what they hold.
  void Kill();
  bool alive() const;

  const std::string& name() const { return name_; }
  SimWorld* world() const { return world_; }

 private:
  struct State;

  void Schedule(absl::Duration delay, uint64_t id);

  SimWorld* const world_;
  const std::string name_;
  const absl::Duration start_;
  const uint64_t stream_;
  uint64_t draws_ = 0;
  absl::Duration ahead_ = absl::ZeroDuration();  // of the world's clock, by JumpAhead
  absl::Duration stalled_until_ = -absl::InfiniteDuration();
  absl::Duration offload_min_ = absl::Microseconds(100);
  absl::Duration offload_max_ = absl::Milliseconds(1);
  std::shared_ptr<State> state_;  // shared with this Env's events, which may outlive it
};

}  // namespace parley

#endif  // PARLEY_PS_BASE_SIM_ENV_H_
