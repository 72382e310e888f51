// Queues of two shards, whose servers answer when the test says.
#ifndef PARLEY_TESTS_UNIT_WORKER_CLIENT_SHARD_QUEUES_TESTING_H_
#define PARLEY_TESTS_UNIT_WORKER_CLIENT_SHARD_QUEUES_TESTING_H_

#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/unit/worker/fake_server.h"
#include "worker/client/shard_queues.h"

namespace parley {

class ShardQueuesTest : public ::testing::Test {
 protected:
  using Kind = ShardRequest::Kind;

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
    bool BelongsTo(uint32_t shard) const override { return test_->OwnerOf(name_) == shard; }
    std::vector<Piece> SplitByOwner() override {
      auto piece = std::make_unique<Message>(test_, kind, name_);
      piece->small = small;
      piece->step = step;
      piece->rank = rank;
      piece->pull_tick = pull_tick;
      piece->push_bytes = push_bytes;
      piece->pull_bytes = pull_bytes;
      std::vector<Piece> pieces;
      pieces.push_back({test_->OwnerOf(name_), std::move(piece)});
      return pieces;
    }
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
    for (uint32_t shard = 0; shard < 2; ++shard) {
      servers_.push_back(std::make_unique<FakeServer>(
          &world_, &network_, shard, [this](FakeServer& server, NodeId from, Frame request) {
            for (const Question& question : held_) {
              if (question.header.request_id() == request.header.request_id()) return;  // a retry
            }
            arrived_.push_back(request.header.body());
            held_.push_back({&server, from, request.header});
          }));
      EXPECT_TRUE(
          node_.transport->Connect(servers_[shard]->node(), servers_[shard]->endpoint()).ok());
    }
    ShardQueues::Options options;
    options.rank = 4;
    options.incarnation = 9;
    options.on_error = [this](const absl::Status& status) { error_ = status; };
    queues_ = std::make_unique<ShardQueues>(&node_.env, &node_.rpc, std::move(options));
    EXPECT_EQ(queues_->AddShard(servers_[0]->node(), "the shard"), 0u);
    EXPECT_EQ(queues_->AddShard(servers_[1]->node(), "the other"), 1u);
    EXPECT_EQ(queues_->AddShard(servers_[0]->node(), "the shard"), 0u);
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
    const Question asked = held_.front();
    held_.pop_front();
    if (status.ok()) {
      asked.server->rpc().Reply(asked.from, asked.header, Frame());
    } else {
      asked.server->rpc().ReplyError(asked.from, asked.header, status);
    }
    Settle();
  }
  void Park() {
    for (const Question& asked : held_) {
      asked.server->rpc().ReplyParked(asked.from, asked.header, "worker 1");
    }
    Settle();
  }
  uint32_t OwnerOf(const std::string& name) const {
    const auto moved = moved_.find(name);
    return moved == moved_.end() ? 0 : moved->second;
  }
  // Everything of these names is at the other shard from now on.
  void Move(const std::vector<std::string>& names) {
    queues_->Pause();
    for (const std::string& name : names) moved_[name] = 1;
    queues_->Reroute();
    std::erase_if(held_, [&](const Question& asked) {
      return OwnerOf(asked.header.body()) == 1 && asked.server == servers_[0].get();
    });
    Settle();
  }

  SimWorld world_{1};
  SimNetwork network_{&world_, {}};
  FakeClientNode node_{&world_, &network_, 0};
  struct Question {
    FakeServer* server;
    NodeId from;
    pb::FrameHeader header;
  };
  std::vector<std::unique_ptr<FakeServer>> servers_;
  std::deque<Question> held_;
  std::map<std::string, uint32_t> moved_;
  std::vector<std::string> arrived_, answered_;
  std::string barred_;  // waits for a sequence
  std::string frees_;   // with its answer, what is barred
  std::string refuse_;
  absl::Status error_;
  std::unique_ptr<ShardQueues> queues_;
};

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_WORKER_CLIENT_SHARD_QUEUES_TESTING_H_
