#include "ps/base/sim_env.h"

#include <algorithm>
#include <map>
#include <utility>

#include "ps/base/philox.h"

namespace parley {
namespace {

// The world's own stream; SimEnvs have those after it.
constexpr uint64_t kWorldStream = 0;

uint64_t Draw(uint64_t seed, uint64_t stream, uint64_t index) {
  const auto block = Philox(seed, stream, index);
  return uint64_t{block[1]} << 32 | block[0];
}

}  // namespace

SimWorld::SimWorld(uint64_t seed) : seed_(seed) {}

uint64_t SimWorld::Random() { return Draw(seed_, kWorldStream, draws_++); }

double SimWorld::RandomUnit() { return static_cast<double>(Random() >> 11) * 0x1p-53; }

absl::Duration SimWorld::RandomDuration(absl::Duration min, absl::Duration max) {
  return max <= min ? min : min + (max - min) * RandomUnit();
}

bool SimWorld::Later(const Event& a, const Event& b) {
  return a.when != b.when ? a.when > b.when : a.order > b.order;
}

void SimWorld::Schedule(absl::Duration delay, Task task) {
  queue_.push_back({now_ + std::max(delay, absl::ZeroDuration()), next_order_++, std::move(task)});
  std::push_heap(queue_.begin(), queue_.end(), Later);
}

bool SimWorld::RunOne() {
  if (queue_.empty()) return false;
  std::pop_heap(queue_.begin(), queue_.end(), Later);
  Event event = std::move(queue_.back());
  queue_.pop_back();
  now_ = event.when;
  ++events_;
  event.task();
  return true;
}

bool SimWorld::RunUntil(const std::function<bool()>& pred, absl::Duration virtual_limit) {
  const absl::Duration end = now_ + virtual_limit;
  while (!pred()) {
    if (queue_.empty() || queue_.front().when > end) {
      if (end != absl::InfiniteDuration()) now_ = std::max(now_, end);
      return false;
    }
    RunOne();
  }
  return true;
}

// Tasks live here, not in the world's queue: a cancelled one, and what it holds, is gone at once.
struct SimEnv::State {
  struct Pending {
    absl::Duration due;  // by the node's clock
    Task task;
  };
  bool alive = true;
  uint64_t next_timer = 1;
  std::map<uint64_t, Pending> tasks;
};

SimEnv::SimEnv(SimWorld* world, std::string name)
    : world_(world),
      name_(std::move(name)),
      start_(world->Now()),
      stream_(kWorldStream + ++world->envs_),
      state_(std::make_shared<State>()) {}

SimEnv::~SimEnv() { Kill(); }

absl::Duration SimEnv::Now() const { return world_->Now() - start_ + ahead_; }

// A task may have several events in the world's queue, of which the first that finds it runs it.
void SimEnv::Schedule(absl::Duration delay, uint64_t id) {
  world_->Schedule(delay, [this, state = state_, id] {
    auto found = state->tasks.find(id);
    if (found == state->tasks.end()) return;  // cancelled, or the node is dead
    if (stalled_until_ > world_->Now()) return Schedule(stalled_until_ - world_->Now(), id);
    Task run = std::move(found->second.task);
    state->tasks.erase(found);
    run();
  });
}

TimerId SimEnv::After(absl::Duration delay, Task task) {
  if (!state_->alive) return kNoTimer;
  const uint64_t id = state_->next_timer++;
  state_->tasks.emplace(id, State::Pending{Now() + delay, std::move(task)});
  if (delay != absl::InfiniteDuration()) Schedule(delay, id);
  return TimerId{id};
}

void SimEnv::Stall(absl::Duration length) {
  stalled_until_ = std::max(stalled_until_, world_->Now() + length);
}

void SimEnv::JumpAhead(absl::Duration gap) {
  ahead_ += gap;
  for (const auto& [id, pending] : state_->tasks) {
    if (pending.due != absl::InfiniteDuration()) Schedule(pending.due - Now(), id);
  }
}

void SimEnv::Cancel(TimerId id) {
  auto found = state_->tasks.find(static_cast<uint64_t>(id));
  if (found == state_->tasks.end()) return;
  Task dropped = std::move(found->second.task);  // destroyed last: its captures may cancel others
  state_->tasks.erase(found);
}

void SimEnv::Offload(Task work, Task done) {
  if (!state_->alive) return;
  work();
  After(world_->RandomDuration(offload_min_, offload_max_), std::move(done));
}

uint64_t SimEnv::Random() { return Draw(world_->seed(), stream_, draws_++); }

void SimEnv::SetOffloadDelay(absl::Duration min, absl::Duration max) {
  offload_min_ = min;
  offload_max_ = max;
}

void SimEnv::Kill() {
  state_->alive = false;
  std::map<uint64_t, State::Pending> dropped;
  dropped.swap(state_->tasks);
}

bool SimEnv::alive() const { return state_->alive; }

}  // namespace parley
