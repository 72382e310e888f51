// What becomes of parked pushes, refusals, and requests whose shard is another's now.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <utility>

#include "tests/unit/worker/client/shard_queues_testing.h"

namespace parley {
namespace {

using ::testing::ElementsAre;

using ShardMovesTest = ShardQueuesTest;

// With backups a push waits for other workers once it is parked; they may wait for what is behind.
TEST_F(ShardMovesTest, APushThatIsParkedGivesItsCreditBackOnce) {
  for (int i = 0; i < 50; ++i) Enqueue(Make(Kind::kPush, "push"));
  Settle();
  EXPECT_EQ(arrived_.size(), ShardQueues::kCreditMessages);
  while (arrived_.size() < 48) {
    const size_t before = arrived_.size();
    Park();
    ASSERT_EQ(arrived_.size(), before + ShardQueues::kCreditMessages);
  }
  Park();
  EXPECT_EQ(arrived_.size(), 50u);
  Park();
  for (int i = 0; i < 10; ++i) Answer();
  // Had their answers given it back once more, there would be more than this.
  for (int i = 0; i < 50; ++i) Enqueue(Make(Kind::kPush, "more"));
  Settle();
  EXPECT_EQ(arrived_.size(), 50 + ShardQueues::kCreditMessages);
}

TEST_F(ShardMovesTest, APullThatIsParkedKeepsItsCredit) {
  for (int i = 0; i < 20; ++i) Enqueue(Make(Kind::kPull, "pull"));
  Settle();
  Park();
  EXPECT_EQ(arrived_.size(), ShardQueues::kCreditMessages);
}

TEST_F(ShardMovesTest, WhatMovesLeavesForItsNewShardInThePlaceItHadAndTheRestStays) {
  Fill(Kind::kPush);
  Enqueue(Make(Kind::kPush, "step 3", 3));
  Enqueue(Make(Kind::kPush, "step 2", 2));
  Enqueue(Make(Kind::kPush, "step 1", 1));
  Enqueue(Make(Kind::kPull, "pull of 2", 2));
  Move({"step 3", "step 1", "pull of 2"});
  EXPECT_THAT(arrived_, ElementsAre("step 1", "step 3", "pull of 2"));
  for (const Question& asked : held_) {
    EXPECT_EQ(asked.header.rank(), 4u);
    EXPECT_EQ(asked.header.incarnation(), 9u);
  }
  EXPECT_EQ(queues_->pushes_open(), 4u);
  while (!held_.empty()) Answer();
  EXPECT_THAT(arrived_, ElementsAre("step 1", "step 3", "pull of 2", "step 2"));
  EXPECT_EQ(queues_->pushes_open(), 0u);
}

// What is at the head of the new shard's queue may wait for the sequence of what was on its way.
TEST_F(ShardMovesTest, APushOnItsWayThatMovesPassesThoseThatWaitForItsSequence) {
  for (bool small : {true, false}) {
    arrived_.clear();
    moved_.clear();
    auto first = Make(Kind::kPush, "first", small ? 0 : 5);
    auto second = Make(Kind::kPush, "second", small ? 0 : 4);  // came later, is more urgent
    first->small = second->small = small;
    Enqueue(std::move(first));
    barred_ = "second";
    frees_ = "first";
    Enqueue(std::move(second));
    Settle();
    Move({"first", "second"});
    ASSERT_THAT(arrived_, ElementsAre("first", "first"));
    Answer();
    EXPECT_THAT(arrived_, ElementsAre("first", "first", "second"));
    Answer();
    EXPECT_EQ(queues_->pushes_open(), 0u);
    EXPECT_TRUE(error_.ok());
  }
}

// The pull of step 9 may be parked there until this worker has pushed step 8.
TEST_F(ShardMovesTest, APullOnItsWayThatMovesTakesNoPlaceFromThoseOfAnEarlierStep) {
  Enqueue(Make(Kind::kPull, "a later pull", 9));
  Settle();
  moved_["fill"] = 1;
  queues_->Enqueue(1, [this] {
    auto fill = Make(Kind::kPull, "fill", 9);
    fill->pull_bytes = ShardQueues::kCreditBytes;
    return fill;
  }());
  queues_->Pause();
  moved_["a later pull"] = moved_["pull 8"] = 1;
  queues_->Enqueue(1, Make(Kind::kPull, "pull 8", 8));
  queues_->Reroute();
  Settle();
  EXPECT_THAT(arrived_, ElementsAre("a later pull", "fill", "pull 8"));
}

TEST_F(ShardMovesTest, APushPullThatMovesStaysOneWhereAPullMayLeave) {
  Enqueue(Make(Kind::kPushPull, "layer 1", 1));
  Enqueue(Make(Kind::kPushPull, "layer 2", 1));
  Settle();
  Park();
  Move({"layer 1"});
  EXPECT_EQ(held_.back().header.kind(), pb::PUSH_PULL);
  // Without credit for its answer it leaves alone, as any.
  auto fill = Make(Kind::kPull, "fill", 0);
  fill->pull_bytes = ShardQueues::kCreditBytes;
  moved_["fill"] = 1;
  queues_->Enqueue(1, std::move(fill));
  moved_["layer 2's pull"] = 1;
  Move({"layer 2"});
  EXPECT_EQ(held_.back().header.body(), "layer 2");
  EXPECT_EQ(held_.back().header.kind(), pb::PUSH);
  while (!held_.empty()) Answer();
  EXPECT_THAT(answered_, ElementsAre("layer 1", "fill", "layer 2", "layer 2's pull"));
  EXPECT_EQ(queues_->pushes_open(), 0u);
}

TEST_F(ShardMovesTest, WhatIsRefusedWaitsForAMapAndHoldsUpNobody) {
  for (int i = 0; i < 20; ++i) Enqueue(Make(Kind::kPush, "push"));
  Settle();
  for (int i = 0; i < 16; ++i) Answer(absl::FailedPreconditionError("not here"));
  EXPECT_EQ(arrived_.size(), 20u);  // with the credit of those
  EXPECT_EQ(queues_->pushes_open(), 20u);
  EXPECT_EQ(queues_->WaitingFor(), "a newer partition map for the push to the shard: not here");
  Move({});                              // no news of them: asked again all the same
  EXPECT_EQ(arrived_.size(), 20u + 12);  // beside the four
  Answer(absl::FailedPreconditionError("not here"));
  Move({"push"});
  while (!held_.empty()) Answer();
  EXPECT_EQ(answered_.size(), 20u);
  EXPECT_EQ(queues_->pushes_open(), 0u);
  EXPECT_EQ(queues_->WaitingFor(), "");
  EXPECT_TRUE(error_.ok());
}

// A partition may have gone and come back between two maps of this worker.
TEST_F(ShardMovesTest, ARefusalThatIsOlderThanTheMapIsAskedAgainAtOnce) {
  Enqueue(Make(Kind::kPush, "push"));
  Settle();
  Move({});
  Answer(absl::FailedPreconditionError("not here"));
  EXPECT_THAT(arrived_, ElementsAre("push", "push"));
  Answer(absl::FailedPreconditionError("not here"));
  EXPECT_EQ(arrived_.size(), 2u);
  Move({});
  Answer();
  EXPECT_THAT(answered_, ElementsAre("push"));
}

TEST_F(ShardMovesTest, RefusalsInARowCountAsOneAndBeingTakenEndsThem) {
  Enqueue(Make(Kind::kPush, "push"));
  Settle();
  const auto pass = [this](absl::Duration time) {
    world_.RunUntil([this] { return !error_.ok(); }, time);
  };
  Answer(absl::FailedPreconditionError("not here"));
  pass(absl::Seconds(40));
  Move({});
  Park();  // it is there now
  Answer(absl::FailedPreconditionError("not here any more"));
  pass(absl::Seconds(40));
  ASSERT_TRUE(error_.ok()) << error_;
  Move({});
  Answer(absl::FailedPreconditionError("nor now"));
  pass(absl::Seconds(25));
  EXPECT_EQ(error_, absl::FailedPreconditionError("push to the shard: nor now; no partition map "
                                                  "that came within 1m changed that"));
}

}  // namespace
}  // namespace parley
