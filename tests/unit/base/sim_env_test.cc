#include "ps/base/sim_env.h"

#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace parley {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

const auto kNever = [] { return false; };

TEST(SimWorldTest, RunsEventsByTimeThenByInsertion) {
  SimWorld world(1);
  std::vector<int> ran;
  world.Schedule(absl::Milliseconds(2), [&ran] { ran.push_back(3); });
  world.Schedule(absl::Milliseconds(1), [&ran] { ran.push_back(1); });
  world.Schedule(absl::Milliseconds(1), [&ran] { ran.push_back(2); });
  world.Schedule(absl::Milliseconds(-5), [&ran] { ran.push_back(0); });
  while (world.RunOne()) {
  }
  EXPECT_THAT(ran, ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(world.Now(), absl::Milliseconds(2));
  EXPECT_EQ(world.events(), 4u);
}

TEST(SimWorldTest, RunUntilStopsAtThePredicateOrTheLimit) {
  SimWorld world(1);
  int ran = 0;
  for (int i = 1; i <= 5; ++i) world.Schedule(absl::Seconds(i), [&ran] { ++ran; });
  EXPECT_TRUE(world.RunUntil([&ran] { return ran == 2; }, absl::Hours(1)));
  EXPECT_EQ(world.Now(), absl::Seconds(2));
  EXPECT_FALSE(world.RunUntil(kNever, absl::Milliseconds(1500)));
  EXPECT_EQ(ran, 3);
  EXPECT_EQ(world.Now(), absl::Milliseconds(3500));
  EXPECT_TRUE(world.RunUntil([] { return true; }, absl::ZeroDuration()));
  EXPECT_FALSE(world.RunUntil(kNever, absl::InfiniteDuration()));
  EXPECT_EQ(ran, 5);
  EXPECT_EQ(world.Now(), absl::Seconds(5));
}

TEST(SimWorldTest, RandomnessComesFromTheSeedAlone) {
  SimWorld a(7), b(7), c(8);
  bool differs = false;
  for (int i = 0; i < 100; ++i) {
    const uint64_t value = a.Random();
    EXPECT_EQ(value, b.Random());
    differs |= value != c.Random();
    const absl::Duration d = a.RandomDuration(absl::Milliseconds(1), absl::Milliseconds(3));
    EXPECT_EQ(d, b.RandomDuration(absl::Milliseconds(1), absl::Milliseconds(3)));
    EXPECT_GE(d, absl::Milliseconds(1));
    EXPECT_LE(d, absl::Milliseconds(3));
  }
  EXPECT_TRUE(differs);
}

TEST(SimEnvTest, TimersFireAtTheirTimeAndNotWhenCancelled) {
  SimWorld world(1);
  SimEnv env(&world, "node");
  std::vector<std::string> ran;
  env.After(absl::Seconds(2), [&] { ran.push_back("two " + absl::FormatDuration(env.Now())); });
  const TimerId cancelled = env.After(absl::Seconds(1), [&] { ran.push_back("never"); });
  TimerId own = kNoTimer;
  own = env.After(absl::Seconds(3), [&] { env.Cancel(own); });
  env.Cancel(cancelled);
  env.Cancel(cancelled);
  env.Cancel(kNoTimer);
  env.Cancel(TimerId{12345});
  EXPECT_FALSE(world.RunUntil(kNever, absl::Seconds(10)));
  EXPECT_THAT(ran, ElementsAre("two 2s"));
}

TEST(SimEnvTest, CancellingGivesTheTaskBackAtOnce) {
  SimWorld world(1);
  SimEnv env(&world, "node");
  auto held = std::make_shared<int>(1);
  const TimerId id = env.After(absl::Hours(1), [held] {});
  EXPECT_EQ(held.use_count(), 2);
  env.Cancel(id);
  EXPECT_EQ(held.use_count(), 1);
}

TEST(SimEnvTest, PostsKeepTheirOrderAndTimeStandsStill) {
  SimWorld world(1);
  SimEnv env(&world, "node");
  std::vector<int> ran;
  env.Post([&] {
    ran.push_back(1);
    env.Post([&] { ran.push_back(3); });
  });
  env.After(absl::Seconds(-1), [&] { ran.push_back(2); });
  while (world.RunOne()) {
  }
  EXPECT_THAT(ran, ElementsAre(1, 2, 3));
  EXPECT_EQ(env.Now(), absl::ZeroDuration());
}

TEST(SimEnvTest, NowCountsFromTheStartOfTheNode) {
  SimWorld world(1);
  EXPECT_FALSE(world.RunUntil(kNever, absl::Seconds(5)));
  world.Schedule(absl::Seconds(5), [] {});
  EXPECT_FALSE(world.RunUntil(kNever, absl::Seconds(5)));
  const absl::Duration then = world.Now();
  SimEnv late(&world, "late");
  EXPECT_EQ(late.Now(), absl::ZeroDuration());
  late.After(absl::Seconds(1), [] {});
  while (world.RunOne()) {
  }
  EXPECT_EQ(late.Now(), absl::Seconds(1));
  EXPECT_EQ(world.Now(), then + absl::Seconds(1));
}

TEST(SimEnvTest, OffloadWorksInlineAndIsDoneWithinItsBounds) {
  SimWorld world(3);
  SimEnv env(&world, "node");
  env.SetOffloadDelay(absl::Milliseconds(10), absl::Milliseconds(20));
  int worked = 0;
  std::vector<int> done;
  for (int i = 0; i < 50; ++i) {
    env.Offload([&worked] { ++worked; },
                [&, i] {
                  done.push_back(i);
                  EXPECT_GE(env.Now(), absl::Milliseconds(10));
                  EXPECT_LE(env.Now(), absl::Milliseconds(20));
                });
  }
  EXPECT_EQ(worked, 50);
  EXPECT_THAT(done, IsEmpty());
  while (world.RunOne()) {
  }
  EXPECT_EQ(done.size(), 50u);
  EXPECT_FALSE(std::is_sorted(done.begin(), done.end()));  // works overtake each other
}

TEST(SimEnvTest, TheDeadDoNothing) {
  SimWorld world(1);
  SimEnv env(&world, "node"), other(&world, "other");
  int ran = 0, other_ran = 0;
  auto held = std::make_shared<int>(1);
  env.Post([&ran, held] { ++ran; });
  env.After(absl::Seconds(1), [&ran] { ++ran; });
  env.Offload([] {}, [&ran] { ++ran; });
  other.After(absl::Seconds(2), [&other_ran] { ++other_ran; });
  env.Kill();
  EXPECT_FALSE(env.alive());
  EXPECT_EQ(held.use_count(), 1);
  env.Post([&ran] { ++ran; });
  env.Offload([&ran] { ++ran; }, [&ran] { ++ran; });
  while (world.RunOne()) {
  }
  EXPECT_EQ(ran, 0);
  EXPECT_EQ(other_ran, 1);
}

TEST(SimEnvTest, EventsOutliveTheirEnv) {
  SimWorld world(1);
  int ran = 0;
  {
    SimEnv env(&world, "short-lived");
    env.After(absl::Seconds(1), [&ran] { ++ran; });
  }
  while (world.RunOne()) {
  }
  EXPECT_EQ(ran, 0);
}

TEST(SimEnvTest, ATaskMayKillItsOwnNode) {
  SimWorld world(1);
  SimEnv env(&world, "node");
  int ran = 0;
  env.Post([&, held = std::make_unique<int>(5)] {
    env.Kill();
    ran += *held;  // the running task is still whole
  });
  env.Post([&ran] { ++ran; });
  while (world.RunOne()) {
  }
  EXPECT_EQ(ran, 5);
}

TEST(SimEnvTest, EachNodeHasRandomNumbersOfItsOwn) {
  SimWorld world(9), same(9);
  SimEnv a(&world, "a"), b(&world, "b"), a2(&same, "a"), b2(&same, "b");
  const uint64_t first = a.Random();
  EXPECT_NE(first, b.Random());
  EXPECT_NE(first, a.Random());
  b2.Random();  // the order of drawing among nodes does not matter
  EXPECT_EQ(first, a2.Random());
}

TEST(SimEnvTest, WhatFallsDueInAStallRunsRightAfterItInOrder) {
  SimWorld world(1);
  SimEnv stalled(&world, "stalled"), other(&world, "other");
  std::vector<std::string> ran;
  const auto note = [&](const char* what) {
    ran.push_back(what + std::string(" ") + absl::FormatDuration(world.Now()));
  };
  stalled.After(absl::Milliseconds(1), [&] { note("a"); });
  stalled.After(absl::Milliseconds(3), [&] { note("b"); });
  stalled.After(absl::Milliseconds(30), [&] { note("c"); });
  other.After(absl::Milliseconds(2), [&] { note("other"); });
  stalled.Stall(absl::Milliseconds(10));
  EXPECT_EQ(stalled.stalled_until(), absl::Milliseconds(10));
  while (world.RunOne()) {
  }
  EXPECT_THAT(ran, ElementsAre("other 2ms", "a 10ms", "b 10ms", "c 30ms"));
  EXPECT_EQ(stalled.Now(), absl::Milliseconds(30));
}

TEST(SimEnvTest, AClockThatJumpsAheadEndsTimersSoonerAndOnce) {
  SimWorld world(1);
  SimEnv jumping(&world, "jumping"), other(&world, "other");
  std::vector<std::string> ran;
  const auto note = [&](const char* what) {
    ran.push_back(what + std::string(" ") + absl::FormatDuration(world.Now()));
  };
  jumping.After(absl::Milliseconds(5), [&] { note("overdue"); });
  jumping.After(absl::Milliseconds(14), [&] { note("soon"); });
  jumping.After(absl::InfiniteDuration(), [&] { note("never"); });
  other.After(absl::Milliseconds(5), [&] { note("other"); });
  jumping.JumpAhead(absl::Milliseconds(10));
  EXPECT_EQ(jumping.Now(), absl::Milliseconds(10));
  EXPECT_EQ(other.Now(), absl::ZeroDuration());
  jumping.After(absl::Milliseconds(7), [&] { note("new"); });
  while (world.RunOne()) {
  }
  EXPECT_THAT(ran, ElementsAre("overdue 0", "soon 4ms", "other 5ms", "new 7ms"));
}

}  // namespace
}  // namespace parley
