// Order, credit and lanes of one shard's queue, against a server that answers when the test says.
#include "worker/client/shard_queues.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/unit/worker/fake_server.h"

namespace parley {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Kind = ShardRequest::Kind;

class ShardQueuesTest : public ::testing::Test {
 protected:
  // A message that is known by its name, which travels as its body.
  class Message : public ShardRequest {
   public:
    Message(ShardQueuesTest* test, Kind kind, std::string name)
        : ShardRequest(kind), test_(test), name_(std::move(name)) {}

    Frame MakeFrame() override {
      Frame frame;
      frame.header.set_kind(kind == Kind::kPush       ? pb::PUSH
                            : kind == Kind::kPushPull ? pb::PUSH_PULL
                                                      : pb::PULL);
      frame.header.set_body(name_);
      return frame;
    }
    std::string What(const std::string& shard) const override { return name_ + " to " + shard; }
    bool MayLeave() const override { return test_->barred_ != name_; }
    std::unique_ptr<ShardRequest> Split() override {
      auto pull = std::make_unique<Message>(test_, Kind::kPull, name_ + "'s pull");
      pull->step = step + 1;
      pull->pull_tick = pull_tick;
      pull->pull_bytes = pull_bytes;
      return pull;
    }
    bool TryAgain(const absl::Status& error) override { return absl::IsNotFound(error); }
    absl::Status OnAnswer(Frame) override {
      test_->answered_.push_back(name_);
      if (test_->frees_ == name_) test_->barred_.clear();
      return test_->refuse_ == name_ ? absl::InvalidArgumentError("it does not fit")
                                     : absl::OkStatus();
    }

   private:
    ShardQueuesTest* const test_;
    const std::string name_;
  };

  ShardQueuesTest() {
    network_.SetOptions({.min_delay = absl::Milliseconds(1), .max_delay = absl::Milliseconds(1)});
    server_ = std::make_unique<FakeServer>(
        &world_, &network_, 0, [this](FakeServer&, NodeId from, Frame request) {
          for (const auto& [node, header] : held_) {
            if (header.request_id() == request.header.request_id()) return;  // a retry
          }
          arrived_.push_back(request.header.body());
          held_.emplace_back(from, request.header);
        });
    EXPECT_TRUE(node_.transport->Connect(server_->node(), server_->endpoint()).ok());
    ShardQueues::Options options;
    options.on_error = [this](const absl::Status& status) { error_ = status; };
    queues_ = std::make_unique<ShardQueues>(&node_.rpc, std::move(options));
    queues_->AddShard(server_->node(), "the shard");
  }

  std::unique_ptr<Message> Make(Kind kind, std::string name, uint64_t step = 0, uint64_t rank = 0) {
    auto message = std::make_unique<Message>(this, kind, std::move(name));
    message->step = step;
    message->rank = rank;
    message->push_bytes = message->pull_bytes = 1;
    message->pull_tick = step;
    return message;
  }
  void Enqueue(std::unique_ptr<Message> message) { queues_->Enqueue(0, std::move(message)); }
  // Bulk that takes all the credit there is for its kind.
  void Fill(Kind kind, uint64_t tick = 0) {
    auto message = Make(kind, "fill", 0);
    message->push_bytes = message->pull_bytes = ShardQueues::kCreditBytes;
    message->pull_tick = tick;
    Enqueue(std::move(message));
    Settle();
    arrived_.clear();
  }
  void Settle() {
    world_.RunUntil([] { return false; }, absl::Milliseconds(10));
  }
  // Answers what was held longest.
  void Answer(const absl::Status& status = absl::OkStatus()) {
    auto [from, header] = held_.front();
    held_.pop_front();
    if (status.ok()) {
      server_->rpc().Reply(from, header, Frame());
    } else {
      server_->rpc().ReplyError(from, header, status);
    }
    Settle();
  }

  SimWorld world_{1};
  SimNetwork network_{&world_, {}};
  FakeClientNode node_{&world_, &network_, 0};
  std::unique_ptr<FakeServer> server_;
  std::deque<std::pair<NodeId, pb::FrameHeader>> held_;
  std::vector<std::string> arrived_, answered_;
  std::string barred_;  // waits for a sequence
  std::string frees_;   // with its answer, what is barred
  std::string refuse_;
  absl::Status error_;
  std::unique_ptr<ShardQueues> queues_;
};

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
  EXPECT_EQ(held_.back().second.kind(), pb::PUSH);
  Answer();  // the fill
  EXPECT_THAT(arrived_, ElementsAre("layer 3", "layer 3's pull"));
  Answer();
  Answer();
  EXPECT_THAT(answered_, ElementsAre("fill", "layer 3", "layer 3's pull"));
  EXPECT_EQ(queues_->pushes_open(), 0u);
  Enqueue(Make(Kind::kPushPull, "layer 4", 1));
  Settle();
  EXPECT_EQ(held_.back().second.kind(), pb::PUSH_PULL);
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
  EXPECT_EQ(held_.back().second.kind(), pb::PUSH_PULL);
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
