// What single messages about rows look like, and what answers are refused: a client and a scripted
// server.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ps/wire/payload.h"
#include "tests/unit/worker/fake_server.h"
#include "worker/client/ps_client.h"

namespace parley {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kTable = 4, kDim = 2;

Frame PullAnswer(const pb::FrameHeader& request) {
  Frame answer;
  for (const pb::Part& asked : request.part()) {
    pb::Part* part = answer.header.add_part();
    part->set_partition(asked.partition());
    part->set_count(uint64_t{asked.keys()} * kDim);
    answer.payload.push_back(Buffer::Allocate(part->count() * sizeof(float)));
    std::fill_n(answer.payload.back().mutable_floats(), part->count(), 1.5f);
  }
  return answer;
}

class SparseMessagesTest : public ::testing::Test {
 protected:
  void Start(uint32_t partitions, std::function<void(FakeServer&, NodeId, Frame)> handler,
             const std::string& pull_codec = "none") {
    client_.reset();
    servers_.clear();
    error_ = absl::OkStatus();
    frames_.clear();
    servers_.push_back(std::make_unique<FakeServer>(
        &world_, &network_, 0,
        [this, handler = std::move(handler)](FakeServer& server, NodeId from, Frame request) {
          frames_.push_back(request);
          handler(server, from, std::move(request));
        }));
    ASSERT_TRUE(node_.transport->Connect(servers_[0]->node(), servers_[0]->endpoint()).ok());
    pb::TableSpec table;
    table.set_id(kTable);
    table.set_name("rows");
    table.mutable_sparse()->set_dim(kDim);
    table.mutable_sparse()->set_partitions(partitions);
    table.mutable_compression()->set_pull(pull_codec);
    PsClient::Options options;
    options.max_part_bytes = max_part_bytes_;
    options.on_error = [this](const absl::Status& status) { error_ = status; };
    auto client = PsClient::Create(
        &node_.env, &node_.rpc, AssignRoundRobin(table, partitions, servers_), std::move(options));
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    table_ = client_->sparse(kTable);
    ASSERT_NE(table_, nullptr);
    EXPECT_EQ(client_->dense(kTable), nullptr);
  }
  static void Acknowledge(FakeServer& server, NodeId from, Frame request) {
    server.rpc().Reply(from, request.header,
                       request.header.kind() == pb::PULL ? PullAnswer(request.header) : Frame());
  }
  bool Run(const std::function<bool()>& until) {
    return world_.RunUntil([&] { return until() || !error_.ok(); }, absl::Minutes(2));
  }
  void Settle() {
    world_.RunUntil([] { return false; }, absl::Milliseconds(100));
  }

  SimWorld world_{1};
  SimNetwork network_{&world_,
                      {.min_delay = absl::Milliseconds(1), .max_delay = absl::Milliseconds(1)}};
  FakeClientNode node_{&world_, &network_, 2};
  std::vector<std::unique_ptr<FakeServer>> servers_;
  std::unique_ptr<PsClient> client_;
  SparseTable* table_ = nullptr;
  uint64_t max_part_bytes_ = uint64_t{80} << 20;
  absl::Status error_;
  std::vector<Frame> frames_;  // as they came
};

TEST_F(SparseMessagesTest, APushNamesEveryPartitionAndAStepWithoutSamplesHasNoRows) {
  Start(4, Acknowledge);
  const uint64_t key = 77;
  const float gradient[kDim] = {1, 2};
  int done = 0;
  table_->Push(5, 3, {key}, gradient, [&] { ++done; });
  table_->Push(6, 0, {key}, gradient, [&] { ++done; });
  ASSERT_TRUE(Run([&] { return done == 2; })) << error_;
  ASSERT_EQ(frames_.size(), 2u);
  for (uint64_t step = 0; step < 2; ++step) {
    const pb::FrameHeader& header = frames_[step].header;
    EXPECT_EQ(header.kind(), pb::PUSH);
    EXPECT_EQ(header.table(), kTable);
    EXPECT_EQ(header.tick(), 5 + step);
    EXPECT_EQ(header.weight(), step == 0 ? 3 : 0);
    ASSERT_EQ(header.part_size(), 4);
    uint32_t keys = 0;
    for (uint32_t p = 0; p < 4; ++p) {
      const pb::Part& part = header.part(static_cast<int>(p));
      EXPECT_EQ(part.partition(), p);
      EXPECT_EQ(part.sequence(), step + 1);
      EXPECT_EQ(part.count(), part.keys() * kDim);
      keys += part.keys();
    }
    EXPECT_EQ(keys, step == 0 ? 1u : 0u);
    EXPECT_EQ(frames_[step].payload_bytes(), step == 0 ? 8 + 4 * kDim : 0u);
  }
}

TEST_F(SparseMessagesTest, AListThatIsAcknowledgedTravelsAsItsDigest) {
  Start(1, Acknowledge);
  std::vector<uint64_t> keys(30);
  for (uint64_t k = 0; k < keys.size(); ++k) keys[k] = k * k;
  std::vector<float> rows(keys.size() * kDim);
  int done = 0;
  const auto pull = [&] { table_->Pull(0, keys, rows.data(), [&](const PullResult&) { ++done; }); };
  pull();
  pull();  // the first is not acknowledged yet
  ASSERT_TRUE(Run([&] { return done == 2; })) << error_;
  pull();
  table_->Push(0, 1, keys, rows.data(), [&] { ++done; });
  ASSERT_TRUE(Run([&] { return done == 4; })) << error_;
  std::vector<uint64_t> lists;
  for (const Frame& frame : frames_) {
    EXPECT_EQ(frame.header.part(0).keys(), 30u);
    EXPECT_EQ(frame.header.part(0).key_digest().size(), 16u);
    lists.push_back(frame.header.part(0).key_bytes());
  }
  EXPECT_THAT(lists, ElementsAre(240, 240, 0, 0));
  EXPECT_EQ(frames_[2].payload_bytes(), 0u);
  EXPECT_EQ(frames_[3].payload_bytes(), rows.size() * sizeof(float));
  EXPECT_EQ(client_->counters().key_lists_sent, 2u);
  EXPECT_EQ(client_->counters().key_digests_sent, 2u);
}

TEST_F(SparseMessagesTest, AForgottenListGoesWithTheSamePush) {
  bool forget = false;
  Start(1, [&forget](FakeServer& server, NodeId from, Frame request) {
    if (forget && request.header.part(0).key_bytes() == 0) {
      server.rpc().ReplyError(from, request.header, absl::NotFoundError("no such list"));
    } else {
      Acknowledge(server, from, std::move(request));
    }
  });
  const std::vector<uint64_t> keys = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  std::vector<float> gradients(keys.size() * kDim, 1);
  int done = 0;
  table_->Push(0, 1, keys, gradients.data(), [&] { ++done; });
  ASSERT_TRUE(Run([&] { return done == 1; })) << error_;
  forget = true;
  gradients.assign(gradients.size(), 2);
  table_->Push(1, 1, keys, gradients.data(), [&] { ++done; });
  ASSERT_TRUE(Run([&] { return done == 2; })) << error_;
  ASSERT_EQ(frames_.size(), 3u);
  EXPECT_EQ(frames_[1].header.part(0).sequence(), 2u);
  EXPECT_EQ(frames_[2].header.part(0).sequence(), 2u);
  EXPECT_EQ(frames_[2].header.part(0).key_bytes(), keys.size() * 8);
  EXPECT_EQ(SplitPayload(frames_[1])[0].values.view(), SplitPayload(frames_[2])[0].values.view());
  EXPECT_EQ(client_->counters().key_misses, 1u);
  EXPECT_EQ(client_->counters().pushes_acked, 2u);
}

TEST_F(SparseMessagesTest, AShardThatFindsNoListEvenInTheMessageEndsTheClient) {
  Start(1, [](FakeServer& server, NodeId from, Frame request) {
    server.rpc().ReplyError(from, request.header, absl::NotFoundError("what table?"));
  });
  const std::vector<uint64_t> keys = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  std::vector<float> rows(keys.size() * kDim);
  table_->Pull(3, keys, rows.data(), [](const PullResult&) { FAIL(); });
  ASSERT_TRUE(Run([&] { return !error_.ok(); }));
  EXPECT_EQ(error_, absl::NotFoundError(
                        "pull of step 3 of table 4 from server 0 shard 0 (sim://server0): what "
                        "table?"));
}

TEST_F(SparseMessagesTest, AnswersThatDoNotFitAreRefusedByName) {
  struct Case {
    std::function<void(Frame&)> spoil;
    std::string why;
    std::string codec = "none";
  };
  const Case cases[] = {
      {[](Frame& f) { f.header.add_part(); }, "the answer has 2 parts, expected is 1"},
      {[](Frame& f) { f.header.mutable_part(0)->set_partition(3); },
       "part 0 of the answer is partition 3, expected is 0"},
      {[](Frame& f) {
         f.header.mutable_part(0)->set_count(2);
         f.payload[0] = f.payload[0].Slice(0, 8);
       },
       "partition 0 in the answer has count 2 and 8 bytes, expected is 4 for 2 keys"},
      {[](Frame& f) {
         f.header.mutable_part(0)->set_value_bytes(12);
         f.payload[0] = f.payload[0].Slice(0, 12);
       },
       "partition 0 in the answer has count 4 and 12 bytes"},
      {[](Frame& f) {
         f.header.mutable_part(0)->set_value_bytes(3);
         f.payload[0] = f.payload[0].Slice(0, 3);
       },
       "partition 0 in the answer: ", "fp16"},
  };
  for (const Case& c : cases) {
    Start(
        1,
        [&c](FakeServer& server, NodeId from, Frame request) {
          Frame answer = PullAnswer(request.header);
          c.spoil(answer);
          server.rpc().Reply(from, request.header, std::move(answer));
        },
        c.codec);
    std::vector<float> rows(2 * kDim);
    bool done = false;
    table_->Pull(7, {1, 2}, rows.data(), [&](const PullResult&) { done = true; });
    ASSERT_TRUE(Run([&] { return done; }));
    EXPECT_FALSE(done);
    EXPECT_THAT(std::string(error_.message()),
                AllOf(HasSubstr("pull of step 7 of table 4 from server 0"), HasSubstr(c.why)));
  }
}

TEST_F(SparseMessagesTest, UpdatesOfOneTurnAreOneMessageAndLaterOnesGatherMeanwhile) {
  std::vector<std::pair<NodeId, pb::FrameHeader>> held;
  Start(2, [&held](FakeServer&, NodeId from, Frame request) {
    held.emplace_back(from, request.header);
  });
  const auto update = [&](int calls) {
    for (int i = 0; i < calls; ++i) {
      const uint64_t key = static_cast<uint64_t>(i);
      const float gradient[kDim] = {1, 1};
      table_->Update({key}, gradient, nullptr);
    }
    Settle();
  };
  const auto keys_of = [](const pb::FrameHeader& header) {
    uint32_t keys = 0;
    for (const pb::Part& part : header.part()) keys += part.keys();
    return keys;
  };
  update(1);
  update(5);
  update(7);  // two are on their way: these wait
  update(4);
  ASSERT_EQ(held.size(), 2u);
  EXPECT_EQ(keys_of(held[0].second), 1u);
  EXPECT_EQ(keys_of(held[1].second), 5u);
  EXPECT_FALSE(held[0].second.has_tick());
  EXPECT_EQ(held[0].second.weight(), 1);
  EXPECT_EQ(table_->updates_open(), 17u);
  servers_[0]->rpc().Reply(held[0].first, held[0].second, Frame());
  Settle();
  ASSERT_EQ(held.size(), 3u);
  EXPECT_EQ(keys_of(held[2].second), 11u);
  EXPECT_EQ(table_->updates_open(), 16u);
  // A full batch does not wait.
  update(5000);
  EXPECT_GT(held.size(), 3u);
  EXPECT_LE(frames_[3].payload_bytes(), uint64_t{64} << 10);
  bool acked = false;
  client_->WhenAllAcknowledged([&] { acked = true; });
  for (size_t i = 1; i < held.size(); ++i) {
    servers_[0]->rpc().Reply(held[i].first, held[i].second, Frame());
    Settle();
  }
  EXPECT_TRUE(acked);
  EXPECT_EQ(client_->counters().updates_acked, 5017u);
}

TEST_F(SparseMessagesTest, WhatTheTransportCannotTakeInOnePartIsRefusedWithAdvice) {
  max_part_bytes_ = 100;
  const std::vector<uint64_t> keys = {1, 2, 3, 4, 5, 6, 7};
  const std::vector<float> gradients(keys.size() * kDim, 1);
  Start(1, Acknowledge);
  int done = 0;
  table_->Push(3, 1, absl::MakeSpan(keys).first(6), gradients.data(), [&] { ++done; });
  ASSERT_TRUE(Run([&] { return done == 1; })) << error_;
  table_->Push(4, 1, keys, gradients.data(), [&] { ++done; });
  EXPECT_EQ(error_, absl::InvalidArgumentError(
                        "push of step 4 of table 4: 7 keys of partition 0 take 112 bytes, allowed "
                        "is 100 in one message; raise embedding.partitions, which is 1, or lower "
                        "global_batch"));
  Start(1, Acknowledge);
  table_->Update(keys, gradients.data(), [&] { ++done; });
  Settle();
  EXPECT_EQ(error_, absl::InvalidArgumentError(
                        "update of table 4: 7 keys of one shard take 112 bytes, allowed is 100 in "
                        "one message; update fewer keys in one call"));
  EXPECT_EQ(done, 1);
}

TEST_F(SparseMessagesTest, AStatefulPullCodecIsRefusedAtTheStart) {
  pb::TableSpec table;
  table.set_id(kTable);
  table.set_name("rows");
  table.mutable_sparse()->set_dim(kDim);
  table.mutable_sparse()->set_partitions(1);
  table.mutable_compression()->set_pull("one_bit");
  Start(1, Acknowledge);
  const auto client =
      PsClient::Create(&node_.env, &node_.rpc, AssignRoundRobin(table, 1, servers_), {});
  EXPECT_THAT(std::string(client.status().message()), HasSubstr("compression.pull is 'one_bit'"));
}

}  // namespace
}  // namespace parley
