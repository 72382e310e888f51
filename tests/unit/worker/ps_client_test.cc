#include "worker/client/ps_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <set>

#include "ps/wire/payload.h"
#include "tests/unit/worker/fake_server.h"
#include "worker/client/push_stream.h"
#include "worker/client/shard_queues.h"

namespace parley {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Partitions of 8 floats: 0, 2, 4, 6 on server 0, the others on server 1; the last has 4.
constexpr uint64_t kElements = 52;
constexpr uint32_t kPartitions = 7;

pb::TableSpec Table() {
  pb::TableSpec table;
  table.set_id(1);
  table.set_name("model");
  table.set_partition_elements(8);
  pb::TensorSpec* tensor = table.add_tensor();
  tensor->set_name("w");
  tensor->add_shape(kElements);
  return table;
}

uint64_t SizeOf(uint32_t partition) { return partition + 1 == kPartitions ? 4 : 8; }

// Element i of every partition is 100 * partition + i.
Frame PullAnswer(const pb::FrameHeader& request) {
  Frame answer;
  for (const pb::Part& asked : request.part()) {
    pb::Part* part = answer.header.add_part();
    part->set_partition(asked.partition());
    part->set_count(SizeOf(asked.partition()));
    part->set_version(5 + asked.partition());
    part->set_min_clock(20 - asked.partition());
    Buffer payload = Buffer::Allocate(part->count() * sizeof(float));
    std::iota(payload.mutable_floats(), payload.mutable_floats() + part->count(),
              100.0f * static_cast<float>(asked.partition()));
    answer.payload.push_back(std::move(payload));
  }
  return answer;
}

void AnswerAll(FakeServer& server, NodeId from, Frame request) {
  server.rpc().Reply(from, request.header,
                     request.header.kind() == pb::PULL ? PullAnswer(request.header) : Frame());
}

class PsClientTest : public ::testing::Test {
 protected:
  PsClientTest() { network_.SetOptions({.min_delay = kDelay, .max_delay = kDelay}); }

  void StartServers(FakeServer::Handler handler) {
    for (uint32_t i = 0; i < 2; ++i) {
      servers_.push_back(std::make_unique<FakeServer>(&world_, &network_, i, handler));
      ASSERT_TRUE(node_.transport->Connect(servers_[i]->node(), servers_[i]->endpoint()).ok());
    }
    PsClient::Options options;
    options.rank = 2;
    options.incarnation = 12;
    options.max_request_bytes = 64;  // two full partitions
    options.progress_timeout = absl::Seconds(5);
    options.on_error = [this](const absl::Status& status) {
      EXPECT_TRUE(error_.ok()) << "told twice";
      error_ = status;
    };
    options.log = [this](const std::string& line) { log_.push_back(line); };
    absl::StatusOr<std::unique_ptr<PsClient>> client =
        PsClient::Create(&node_.env, &node_.rpc, AssignRoundRobin(Table(), kPartitions, servers_),
                         std::move(options));
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    table_ = client_->dense(1);
    ASSERT_NE(table_, nullptr);
  }

  bool Run(std::function<bool()> until, absl::Duration limit = absl::Seconds(30)) {
    return world_.RunUntil(until, limit);
  }

  static std::vector<uint32_t> PartitionsOf(const pb::FrameHeader& header) {
    std::vector<uint32_t> partitions;
    for (const pb::Part& part : header.part()) partitions.push_back(part.partition());
    return partitions;
  }

  static constexpr absl::Duration kDelay = absl::Milliseconds(1);
  SimWorld world_{1};
  SimNetwork network_{&world_, {}};
  FakeClientNode node_{&world_, &network_, 2};
  std::vector<std::unique_ptr<FakeServer>> servers_;
  std::unique_ptr<PsClient> client_;
  DenseTable* table_ = nullptr;
  absl::Status error_;
  std::vector<std::string> log_;
  std::vector<float> parameters_ = std::vector<float>(kElements, -1);
};

TEST_F(PsClientTest, PullIsGroupedByOwnerCappedAndCopiedInPlace) {
  StartServers(AnswerAll);
  std::set<uint32_t> arrived;
  std::optional<PullResult> result;
  table_->Pull(
      7, parameters_.data(),
      [&](absl::Span<const uint32_t> partitions) {
        for (uint32_t p : partitions) {
          EXPECT_TRUE(arrived.insert(p).second);
          EXPECT_EQ(parameters_[8 * p], 100.0f * static_cast<float>(p));  // there before the call
        }
        EXPECT_FALSE(result.has_value());
      },
      [&](const PullResult& r) { result = r; });
  EXPECT_EQ(client_->WaitingFor(), "pull of step 7 from server 0 shard 0 (sim://server0)");
  ASSERT_TRUE(Run([&] { return result.has_value(); }));
  EXPECT_EQ(client_->WaitingFor(), "");
  EXPECT_EQ(arrived.size(), kPartitions);
  EXPECT_EQ(result->min_clock, 14u);
  EXPECT_EQ(result->min_version, 5u);
  EXPECT_EQ(result->max_version, 11u);
  for (uint32_t i = 0; i < kElements; ++i) {
    EXPECT_EQ(parameters_[i], 100.0f * static_cast<float>(i / 8) + static_cast<float>(i % 8));
  }
  ASSERT_EQ(servers_[0]->requests.size(), 2u);
  EXPECT_THAT(PartitionsOf(servers_[0]->requests[0]), ElementsAre(0, 2));
  EXPECT_THAT(PartitionsOf(servers_[0]->requests[1]), ElementsAre(4, 6));
  ASSERT_EQ(servers_[1]->requests.size(), 2u);
  EXPECT_THAT(PartitionsOf(servers_[1]->requests[0]), ElementsAre(1, 3));
  EXPECT_THAT(PartitionsOf(servers_[1]->requests[1]), ElementsAre(5));
  const pb::FrameHeader& header = servers_[0]->requests[0];
  EXPECT_EQ(header.table(), 1u);
  EXPECT_EQ(header.epoch(), 3u);
  EXPECT_EQ(header.tick(), 7u);
  EXPECT_EQ(header.rank(), 2u);
  EXPECT_EQ(header.incarnation(), 12u);
  EXPECT_EQ(client_->counters().bytes_pulled, kElements * sizeof(float));
}

TEST_F(PsClientTest, PushesAreNumberedPerPartitionAndSayWhatIsAcknowledged) {
  std::map<uint32_t, std::vector<float>> got;
  StartServers([&](FakeServer& server, NodeId from, Frame request) {
    const std::vector<PartPayload> payload = SplitPayload(request);
    for (size_t i = 0; i < payload.size(); ++i) {
      std::vector<float>& values = got[request.header.part(static_cast<int>(i)).partition()];
      values.resize(payload[i].values.num_floats());
      std::memcpy(values.data(), payload[i].values.data(), payload[i].values.size());
    }
    AnswerAll(server, from, std::move(request));
  });
  Buffer gradients = Buffer::Allocate(kElements * sizeof(float));
  std::iota(gradients.mutable_floats(), gradients.mutable_floats() + kElements, 0.0f);
  bool acked = false;
  table_->Push(0, 4, {6, 4}, gradients);
  table_->Push(1, 4, {4}, gradients);  // before the first is acknowledged
  client_->WhenAllAcknowledged([&] { acked = true; });
  ASSERT_TRUE(Run([&] { return acked; }));
  table_->Push(2, 4, {4}, gradients);
  acked = false;
  client_->WhenAllAcknowledged([&] { acked = true; });
  ASSERT_TRUE(Run([&] { return acked; }));

  ASSERT_EQ(servers_[0]->requests.size(), 3u);
  const pb::FrameHeader& first = servers_[0]->requests[0];
  EXPECT_THAT(PartitionsOf(first), ElementsAre(6, 4));
  EXPECT_EQ(first.weight(), 4);
  EXPECT_EQ(first.part(0).count(), 4u);
  const uint64_t expected[3][2] = {{1, 1}, {2, 1}, {3, 3}};  // sequence, acked_below
  for (int i = 0; i < 3; ++i) {
    const pb::FrameHeader& header = servers_[0]->requests[i];
    const pb::Part& part = header.part(header.part_size() - 1);
    EXPECT_EQ(header.tick(), static_cast<uint64_t>(i));
    EXPECT_EQ(part.sequence(), expected[i][0]);
    EXPECT_EQ(part.acked_below(), expected[i][1]);
  }
  EXPECT_THAT(got[6], ElementsAre(48, 49, 50, 51));
  EXPECT_EQ(got[4].front(), 32);
  EXPECT_EQ(client_->counters().pushes_acked, 4u);
  EXPECT_EQ(client_->counters().bytes_pushed, 28 * sizeof(float));
}

TEST_F(PsClientTest, APushWithoutSamplesHasNoPayload) {
  StartServers([&](FakeServer& server, NodeId from, Frame request) {
    EXPECT_TRUE(request.payload.empty());
    EXPECT_EQ(request.header.part(0).count(), 0u);
    EXPECT_EQ(request.header.part(0).sequence(), 1u);
    AnswerAll(server, from, std::move(request));
  });
  table_->Push(3, 0, {0, 1, 2}, Buffer());
  bool acked = false;
  client_->WhenAllAcknowledged([&] { acked = true; });
  ASSERT_TRUE(Run([&] { return acked; }));
  EXPECT_EQ(client_->counters().pushes_acked, 3u);
  EXPECT_EQ(client_->counters().bytes_pushed, 0u);
}

// One partition's first push stays unanswered while hundreds after it are acknowledged: the server
// could not tell replays apart any more if the client went on for ever.
TEST_F(PsClientTest, UnacknowledgedSequencesAreBounded) {
  uint64_t highest = 0;
  bool hold = true;
  StartServers([&](FakeServer& server, NodeId from, Frame request) {
    highest = std::max(highest, request.header.part(0).sequence());
    if (hold && request.header.part(0).sequence() == 1) return;  // as if it had been lost
    AnswerAll(server, from, std::move(request));
  });
  for (uint64_t tick = 0; tick < 600; ++tick) table_->Push(tick, 0, {0}, Buffer());
  Run([] { return false; }, absl::Milliseconds(500));
  EXPECT_EQ(highest, PushStream::kMaxUnacknowledged);
  hold = false;
  bool acked = false;
  client_->WhenAllAcknowledged([&] { acked = true; });
  ASSERT_TRUE(Run([&] { return acked; })) << error_;
  EXPECT_EQ(highest, 600u);
  EXPECT_EQ(client_->counters().pushes_acked, 600u);
}

TEST_F(PsClientTest, MessagesInFlightAreBoundedAndAPullStaysBehindThePushes) {
  int open = 0, most = 0;
  std::vector<std::pair<NodeId, pb::FrameHeader>> held;
  StartServers([&](FakeServer&, NodeId from, Frame request) {
    most = std::max(most, ++open);
    held.emplace_back(from, request.header);
  });
  for (uint64_t tick = 0; tick < 40; ++tick) table_->Push(tick, 0, {0}, Buffer());
  table_->Pull(
      40, parameters_.data(), [](auto) {}, [](const auto&) {});
  // Less than the silence after which a message would be sent again.
  Run([] { return false; }, absl::Milliseconds(100));
  ASSERT_EQ(servers_[0]->requests.size(), static_cast<size_t>(ShardQueues::kCreditMessages));
  for (int round = 0; round < 4; ++round) {
    for (auto& [from, header] : std::exchange(held, {})) {
      --open;
      if (header.kind() == pb::PULL || header.part(0).partition() != 0) continue;
      servers_[0]->rpc().Reply(from, header, Frame());
    }
    Run([] { return false; }, absl::Milliseconds(100));
  }
  std::vector<pb::Kind> kinds;
  for (const pb::FrameHeader& header : servers_[0]->requests) kinds.push_back(header.kind());
  ASSERT_EQ(kinds.size(), 42u);
  EXPECT_TRUE(std::all_of(kinds.begin(), kinds.begin() + 40,
                          [](pb::Kind kind) { return kind == pb::PUSH; }));
  EXPECT_LE(most, ShardQueues::kCreditMessages + 2);  // and the two pulls on server 1
}

TEST_F(PsClientTest, WrongPullAnswersAreRefused) {
  struct Case {
    std::function<void(Frame&)> spoil;
    std::string why;
  };
  const Case cases[] = {
      {[](Frame& f) { f.header.mutable_part()->RemoveLast(), f.payload.pop_back(); },
       "has 1 parts, expected is 2"},
      {[](Frame& f) { f.header.mutable_part(0)->set_partition(2); },
       "part 0 of the answer is partition 2, expected is 0"},
      {[](Frame& f) {
         f.header.mutable_part(1)->set_count(7);
         f.payload[1] = f.payload[1].Slice(0, 28);
       },
       "partition 2 in the answer has count 7 and 28 bytes, expected is 8 and 32"},
  };
  for (const Case& c : cases) {
    servers_.clear();
    client_.reset();
    error_ = absl::OkStatus();
    StartServers([&](FakeServer& server, NodeId from, Frame request) {
      Frame answer = PullAnswer(request.header);
      if (request.header.part(0).partition() == 0) c.spoil(answer);
      server.rpc().Reply(from, request.header, std::move(answer));
    });
    bool done = false;
    table_->Pull(
        7, parameters_.data(), [](auto) {}, [&](const auto&) { done = true; });
    Run([&] { return !error_.ok(); });
    Run([] { return false; }, absl::Seconds(1));
    EXPECT_FALSE(done);
    EXPECT_THAT(
        std::string(error_.message()),
        AllOf(HasSubstr("pull of step 7 from server 0 shard 0 (sim://server0)"), HasSubstr(c.why)));
    EXPECT_EQ(node_.rpc.in_flight(), 0u);
  }
}

TEST_F(PsClientTest, AServersErrorAndADeadlineNameTheRequestOnce) {
  StartServers([&](FakeServer& server, NodeId from, Frame request) {
    server.rpc().ReplyError(from, request.header, absl::InvalidArgumentError("weight is -1"));
  });
  table_->Push(7, 0, {1}, Buffer());
  ASSERT_TRUE(Run([&] { return !error_.ok(); }, 3 * kDelay));
  EXPECT_EQ(error_, absl::InvalidArgumentError(
                        "push of step 7 to server 1 shard 0 (sim://server1): weight is -1"));
}

TEST_F(PsClientTest, ARefusalThatNoMapChangesEndsAfterAWhileAndSaysWhatTheServerSaid) {
  StartServers([&](FakeServer& server, NodeId from, Frame request) {
    server.rpc().ReplyError(from, request.header,
                            absl::FailedPreconditionError("incarnation 9 is current"));
  });
  table_->Push(7, 0, {1}, Buffer());
  Run([] { return false; }, absl::Seconds(4));
  EXPECT_TRUE(error_.ok()) << error_;
  EXPECT_EQ(client_->WaitingFor(),
            "a newer partition map for the push of step 7 to server 1 shard 0 (sim://server1): "
            "incarnation 9 is current");
  EXPECT_EQ(servers_[1]->requests.size(), 1u);
  ASSERT_EQ(log_.size(), 1u);
  EXPECT_THAT(log_[0], HasSubstr("push of step 7 to server 1"));
  ASSERT_TRUE(Run([&] { return !error_.ok(); }, absl::Seconds(2)));
  EXPECT_EQ(error_, absl::FailedPreconditionError(
                        "push of step 7 to server 1 shard 0 (sim://server1): incarnation 9 is "
                        "current; no partition map that came within 5s changed that"));
}

TEST_F(PsClientTest, SilenceEndsInADeadlineThatSaysWhatWasAwaited) {
  StartServers([&](FakeServer& server, NodeId from, Frame request) {
    server.rpc().ReplyParked(from, request.header, "worker 1 (at tick 6)");
  });
  table_->Pull(
      7, parameters_.data(), [](auto) {}, [](const auto&) {});
  ASSERT_TRUE(Run([&] { return !error_.ok(); }));
  EXPECT_TRUE(absl::IsDeadlineExceeded(error_));
  const std::string message(error_.message());
  EXPECT_THAT(message,
              AllOf(HasSubstr("pull of step 7 from server"), HasSubstr("worker 1 (at tick 6)")));
  EXPECT_EQ(message.find("pull of step"), message.rfind("pull of step"));
}

TEST_F(PsClientTest, TheFinalPullOutlastsItsDeadlineAndSaysSo) {
  bool hold = true;
  StartServers([&](FakeServer& server, NodeId from, Frame request) {
    if (hold) {
      server.rpc().ReplyParked(from, request.header, "worker 1 to leave");
    } else {
      AnswerAll(server, from, std::move(request));
    }
  });
  bool done = false;
  table_->Pull(
      DenseTable::kFinalTick, parameters_.data(), [](auto) {}, [&](const auto&) { done = true; });
  Run([] { return false; }, absl::Seconds(12));
  EXPECT_TRUE(error_.ok()) << error_;
  ASSERT_FALSE(log_.empty());
  EXPECT_THAT(log_[0], AllOf(HasSubstr("pull of the final weights"), HasSubstr("worker 1")));
  hold = false;
  EXPECT_TRUE(Run([&] { return done; }));
}

TEST_F(PsClientTest, LeaveGoesToEveryShard) {
  StartServers(AnswerAll);
  bool left = false;
  client_->Leave(9, [&] { left = true; });
  ASSERT_TRUE(Run([&] { return left; }));
  for (const auto& server : servers_) {
    ASSERT_EQ(server->requests.size(), 1u);
    pb::Leave leave;
    ASSERT_TRUE(leave.ParseFromString(server->requests[0].body()));
    EXPECT_EQ(server->requests[0].kind(), pb::LEAVE);
    EXPECT_EQ(leave.after_tick(), 9u);
  }
}

TEST_F(PsClientTest, AnAssignmentThatDoesNotCoverTheTableIsRefused) {
  StartServers(AnswerAll);
  const pb::Assignment good = AssignRoundRobin(Table(), kPartitions, servers_);
  auto message = [&](const pb::Assignment& assignment) {
    return std::string(PsClient::Create(&node_.env, &node_.rpc, assignment, {}).status().message());
  };
  EXPECT_EQ(client_->dense(2), nullptr);
  EXPECT_EQ(client_->sparse(1), nullptr);
  pb::Assignment bad = good;
  bad.mutable_map()->mutable_table(0)->mutable_owner()->RemoveLast();
  EXPECT_THAT(message(bad), HasSubstr("has 6 owners, expected is one for each of 7"));
  bad = good;
  bad.mutable_map()->mutable_table(0)->set_owner(3, 2);
  EXPECT_THAT(message(bad), HasSubstr("partition 3 of table 1 is owned by shard 2"));
  bad = good;
  bad.mutable_map()->clear_table();
  EXPECT_THAT(message(bad), HasSubstr("no partition map of table 1"));
}

}  // namespace
}  // namespace parley
