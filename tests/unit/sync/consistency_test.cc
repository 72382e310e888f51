// ConsistencyPolicy: by hand, and against a naive model over random histories.
#include "ps/sync/consistency.h"

#include <algorithm>
#include <map>

#include "gtest/gtest.h"
#include "tests/unit/sync/sync_testing.h"

namespace parley {
namespace {

constexpr uint64_t kUnbounded = ConsistencyPolicy::kUnbounded;

TEST(ConsistencyTest, StalenessOfEachMode) {
  EXPECT_EQ(ConsistencyPolicy::StalenessOf(Mode(pb::Consistency::BSP, 3)), 0u);
  EXPECT_EQ(ConsistencyPolicy::StalenessOf(Mode(pb::Consistency::SSP, 3)), 3u);
  EXPECT_EQ(ConsistencyPolicy::StalenessOf(Mode(pb::Consistency::ASP)), kUnbounded);
  // Staleness is SSP's alone.
  pb::Consistency bsp = Mode(pb::Consistency::BSP);
  bsp.set_staleness(4);
  EXPECT_EQ(ConsistencyPolicy::StalenessOf(bsp), 0u);
}

TEST(ConsistencyTest, BspWaitsForTheSlowest) {
  ConsistencyPolicy policy(3, 0);
  EXPECT_TRUE(policy.MayRead(0));
  EXPECT_FALSE(policy.MayRead(1));
  policy.OnTick(0, 0);
  policy.OnTick(2, 0);
  EXPECT_FALSE(policy.MayRead(1));
  EXPECT_EQ(policy.WaitsFor(1), "worker 1 (at tick 0)");
  policy.OnTick(1, 0);
  EXPECT_TRUE(policy.MayRead(1));
  EXPECT_EQ(policy.WaitsFor(1), "");
  EXPECT_EQ(policy.min_clock(), 1u);
}

TEST(ConsistencyTest, SspLetsReadersRunAheadByItsBoundAndNoFurther) {
  ConsistencyPolicy policy(2, 3);
  for (uint64_t tick = 0; tick < 8; ++tick) policy.OnTick(0, tick);
  EXPECT_TRUE(policy.MayRead(3));
  EXPECT_FALSE(policy.MayRead(4));
  policy.OnTick(1, 0);
  EXPECT_TRUE(policy.MayRead(4));
  EXPECT_FALSE(policy.MayRead(5));
  EXPECT_EQ(policy.WaitsFor(5), "worker 1 (at tick 1)");
}

TEST(ConsistencyTest, AspNeverWaits) {
  ConsistencyPolicy policy(2, kUnbounded);
  EXPECT_TRUE(policy.MayRead(kUnbounded));
  EXPECT_EQ(policy.WaitsFor(1000), "");
}

TEST(ConsistencyTest, HugeNumbersDoNotWrap) {
  ConsistencyPolicy policy(1, kUnbounded - 1);
  policy.OnTick(0, 9);
  EXPECT_TRUE(policy.MayRead(5));
  EXPECT_TRUE(policy.MayRead(kUnbounded));
  EXPECT_FALSE(ConsistencyPolicy(1, 0).MayRead(kUnbounded));
}

TEST(ConsistencyTest, NobodyWaitsForALeaverAndAJoinerIsWaitedForAgain) {
  ConsistencyPolicy policy(2, 0);
  policy.OnTick(0, 0);
  policy.OnTick(0, 1);
  policy.OnLeave(1);
  EXPECT_TRUE(policy.MayRead(2));
  policy.OnJoin(1, 1);
  EXPECT_FALSE(policy.MayRead(2));
  policy.OnLeave(0);
  policy.OnLeave(1);
  EXPECT_EQ(policy.min_clock(), 2u);
  EXPECT_TRUE(policy.MayRead(100));
}

TEST(ConsistencyTest, NamesFourAndCountsTheRest) {
  ConsistencyPolicy policy(7, 0);
  policy.OnTick(2, 0);
  EXPECT_EQ(policy.WaitsFor(1),
            "worker 0 (at tick 0), worker 1 (at tick 0), worker 3 (at tick 0), worker 4 (at tick "
            "0) and 2 more");
}

// The definition, computed anew at every question.
struct NaivePolicy {
  std::map<uint32_t, uint64_t> clocks;
  std::map<uint32_t, bool> live;

  uint64_t MinClock() const {
    uint64_t low = kUnbounded, high = 0;
    for (const auto& [worker, clock] : clocks) {
      if (live.at(worker)) low = std::min(low, clock);
      high = std::max(high, clock);
    }
    return low == kUnbounded ? high : low;
  }
  bool MayRead(uint64_t tick, uint64_t staleness) const {
    for (const auto& [worker, clock] : clocks) {
      if (live.at(worker) && clock + staleness < tick) return false;
    }
    return true;
  }
};

TEST(ConsistencyTest, AgreesWithANaiveModelOverRandomHistories) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Choices choices(seed);
    const uint32_t workers = 1 + choices.Below(6);
    const uint64_t staleness = choices.Below(4);
    ConsistencyPolicy policy(workers, staleness);
    NaivePolicy naive;
    for (uint32_t w = 0; w < workers; ++w) naive.clocks[w] = 0, naive.live[w] = true;
    for (int event = 0; event < 200; ++event) {
      const uint32_t w = choices.Below(workers);
      if (choices.OneIn(20)) {
        policy.OnLeave(w);
        naive.live[w] = false;
      } else if (choices.OneIn(20)) {
        const uint64_t clock = choices.Below(30);
        policy.OnJoin(w, clock);
        naive.live[w] = true;
        naive.clocks[w] = std::max(naive.clocks[w], clock);
      } else {
        // Mostly the next tick; sometimes one that is closed already, or a jump.
        const uint64_t tick = naive.clocks[w] + choices.Below(3) -
                              std::min<uint64_t>(naive.clocks[w], choices.Below(3));
        policy.OnTick(w, tick);
        naive.clocks[w] = std::max(naive.clocks[w], tick + 1);
      }
      ASSERT_EQ(policy.min_clock(), naive.MinClock()) << "seed " << seed << " event " << event;
      for (uint32_t v = 0; v < workers; ++v) {
        ASSERT_EQ(policy.clock(v), naive.clocks[v]) << "seed " << seed << " event " << event;
        ASSERT_EQ(policy.live(v), naive.live[v]) << "seed " << seed << " event " << event;
      }
      for (uint64_t ahead = 0; ahead < 8; ++ahead) {
        const uint64_t tick = naive.MinClock() + ahead;
        ASSERT_EQ(policy.MayRead(tick), naive.MayRead(tick, staleness))
            << "seed " << seed << " event " << event << " tick " << tick;
        ASSERT_EQ(policy.WaitsFor(tick).empty(), policy.MayRead(tick));
      }
    }
  }
}

}  // namespace
}  // namespace parley
