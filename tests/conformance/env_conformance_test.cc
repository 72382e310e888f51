// What every Env promises, asked of the real loop and of the simulation, and below that what only
// the real one can be asked: other threads and descriptors.
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <latch>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ps/base/loop_env.h"
#include "ps/base/sim_env.h"

namespace parley {
namespace {

using ::testing::ElementsAre;

constexpr absl::Duration kLimit = absl::Seconds(30);  // far more than any test takes

// An Env and the means to run it until something holds; once a test.
class Rig {
 public:
  virtual ~Rig() = default;
  virtual Env* env() = 0;
  virtual bool RunUntil(std::function<bool()> pred) = 0;
};

class LoopRig : public Rig {
 public:
  explicit LoopRig(LoopEnvOptions options = {}) : env_(options) {}
  LoopEnv* env() override { return &env_; }

  bool RunUntil(std::function<bool()> pred) override {
    Check(std::move(pred), env_.Now() + kLimit);
    env_.Run();
    return held_;
  }

 private:
  void Check(std::function<bool()> pred, absl::Duration end) {
    held_ = pred();
    if (held_ || env_.Now() > end) return env_.Stop();
    env_.After(absl::Microseconds(200), [this, pred = std::move(pred), end] { Check(pred, end); });
  }

  LoopEnv env_;
  bool held_ = false;
};

class SimRig : public Rig {
 public:
  Env* env() override { return &env_; }
  bool RunUntil(std::function<bool()> pred) override { return world_.RunUntil(pred, kLimit); }

 private:
  SimWorld world_{7};
  SimEnv env_{&world_, "node"};
};

class EnvConformance : public ::testing::TestWithParam<std::string> {
 protected:
  EnvConformance() {
    if (GetParam() == "sim") {
      rig_ = std::make_unique<SimRig>();
    } else if (GetParam() == "loop") {
      rig_ = std::make_unique<LoopRig>();
    } else if (GetParam() == "loop_without_threads") {
      rig_ = std::make_unique<LoopRig>(LoopEnvOptions{.offload_threads = 0});
    } else {
      rig_ = std::make_unique<LoopRig>(
          LoopEnvOptions{.offload_threads = 2, .spin = absl::Microseconds(50)});
    }
    env_ = rig_->env();
  }

  std::unique_ptr<Rig> rig_;
  Env* env_;
  std::vector<int> order_;
};

INSTANTIATE_TEST_SUITE_P(, EnvConformance,
                         ::testing::Values("sim", "loop", "loop_without_threads", "loop_spinning"),
                         [](const auto& info) { return info.param; });

TEST_P(EnvConformance, TimersFireInTheOrderOfTheirTime) {
  env_->After(absl::Milliseconds(9), [&] { order_.push_back(3); });
  env_->After(absl::Milliseconds(1), [&] { order_.push_back(1); });
  env_->After(absl::Milliseconds(5), [&] { order_.push_back(2); });
  ASSERT_TRUE(rig_->RunUntil([&] { return order_.size() == 3; }));
  EXPECT_THAT(order_, ElementsAre(1, 2, 3));
}

TEST_P(EnvConformance, TimersOfOneDelayFireInTheOrderOfTheirSetting) {
  for (int i = 0; i < 100; ++i) {
    env_->After(absl::Milliseconds(2), [this, i] { order_.push_back(i); });
  }
  ASSERT_TRUE(rig_->RunUntil([&] { return order_.size() == 100; }));
  for (int i = 0; i < 100; ++i) EXPECT_EQ(order_[i], i);
}

TEST_P(EnvConformance, TimersAreNeverEarly) {
  std::vector<absl::Duration> early_by;
  for (const int delay_us : {0, 1, 300, 1000, 2500}) {
    const absl::Duration due = env_->Now() + absl::Microseconds(delay_us);
    env_->After(absl::Microseconds(delay_us),
                [this, due, &early_by] { early_by.push_back(due - env_->Now()); });
  }
  ASSERT_TRUE(rig_->RunUntil([&] { return early_by.size() == 5; }));
  EXPECT_THAT(early_by, ::testing::Each(::testing::Le(absl::ZeroDuration())));
}

TEST_P(EnvConformance, ADelayOfNothingRunsAfterTheCurrentTask) {
  env_->Post([this] {
    env_->After(absl::ZeroDuration(), [this] { order_.push_back(2); });
    env_->After(absl::Seconds(-5), [this] { order_.push_back(3); });
    order_.push_back(1);
  });
  ASSERT_TRUE(rig_->RunUntil([&] { return order_.size() == 3; }));
  EXPECT_EQ(order_[0], 1);
}

TEST_P(EnvConformance, ACancelledTimerNeverFiresAndLetsGoOfItsCaptures) {
  auto held = std::make_shared<int>(0);
  const TimerId victim = env_->After(absl::Milliseconds(1), [this, held] { order_.push_back(-1); });
  EXPECT_EQ(held.use_count(), 2);
  env_->Cancel(victim);
  EXPECT_EQ(held.use_count(), 1);
  env_->Cancel(victim);  // again: ignored
  env_->Cancel(kNoTimer);
  env_->Cancel(TimerId{123456});
  env_->After(absl::Milliseconds(3), [this] { order_.push_back(1); });
  ASSERT_TRUE(rig_->RunUntil([&] { return !order_.empty(); }));
  EXPECT_THAT(order_, ElementsAre(1));
}

TEST_P(EnvConformance, ATimerMayCancelOneThatIsDueWithIt) {
  TimerId second = kNoTimer;
  env_->Post([&] {
    env_->After(absl::Milliseconds(1), [&] {
      order_.push_back(1);
      env_->Cancel(second);
    });
    second = env_->After(absl::Milliseconds(1), [&] { order_.push_back(-1); });
    env_->After(absl::Milliseconds(2), [&] { order_.push_back(2); });
  });
  ASSERT_TRUE(rig_->RunUntil([&] { return order_.size() >= 2; }));
  EXPECT_THAT(order_, ElementsAre(1, 2));
}

TEST_P(EnvConformance, ATimerMayCancelItselfAndSetOthers) {
  TimerId own = kNoTimer;
  own = env_->After(absl::Milliseconds(1), [&] {
    env_->Cancel(own);
    order_.push_back(1);
    env_->After(absl::Milliseconds(1), [&] { order_.push_back(2); });
  });
  ASSERT_TRUE(rig_->RunUntil([&] { return order_.size() == 2; }));
}

TEST_P(EnvConformance, ThousandsOfCancelledTimersDoNotHideTheRest) {
  // Deadlines that are met are cancelled long before they are due.
  for (int i = 0; i < 5000; ++i) {
    const TimerId deadline = env_->After(absl::Seconds(20), [this] { order_.push_back(-1); });
    if (i % 1000 == 0) {
      env_->After(absl::Milliseconds(1 + i / 1000), [this, i] { order_.push_back(i / 1000); });
    }
    env_->Cancel(deadline);
  }
  ASSERT_TRUE(rig_->RunUntil([&] { return order_.size() == 5; }));
  EXPECT_THAT(order_, ElementsAre(0, 1, 2, 3, 4));
}

TEST_P(EnvConformance, AnInfiniteDelayIsNeverOver) {
  env_->After(absl::InfiniteDuration(), [this] { order_.push_back(-1); });
  env_->After(absl::Milliseconds(2), [this] { order_.push_back(1); });
  ASSERT_TRUE(rig_->RunUntil([&] { return !order_.empty(); }));
  EXPECT_THAT(order_, ElementsAre(1));
}

TEST_P(EnvConformance, PostedTasksRunInTheOrderOfPostingAndNotInline) {
  env_->Post([this] {
    order_.push_back(0);
    env_->Post([this] { order_.push_back(3); });
    env_->Post([this] { order_.push_back(4); });
    order_.push_back(1);
  });
  env_->Post([this] { order_.push_back(2); });
  EXPECT_TRUE(order_.empty());
  ASSERT_TRUE(rig_->RunUntil([&] { return order_.size() == 5; }));
  EXPECT_THAT(order_, ElementsAre(0, 1, 2, 3, 4));
}

TEST_P(EnvConformance, TimeDoesNotGoBack) {
  std::vector<absl::Duration> times = {env_->Now()};
  for (int i = 0; i < 10; ++i) {
    env_->After(absl::Microseconds(i * 100), [&] { times.push_back(env_->Now()); });
  }
  ASSERT_TRUE(rig_->RunUntil([&] { return times.size() == 11; }));
  EXPECT_TRUE(std::is_sorted(times.begin(), times.end()));
  EXPECT_GE(times[0], absl::ZeroDuration());
}

TEST_P(EnvConformance, OffloadRunsTheWorkThenDoneAsATaskOfItsOwn) {
  bool worked = false, returned = false;
  env_->Post([&] {
    env_->Offload([&] { worked = true; },
                  [&] {
                    EXPECT_TRUE(worked);
                    EXPECT_TRUE(returned);  // never from inside Offload
                    order_.push_back(1);
                  });
    returned = true;
  });
  ASSERT_TRUE(rig_->RunUntil([&] { return !order_.empty(); }));
}

TEST_P(EnvConformance, EveryOffloadIsDoneOnce) {
  std::atomic<int> works = 0;
  int done = 0;
  for (int i = 0; i < 50; ++i) env_->Offload([&] { ++works; }, [&] { ++done; });
  ASSERT_TRUE(rig_->RunUntil([&] { return done == 50; }));
  EXPECT_EQ(works, 50);
}

TEST_P(EnvConformance, OffloadedWorkMayPost) {
  env_->Offload([this] { env_->Post([this] { order_.push_back(1); }); },
                [this] { order_.push_back(2); });
  ASSERT_TRUE(rig_->RunUntil([&] { return order_.size() == 2; }));
  EXPECT_THAT(order_, ElementsAre(1, 2));
}

TEST_P(EnvConformance, RandomNumbersDiffer) {
  const uint64_t first = env_->Random();
  EXPECT_NE(first, env_->Random());
}

// The real loop alone.

TEST(LoopEnv, PostsOfEachThreadRunInTheirOrderOnTheLoop) {
  constexpr int kThreads = 4, kPosts = 2000;
  LoopEnv env({.offload_threads = 0});
  std::vector<std::vector<int>> seen(kThreads);
  int total = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kPosts; ++i) {
        env.Post([&, t, i] {
          seen[t].push_back(i);
          if (++total == kThreads * kPosts) env.Stop();
        });
      }
    });
  }
  env.Run();
  for (std::thread& thread : threads) thread.join();
  for (const std::vector<int>& of_thread : seen) {
    ASSERT_EQ(of_thread.size(), kPosts);
    EXPECT_TRUE(std::is_sorted(of_thread.begin(), of_thread.end()));
  }
}

TEST(LoopEnv, APostWakesASleepingLoopEveryTime) {
  // Ping-pong between two loops: each post most likely meets a loop that sleeps or falls asleep.
  // One lost wake-up and this hangs.
  LoopEnv a({.offload_threads = 0}), b({.offload_threads = 0});
  int left = 3000;
  std::function<void()> ping = [&] {
    if (--left == 0) {
      b.Stop();
      return a.Stop();
    }
    b.Post([&] { a.Post([&] { ping(); }); });
  };
  std::thread thread([&] { b.Run(); });
  a.Post([&] { ping(); });
  a.Run();
  thread.join();
  EXPECT_EQ(left, 0);
}

TEST(LoopEnv, StopFromAnotherThreadEndsASleepingLoop) {
  LoopEnv env;
  std::latch running(1);
  env.Post([&] { running.count_down(); });
  std::thread stopper([&] {
    running.wait();
    env.Stop();
  });
  env.Run();
  stopper.join();
}

TEST(LoopEnv, StopBeforeRunIsNotLost) {
  LoopEnv env;
  bool ran = false;
  env.Post([&] { ran = true; });
  env.Stop();
  env.Run();
  EXPECT_FALSE(ran);
}

TEST(LoopEnv, WhatIsPendingAfterStopIsDroppedWithItsCaptures) {
  auto held = std::make_shared<int>(0);
  bool ran = false;
  {
    LoopEnv env({.offload_threads = 1});
    env.Post([&env] { env.Stop(); });
    env.Post([held, &ran] { ran = true; });
    env.After(absl::ZeroDuration(), [held, &ran] { ran = true; });
    env.Run();
    env.Offload([held, &ran] { ran = true; }, [held] {});
    env.Post([held, &ran] { ran = true; });
  }
  EXPECT_FALSE(ran);
  EXPECT_EQ(held.use_count(), 1);
}

TEST(LoopEnv, OffloadedWorksRunOffTheLoopAndAtTheSameTime) {
  LoopEnv env({.offload_threads = 2});
  const std::thread::id loop = std::this_thread::get_id();
  std::latch met(2);  // each work waits for the other
  int done = 0;
  for (int i = 0; i < 2; ++i) {
    env.Offload(
        [&] {
          EXPECT_NE(std::this_thread::get_id(), loop);
          met.arrive_and_wait();
        },
        [&] {
          EXPECT_EQ(std::this_thread::get_id(), loop);
          if (++done == 2) env.Stop();
        });
  }
  env.Run();
  EXPECT_EQ(done, 2);
}

TEST(LoopEnv, AReadableDescriptorWakesTheLoop) {
  LoopEnv env({.offload_threads = 0});
  const int fd = eventfd(0, EFD_NONBLOCK);
  uint64_t got = 0;
  ASSERT_TRUE(env.AddSource(fd,
                            [&] {
                              if (read(fd, &got, sizeof(got)) != sizeof(got)) return false;
                              env.Stop();
                              return true;
                            })
                  .ok());
  std::latch running(1);
  env.Post([&] { running.count_down(); });
  std::thread writer([&] {
    running.wait();
    const uint64_t value = 42;
    ASSERT_EQ(write(fd, &value, sizeof(value)), static_cast<ssize_t>(sizeof(value)));
  });
  env.Run();
  writer.join();
  EXPECT_EQ(got, 42);
  env.RemoveSource(fd);
  close(fd);
}

TEST(LoopEnv, ADrainIsAskedAfterEveryTaskEvenIfItsDescriptorIsSilent) {
  // As ZeroMQ has it: using a socket may swallow its descriptor's news.
  LoopEnv env({.offload_threads = 0});
  const int fd = eventfd(0, EFD_NONBLOCK);
  bool news = false;
  ASSERT_TRUE(env.AddSource(fd,
                            [&] {
                              if (news) env.Stop();
                              return std::exchange(news, false);
                            })
                  .ok());
  env.After(absl::Milliseconds(1), [&] { news = true; });
  env.Run();  // hangs if the loop sleeps without asking
  env.RemoveSource(fd);
  close(fd);
}

TEST(LoopEnv, ADrainMayRemoveItsOwnSource) {
  LoopEnv env({.offload_threads = 0});
  const int fd = eventfd(1, EFD_NONBLOCK);  // readable for ever
  int calls = 0;
  ASSERT_TRUE(env.AddSource(fd,
                            [&] {
                              ++calls;
                              env.RemoveSource(fd);
                              env.After(absl::Milliseconds(2), [&] { env.Stop(); });
                              return true;
                            })
                  .ok());
  env.Run();
  EXPECT_EQ(calls, 1);
  close(fd);
}

TEST(LoopEnv, AddSourceRefusesWhatCannotBeWatched) {
  LoopEnv env({.offload_threads = 0});
  const absl::Status status = env.AddSource(1 << 20, [] { return false; });
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("1048576"));
}

}  // namespace
}  // namespace parley
