// Aggregators by hand; the random histories are in aggregator_model_test.cc.
#include "ps/sync/aggregator.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "tests/unit/sync/sync_testing.h"

namespace parley {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Verdict = Aggregator::Verdict;

absl::StatusOr<Verdict> Add(Aggregator* aggregator, uint32_t worker, uint64_t tick,
                            double weight = 1) {
  Contribution contribution;
  contribution.worker = worker;
  contribution.weight = weight;
  return aggregator->Add(tick, std::move(contribution));
}

// The steps that are ready: "tick: contributors / closed", for instance "3: 0 2 / 0 1 2".
std::vector<std::string> PopAll(Aggregator* aggregator) {
  std::vector<std::string> steps;
  for (CompleteStep step; aggregator->PopComplete(&step);) {
    std::string text = absl::StrCat(step.tick, ":");
    for (const Contribution& c : step.contributions) absl::StrAppend(&text, " ", c.worker);
    absl::StrAppend(&text, " /");
    for (const uint32_t worker : step.closed) absl::StrAppend(&text, " ", worker);
    steps.push_back(text);
  }
  return steps;
}

TEST(BspAggregatorTest, AStepComesOutWholeInRankOrder) {
  const auto aggregator = Aggregator::Create(Mode(pb::Consistency::BSP), 3);
  EXPECT_EQ(*Add(aggregator.get(), 2, 0), Verdict::kAccepted);
  EXPECT_EQ(*Add(aggregator.get(), 2, 1), Verdict::kAccepted);
  EXPECT_EQ(*Add(aggregator.get(), 0, 0), Verdict::kAccepted);
  EXPECT_TRUE(PopAll(aggregator.get()).empty());
  EXPECT_EQ(aggregator->held(), 3u);
  EXPECT_EQ(*Add(aggregator.get(), 1, 0), Verdict::kAccepted);
  EXPECT_THAT(PopAll(aggregator.get()), ElementsAre("0: 0 1 2 / 0 1 2"));
  EXPECT_EQ(aggregator->held(), 1u);
}

TEST(BspAggregatorTest, HoldsTheReceivedBytesThemselves) {
  const auto aggregator = Aggregator::Create(Mode(pb::Consistency::BSP), 1);
  const Buffer bytes = Buffer::Copy("12345678"), keys = Buffer::Copy("a key is");
  ASSERT_TRUE(aggregator->Add(0, {0, 32.0, bytes, keys}).ok());
  CompleteStep step;
  ASSERT_TRUE(aggregator->PopComplete(&step));
  EXPECT_EQ(step.contributions[0].values.data(), bytes.data());
  EXPECT_EQ(step.contributions[0].keys.data(), keys.data());
  EXPECT_EQ(step.contributions[0].weight, 32.0);
}

TEST(BspAggregatorTest, BackupWorkersArePassedOverAndTheirGradientIsLate) {
  const auto aggregator = Aggregator::Create(Mode(pb::Consistency::BSP, 1), 3);
  ASSERT_TRUE(Add(aggregator.get(), 2, 0).ok());
  EXPECT_TRUE(PopAll(aggregator.get()).empty());
  ASSERT_TRUE(Add(aggregator.get(), 0, 0).ok());
  EXPECT_THAT(PopAll(aggregator.get()), ElementsAre("0: 0 2 / 0 1 2"));
  EXPECT_EQ(*Add(aggregator.get(), 1, 0), Verdict::kLate);
  EXPECT_EQ(*Add(aggregator.get(), 1, 1), Verdict::kAccepted);
  EXPECT_EQ(aggregator->held(), 1u);
}

TEST(BspAggregatorTest, HoweverManyBackupsOneGradientIsNeeded) {
  const auto aggregator = Aggregator::Create(Mode(pb::Consistency::BSP, 5), 2);
  EXPECT_TRUE(PopAll(aggregator.get()).empty());
  ASSERT_TRUE(Add(aggregator.get(), 1, 0).ok());
  EXPECT_THAT(PopAll(aggregator.get()), ElementsAre("0: 1 / 0 1"));
  EXPECT_TRUE(PopAll(aggregator.get()).empty());
}

TEST(BspAggregatorTest, StepsThatWaitedForALeaverComplete) {
  const auto aggregator = Aggregator::Create(Mode(pb::Consistency::BSP), 3);
  for (const uint64_t tick : {0, 1, 2}) {
    ASSERT_TRUE(Add(aggregator.get(), 0, tick).ok());
    ASSERT_TRUE(Add(aggregator.get(), 1, tick).ok());
  }
  ASSERT_TRUE(Add(aggregator.get(), 2, 0).ok());
  EXPECT_THAT(PopAll(aggregator.get()), ElementsAre("0: 0 1 2 / 0 1 2"));
  aggregator->OnLeave(2, 2);  // tick 1 is still on its way
  EXPECT_TRUE(PopAll(aggregator.get()).empty());
  ASSERT_TRUE(Add(aggregator.get(), 2, 1).ok());
  EXPECT_THAT(PopAll(aggregator.get()), ElementsAre("1: 0 1 2 / 0 1 2", "2: 0 1 / 0 1"));
  EXPECT_THAT(Add(aggregator.get(), 2, 3).status().message(), HasSubstr("left"));
}

TEST(BspAggregatorTest, WhatALeaverPushedBeforeCountsButStandsForNobody) {
  const auto aggregator = Aggregator::Create(Mode(pb::Consistency::BSP, 1), 3);
  ASSERT_TRUE(Add(aggregator.get(), 2, 0).ok());
  aggregator->OnLeave(2, 0);
  // Two live workers less one back-up: one of them is needed.
  EXPECT_TRUE(PopAll(aggregator.get()).empty());
  ASSERT_TRUE(Add(aggregator.get(), 1, 0).ok());
  EXPECT_THAT(PopAll(aggregator.get()), ElementsAre("0: 1 2 / 0 1 2"));
}

TEST(BspAggregatorTest, WhenAllHaveLeftAStepCompletesWithWhatItHas) {
  const auto aggregator = Aggregator::Create(Mode(pb::Consistency::BSP), 2);
  ASSERT_TRUE(Add(aggregator.get(), 0, 1).ok());
  aggregator->OnLeave(0, 0);
  EXPECT_TRUE(PopAll(aggregator.get()).empty());
  aggregator->OnLeave(1, 0);
  EXPECT_THAT(PopAll(aggregator.get()), ElementsAre("0: /", "1: 0 / 0"));
  EXPECT_EQ(aggregator->held(), 0u);
}

TEST(BspAggregatorTest, AWorkerThatLeavesBeforeItsFirstPushIsNotWaitedFor) {
  const auto aggregator = Aggregator::Create(Mode(pb::Consistency::BSP), 2);
  aggregator->OnLeave(1, 0);
  ASSERT_TRUE(Add(aggregator.get(), 0, 0).ok());
  EXPECT_THAT(PopAll(aggregator.get()), ElementsAre("0: 0 / 0"));
}

TEST(AggregatorTest, RefusalsNameWhatIsWrong) {
  for (const auto mode : {pb::Consistency::BSP, pb::Consistency::ASP}) {
    const auto aggregator = Aggregator::Create(Mode(mode), 2);
    EXPECT_THAT(Add(aggregator.get(), 2, 0).status().message(),
                HasSubstr("worker is 2; allowed: below 2"));
    EXPECT_THAT(Add(aggregator.get(), 0, 0, -1).status().message(), HasSubstr("weight is -1"));
    EXPECT_THAT(Add(aggregator.get(), 0, 0, std::nan("")).status().message(),
                HasSubstr("weight is nan"));
    ASSERT_TRUE(Add(aggregator.get(), 0, 0).ok());
    const absl::Status second = Add(aggregator.get(), 0, 0).status();
    EXPECT_EQ(second.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(second.message(), "a second gradient of tick 0 from worker 0");
    const absl::Status ahead = Add(aggregator.get(), 1, Aggregator::kMaxAhead + 1).status();
    EXPECT_EQ(ahead.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(ahead.message(), HasSubstr("tick is 1025; allowed: up to 1024 past"));
    EXPECT_FALSE(Add(aggregator.get(), 1, std::numeric_limits<uint64_t>::max()).ok());
    EXPECT_TRUE(Add(aggregator.get(), 1, Aggregator::kMaxAhead).ok());
    EXPECT_EQ(aggregator->held(), 2u);
    aggregator->OnLeave(7, 0);  // nobody
  }
}

TEST(ImmediateAggregatorTest, EachGradientComesOutAloneInItsWorkersTickOrder) {
  const auto aggregator = Aggregator::Create(Mode(pb::Consistency::SSP, 2), 2);
  ASSERT_TRUE(Add(aggregator.get(), 1, 1).ok());
  ASSERT_TRUE(Add(aggregator.get(), 1, 3).ok());
  EXPECT_TRUE(PopAll(aggregator.get()).empty());
  ASSERT_TRUE(Add(aggregator.get(), 0, 0).ok());
  ASSERT_TRUE(Add(aggregator.get(), 1, 0).ok());
  EXPECT_EQ(aggregator->held(), 4u);
  EXPECT_THAT(PopAll(aggregator.get()), ElementsAre("0: 0 / 0", "0: 1 / 1", "1: 1 / 1"));
  EXPECT_EQ(aggregator->held(), 1u);
  EXPECT_FALSE(Add(aggregator.get(), 1, 3).ok());
  EXPECT_FALSE(Add(aggregator.get(), 1, 1).ok());
}

TEST(ImmediateAggregatorTest, WhatALeaverPushedBehindAGapIsNotLost) {
  const auto aggregator = Aggregator::Create(Mode(pb::Consistency::ASP), 1);
  ASSERT_TRUE(Add(aggregator.get(), 0, 2).ok());
  ASSERT_TRUE(Add(aggregator.get(), 0, 4).ok());
  aggregator->OnLeave(0, 1);  // 0 is still to come; 1 and 3 are not
  EXPECT_TRUE(PopAll(aggregator.get()).empty());
  ASSERT_TRUE(Add(aggregator.get(), 0, 0).ok());
  EXPECT_THAT(PopAll(aggregator.get()), ElementsAre("0: 0 / 0", "2: 0 / 0", "4: 0 / 0"));
  EXPECT_FALSE(Add(aggregator.get(), 0, 5).ok());
}

}  // namespace
}  // namespace parley
