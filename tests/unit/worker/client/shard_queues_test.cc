// Order, credit and lanes of one shard's queue.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>

#include "tests/unit/worker/client/shard_queues_testing.h"

namespace parley {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST_F(ShardQueuesTest, WhatIsNeededSoonerLeavesFirstAndEqualsLeaveAsTheyCame) {
  Fill(Kind::kPush);
  Enqueue(Make(Kind::kPush, "step 3, layer 9", 3, 9));
  Enqueue(Make(Kind::kPush, "step 3, layer 1", 3, 1));
  Enqueue(Make(Kind::kPush, "step 3, layer 1 again", 3, 1));
  Enqueue(Make(Kind::kPush, "step 2, layer 5", 2, 5));
  Settle();
  EXPECT_TRUE(arrived_.empty());
  Answer();
  // The network kept the order here, since all delays are equal.
  EXPECT_THAT(arrived_, ElementsAre("step 2, layer 5", "step 3, layer 1", "step 3, layer 1 again",
                                    "step 3, layer 9"));
}

TEST_F(ShardQueuesTest, WhatBecomesUrgentStandsBehindNoMoreThanTheCredit) {
  for (int i = 0; i < 20; ++i) {
    auto bulk = Make(Kind::kPush, "bulk", 1, 50);
    bulk->push_bytes = ShardQueues::kCreditBytes / 4;
    Enqueue(std::move(bulk));
  }
  Enqueue(Make(Kind::kPush, "urgent", 1, 0));
  Settle();
  EXPECT_THAT(arrived_, ElementsAre("bulk", "bulk", "bulk", "bulk"));
  Answer();
  EXPECT_EQ(arrived_.back(), "urgent");
}

TEST_F(ShardQueuesTest, CreditIsInMessagesAndInBytesAndOneMessageIsAlwaysLetGo) {
  for (int i = 0; i < 40; ++i) Enqueue(Make(Kind::kPush, "small"));
  Settle();
  EXPECT_EQ(arrived_.size(), ShardQueues::kCreditMessages);
  while (!held_.empty()) Answer();
  EXPECT_EQ(answered_.size(), 40u);
  arrived_.clear();
  for (int i = 0; i < 2; ++i) {
    auto huge = Make(Kind::kPush, "huge");
    huge->push_bytes = 10 * ShardQueues::kCreditBytes;
    Enqueue(std::move(huge));
  }
  Settle();
  EXPECT_EQ(arrived_.size(), 1u);
  Answer();
  EXPECT_EQ(arrived_.size(), 2u);
}

TEST_F(ShardQueuesTest, SmallMessagesHaveALaneOfTheirOwn) {
  Fill(Kind::kPush);
  Fill(Kind::kPull);
  Enqueue(Make(Kind::kPush, "bulk"));
  for (Kind kind : {Kind::kPush, Kind::kPull, Kind::kLeave}) {
    auto message = Make(kind, "small", 99);
    message->small = true;
    Enqueue(std::move(message));
  }
  Settle();
  EXPECT_THAT(arrived_, ElementsAre("small", "small", "small"));
}

TEST_F(ShardQueuesTest, APullStaysBehindThePushesBeforeItAndPushesPassPulls) {
  Fill(Kind::kPush);
  Enqueue(Make(Kind::kPush, "push 1", 1));
  Enqueue(Make(Kind::kPull, "pull 2", 2));
  Settle();
  EXPECT_TRUE(arrived_.empty());
  Answer();
  EXPECT_THAT(arrived_, ElementsAre("push 1", "pull 2"));
  Answer();
  Answer();
  Fill(Kind::kPull, 4);
  Enqueue(Make(Kind::kPull, "pull 4", 4));
  Enqueue(Make(Kind::kPush, "push 5", 5));
  Settle();
  EXPECT_THAT(arrived_, ElementsAre("push 5"));
}

TEST_F(ShardQueuesTest, SmallPullsLeaveByTheirStepAndAfterTheSmallPushesBeforeThem) {
  const auto small = [this](Kind kind, const char* name, uint64_t step) {
    auto message = Make(kind, name, step);
    message->small = true;
    message->push_bytes = message->pull_bytes = ShardQueues::kCreditBytes;  // one at a time
    Enqueue(std::move(message));
  };
  small(Kind::kPush, "push a", 0);
  small(Kind::kPush, "push b", 0);
  small(Kind::kPull, "pull 5", 10);
  small(Kind::kPull, "pull 4", 8);
  small(Kind::kPush, "push c", 0);
  Settle();
  EXPECT_THAT(arrived_, ElementsAre("push a"));
  Answer();  // push b goes, and then no push before the pulls is left
  EXPECT_THAT(arrived_, ElementsAre("push a", "push b", "pull 4"));
  Answer();
  Answer();
  EXPECT_THAT(arrived_, ElementsAre("push a", "push b", "pull 4", "push c", "pull 5"));
}

// A pull of step 9 may be parked until this worker has pushed step 8, for which it needs the
// weights of step 8 first.
TEST_F(ShardQueuesTest, PullsOfALaterStepTakeNoCreditFromThoseOfAnEarlier) {
  Fill(Kind::kPull, 9);
  Enqueue(Make(Kind::kPull, "pull 10", 10));
  Enqueue(Make(Kind::kPull, "pull 8", 8));
  Settle();
  EXPECT_THAT(arrived_, ElementsAre("pull 8"));
}

TEST_F(ShardQueuesTest, APushNeverWaitsForTheAnswerOfAPushPull) {
  Fill(Kind::kPull, 1);  // as if push-pulls before it were parked
  auto fused = Make(Kind::kPushPull, "layer 3", 1);
  fused->pull_bytes = fused->push_bytes = 100;
  Enqueue(std::move(fused));
  EXPECT_EQ(queues_->pushes_open(), 1u);
  Settle();
  EXPECT_THAT(arrived_, ElementsAre("layer 3"));
  EXPECT_EQ(held_.back().header.kind(), pb::PUSH);
  Answer();  // the fill
  EXPECT_THAT(arrived_, ElementsAre("layer 3", "layer 3's pull"));
  Answer();
  Answer();
  EXPECT_THAT(answered_, ElementsAre("fill", "layer 3", "layer 3's pull"));
  EXPECT_EQ(queues_->pushes_open(), 0u);
  Enqueue(Make(Kind::kPushPull, "layer 4", 1));
  Settle();
  EXPECT_EQ(held_.back().header.kind(), pb::PUSH_PULL);
}

TEST_F(ShardQueuesTest, APushWithoutASequenceWaitsAndSoDoThoseBehindIt) {
  barred_ = "first";
  Enqueue(Make(Kind::kPush, "first", 1));
  Enqueue(Make(Kind::kPush, "second", 2));
  Settle();
  EXPECT_TRUE(arrived_.empty());
  barred_.clear();
  Enqueue(Make(Kind::kPush, "third", 3));
  Settle();
  EXPECT_THAT(arrived_, ElementsAre("first", "second", "third"));
}

TEST_F(ShardQueuesTest, AskedAgainWhereTheRequestSaysSo) {
  Enqueue(Make(Kind::kPull, "pull"));
  Settle();
  Answer(absl::NotFoundError("no such list"));
  EXPECT_THAT(arrived_, ElementsAre("pull", "pull"));
  Answer();
  EXPECT_THAT(answered_, ElementsAre("pull"));
  EXPECT_TRUE(error_.ok());
}

// Nothing else is in flight whose answer could set it going.
TEST_F(ShardQueuesTest, WhatWaitsForTheSequenceOfAPushPullLeavesWithItsAnswer) {
  Enqueue(Make(Kind::kPushPull, "first", 1));
  barred_ = "second";
  frees_ = "first";
  Enqueue(Make(Kind::kPush, "second", 2));
  Settle();
  EXPECT_THAT(arrived_, ElementsAre("first"));
  EXPECT_EQ(held_.back().header.kind(), pb::PUSH_PULL);
  Answer();
  EXPECT_THAT(arrived_, ElementsAre("first", "second"));
}

TEST_F(ShardQueuesTest, WhatIsAskedAgainPassesThoseThatWaitForItsSequence) {
  for (bool small : {true, false}) {
    arrived_.clear();
    auto first = Make(Kind::kPush, "first", small ? 0 : 5);
    auto second = Make(Kind::kPush, "second", small ? 0 : 4);  // came later, is more urgent
    first->small = second->small = small;
    Enqueue(std::move(first));
    barred_ = "second";
    frees_ = "first";
    Enqueue(std::move(second));
    Settle();
    Answer(absl::NotFoundError("no such list"));
    ASSERT_THAT(arrived_, ElementsAre("first", "first"));
    Answer();
    EXPECT_THAT(arrived_, ElementsAre("first", "first", "second"));
    Answer();
    EXPECT_EQ(queues_->pushes_open(), 0u);
  }
}

TEST_F(ShardQueuesTest, TheFirstErrorEndsEverything) {
  bool acknowledged = false;
  refuse_ = "bad";
  Enqueue(Make(Kind::kPull, "bad"));
  Enqueue(Make(Kind::kPush, "push"));
  queues_->WhenAllAcknowledged([&] { acknowledged = true; });
  EXPECT_THAT(queues_->WaitingFor(), HasSubstr("bad to the shard"));
  Settle();
  Answer();
  EXPECT_EQ(error_, absl::InvalidArgumentError("bad to the shard: it does not fit"));
  EXPECT_EQ(node_.rpc.in_flight(), 0u);
  Enqueue(Make(Kind::kPush, "late"));
  Settle();
  EXPECT_FALSE(acknowledged);
  EXPECT_EQ(arrived_.size(), 2u);
  EXPECT_EQ(queues_->WaitingFor(), "");
}

}  // namespace
}  // namespace parley
