// What the guard, the clocks and the aggregators save, and what a copy that is told of closed steps
// makes of it.
#include "gmock/gmock.h"
#include "ps/sync/aggregator.h"
#include "ps/sync/consistency.h"
#include "ps/sync/replay_guard.h"
#include "tests/unit/sync/sync_testing.h"

namespace parley {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(SavedStateTest, AGuardThatWasLoadedKnowsWhatTheOtherKnew) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Choices choices(seed);
    ReplayGuard guard({3}), copy({1});
    ReplayGuard::Verdict verdict;
    uint64_t below = 1;
    for (int i = 0; i < 1500; ++i) {
      below += choices.Below(3);
      const uint64_t sequence = below + choices.Below(1000);
      ASSERT_TRUE(guard.Check(0, 3, sequence, below, &verdict).ok());
      if (verdict == ReplayGuard::Verdict::kNew) guard.Commit(0, sequence, below);
    }
    ASSERT_TRUE(copy.Load(0, guard.Save(0)).ok());
    for (uint64_t sequence = below; sequence < below + 1024; ++sequence) {
      ReplayGuard::Verdict other;
      ASSERT_TRUE(guard.Check(0, 3, sequence, below, &verdict).ok());
      ASSERT_TRUE(copy.Check(0, 3, sequence, below, &other).ok());
      ASSERT_EQ(verdict, other) << sequence;
    }
    EXPECT_FALSE(copy.Learn(0, 1, 1));
  }
}

TEST(SavedStateTest, ClocksThatWereLoadedGoOn) {
  ConsistencyPolicy policy(3, 0);
  policy.Load({4, 2, 1}, {true, true, false});
  EXPECT_EQ(policy.min_clock(), 2u);
  policy.OnTick(1, 4);
  EXPECT_EQ(policy.min_clock(), 4u);
}

TEST(SavedStateTest, ACopyDropsWhatItHoldsOfAStepThatWasClosedElsewhere) {
  for (const auto mode : {pb::Consistency::BSP, pb::Consistency::SSP}) {
    auto aggregator = Aggregator::Create(Mode(mode), 2);
    auto copy = Aggregator::Create(Mode(mode), 2);
    ASSERT_TRUE(aggregator->Add(1, {0, 2}).ok());  // tick 0 is still missing
    ASSERT_TRUE(copy->Load(aggregator->Save()).ok());
    EXPECT_EQ(copy->held(), 1u);
    ASSERT_NE(copy->Find(1, 0), nullptr);
    std::vector<Contribution> dropped;
    EXPECT_THAT(std::string(copy->Close(0, {7}, &dropped).message()), HasSubstr("below 2"));
    ASSERT_TRUE(copy->Close(0, {0}, &dropped).ok());
    EXPECT_EQ(dropped.size(), 0u);
    ASSERT_TRUE(copy->Close(1, {0}, &dropped).ok());
    EXPECT_EQ(dropped.size(), 1u);
    EXPECT_EQ(copy->held(), 0u);
    EXPECT_EQ(copy->NextTick(0), 2u);
    EXPECT_FALSE(copy->Close(1, {0}, &dropped).ok());
  }
}

TEST(SavedStateTest, AStepThatIsPutBackIsCompleteAgain) {
  auto aggregator = Aggregator::Create(Mode(pb::Consistency::BSP), 2);
  for (uint32_t w : {0, 1}) ASSERT_TRUE(aggregator->Add(0, {w, 1.0 + w}).ok());
  CompleteStep step;
  ASSERT_TRUE(aggregator->PopComplete(&step));
  Aggregator::State state = aggregator->Save();
  state.Return(step);
  auto copy = Aggregator::Create(Mode(pb::Consistency::BSP), 2);
  ASSERT_TRUE(copy->Load(state).ok());
  CompleteStep again;
  ASSERT_TRUE(copy->PopComplete(&again));
  EXPECT_EQ(again.tick, 0u);
  EXPECT_THAT(again.closed, ElementsAre(0, 1));
  state.held.push_back(state.held[0]);
  EXPECT_THAT(std::string(copy->Load(state).message()), HasSubstr("a second gradient"));
}

}  // namespace
}  // namespace parley
