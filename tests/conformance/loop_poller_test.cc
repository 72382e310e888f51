// LoopEnv with work that comes through memory, and its spinning.
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <thread>

#include "gtest/gtest.h"
#include "ps/base/loop_env.h"

namespace parley {
namespace {

// A counter in memory, as a ring's position is one, with the sleeper's flag beside it.
class CounterPoller : public Poller {
 public:
  CounterPoller(LoopEnv* env, uint64_t until) : env_(env), until_(until) {}

  bool Poll() override {
    const uint64_t written = written_.load(std::memory_order_acquire);
    if (written == seen_) return false;
    seen_ = written;
    if (written >= until_) env_->Stop();
    return true;
  }
  bool PrepareToSleep() override {
    sleeping_.store(true);
    if (written_.load() == seen_) return true;
    Awake();
    return false;
  }
  void Awake() override {
    ++awakenings_;
    sleeping_.store(false, std::memory_order_relaxed);
  }
  // On another thread.
  void Produce(int wake_fd) {
    written_.fetch_add(1);
    if (sleeping_.load()) eventfd_write(wake_fd, 1);
  }
  bool sleeping() const { return sleeping_.load(); }
  uint64_t seen() const { return seen_; }
  int awakenings() const { return awakenings_; }

 private:
  LoopEnv* const env_;
  const uint64_t until_;
  std::atomic<uint64_t> written_{0};
  std::atomic<bool> sleeping_{false};
  std::atomic<uint64_t> seen_{0};
  std::atomic<int> awakenings_{0};
};

// Ends only if no wake-up is missed.
void Count(absl::Duration spin, bool wait_for_sleep) {
  constexpr uint64_t kCount = 5000;
  LoopEnv env({.offload_threads = 0, .spin = spin});
  const int fd = eventfd(0, EFD_NONBLOCK);
  ASSERT_TRUE(env.AddWakeUp(fd).ok());
  CounterPoller poller(&env, kCount);
  env.AddPoller(&poller);
  std::thread producer([&] {
    for (uint64_t i = 0; i < kCount; ++i) {
      // Now and then for a sleeper, who must wake up of this alone, to have both ways often.
      const bool for_sleeper = wait_for_sleep && i % 16 == 0;
      while (for_sleeper && !poller.sleeping()) std::this_thread::yield();
      poller.Produce(fd);
      while (for_sleeper && poller.seen() <= i) std::this_thread::yield();
    }
  });
  env.Run();
  producer.join();
  EXPECT_EQ(poller.seen(), kCount);
  if (wait_for_sleep) {
    EXPECT_GE(poller.awakenings(), static_cast<int>(kCount / 16));
  }
  env.RemovePoller(&poller);
  env.RemoveSource(fd);
  close(fd);
}

TEST(LoopEnvPoller, NoWakeUpIsMissed) { Count(absl::ZeroDuration(), false); }
TEST(LoopEnvPoller, NoWakeUpIsMissedBySleepers) { Count(absl::ZeroDuration(), true); }
TEST(LoopEnvPoller, NorWhileSpinning) { Count(absl::Microseconds(50), false); }
TEST(LoopEnvPoller, NorBySleepersThatSpinFirst) { Count(absl::Microseconds(50), true); }

TEST(LoopEnvPoller, ABusyLoopLooksAtDescriptorsThatWait) {
  LoopEnv env({.offload_threads = 0});
  const int fd = eventfd(0, EFD_NONBLOCK);
  ASSERT_TRUE(env.AddSource(
                     fd,
                     [&] {
                       uint64_t value;
                       if (read(fd, &value, sizeof(value)) != sizeof(value)) return false;
                       env.Stop();
                       return true;
                     },
                     LoopEnv::News::kUntilTaken)
                  .ok());
  std::function<void()> again = [&] { env.Post([&] { again(); }); };  // work without an end
  env.Post([&] { again(); });
  eventfd_write(fd, 1);
  env.Run();  // hangs if the descriptor's turn never comes
  env.RemoveSource(fd);
  close(fd);
}

TEST(LoopEnvPoller, TimersAndPostsAreOnTimeWhileSpinning) {
  LoopEnv env({.offload_threads = 0, .spin = absl::Milliseconds(20)});
  CounterPoller poller(&env, 1);  // nothing ever comes
  env.AddPoller(&poller);
  int fired = 0;
  std::function<void()> tick = [&] {
    if (++fired == 50) return env.Stop();
    env.After(absl::Milliseconds(1), [&] { tick(); });
  };
  env.Post([&] { tick(); });
  const absl::Duration start = env.Now();
  env.Run();
  EXPECT_EQ(fired, 50);
  EXPECT_LT(env.Now() - start, absl::Seconds(2)) << "spinning holds nobody up";
  env.RemovePoller(&poller);
}

}  // namespace
}  // namespace parley
