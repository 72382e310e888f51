#include "ps/net/rpc.h"

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ps/base/sim_env.h"
#include "ps/net/sim_network.h"

namespace parley {
namespace {

using ::testing::HasSubstr;

constexpr NodeId kServer{100}, kClient{200}, kStranger{300};

// One node with an rpc: what a role is built on.
struct Node {
  Node(SimWorld* world, SimNetwork* network, NodeId id, const std::string& name)
      : env(world, name),
        transport(network->CreateTransport(&env, id, "sim://" + name)),
        rpc(&env, transport.get()) {}

  SimEnv env;
  std::unique_ptr<Transport> transport;
  Rpc rpc;
};

class RpcTest : public ::testing::Test {
 protected:
  explicit RpcTest(uint64_t seed = 11)
      : world_(seed),
        network_(&world_, SimNetwork::Options{}),
        server_(&world_, &network_, kServer, "server-0"),
        client_(&world_, &network_, kClient, "worker-0") {
    EXPECT_TRUE(client_.transport->Connect(kServer, "sim://server-0").ok());
  }

  static Frame Request(pb::Kind kind = pb::PULL) {
    Frame frame;
    frame.header.set_kind(kind);
    frame.header.set_tick(7);
    return frame;
  }

  static CallOptions Options() {
    CallOptions options;
    options.deadline = absl::Seconds(60);
    options.attempt = absl::Milliseconds(100);
    options.max_attempt = absl::Seconds(2);
    options.what = "pull of step 7 from server 0";
    return options;
  }

  CallId Call(CallOptions options = Options()) {
    return client_.rpc.Call(kServer, Request(), std::move(options),
                            [this](absl::StatusOr<Frame> answer) {
                              ++callbacks_;
                              answer_ = std::move(answer);
                            });
  }

  void Run(absl::Duration limit = absl::Minutes(10)) {
    world_.RunUntil([] { return false; }, limit);
  }

  // The server answers with the tick it was asked for, plus one.
  void ServeEcho() {
    server_.rpc.Handle(pb::PULL, [this](NodeId from, Frame request) {
      ++served_;
      Frame answer;
      answer.header.set_tick(request.header.tick() + 1);
      server_.rpc.Reply(from, request.header, std::move(answer));
    });
  }

  // The server answers each request with the next of `statuses`, and with success after them.
  void ServeStatuses(std::vector<absl::Status> statuses) {
    server_.rpc.Handle(pb::PULL, [this, statuses](NodeId from, Frame request) {
      const size_t at = served_++;
      if (at < statuses.size()) {
        server_.rpc.ReplyError(from, request.header, statuses[at]);
      } else {
        server_.rpc.Reply(from, request.header, Frame());
      }
    });
  }

  SimWorld world_;
  SimNetwork network_;
  Node server_, client_;
  size_t served_ = 0;
  int callbacks_ = 0;
  std::optional<absl::StatusOr<Frame>> answer_;
};

TEST_F(RpcTest, AnswersComeBack) {
  client_.rpc.SetIdentity(/*job=*/42, /*incarnation=*/3, /*rank=*/1);
  server_.rpc.SetIdentity(/*job=*/42, /*incarnation=*/8, /*rank=*/0);
  pb::FrameHeader seen;
  server_.rpc.Handle(pb::PULL, [&](NodeId from, Frame request) {
    seen = request.header;
    EXPECT_EQ(from, kClient);
    Frame answer;
    answer.header.add_part()->set_count(2);
    answer.payload.push_back(Buffer::Copy("12345678"));
    server_.rpc.Reply(from, request.header, std::move(answer));
  });
  Call();
  EXPECT_EQ(client_.rpc.in_flight(), 1u);
  EXPECT_EQ(callbacks_, 0);
  Run();
  ASSERT_EQ(callbacks_, 1);
  ASSERT_TRUE(answer_->ok()) << answer_->status();
  EXPECT_EQ((*answer_)->payload[0].view(), "12345678");
  EXPECT_EQ((*answer_)->header.incarnation(), 8u);
  EXPECT_EQ((*answer_)->header.request_id(), seen.request_id());
  EXPECT_EQ(seen.job(), 42u);
  EXPECT_EQ(seen.incarnation(), 3u);
  EXPECT_EQ(seen.rank(), 1u);
  EXPECT_EQ(seen.tick(), 7u);
  EXPECT_EQ(client_.rpc.in_flight(), 0u);
  EXPECT_EQ(client_.rpc.counters().retries, 0u);
}

TEST_F(RpcTest, HandlersMayAnswerLater) {
  server_.rpc.Handle(pb::PULL, [this](NodeId from, Frame request) {
    ++served_;
    server_.env.After(absl::Milliseconds(50), [this, from, header = request.header] {
      server_.rpc.Reply(from, header, Frame());
    });
  });
  Call();
  Run();
  EXPECT_EQ(callbacks_, 1);
  EXPECT_EQ(served_, 1u);
}

TEST_F(RpcTest, RetriesUnderHeavyLossUntilAnswered) {
  network_.SetOptions({.loss = 0.6, .duplicate = 0.2});
  ServeEcho();
  int answered = 0;
  for (int i = 0; i < 50; ++i) {
    client_.rpc.Call(kServer, Request(), Options(), [&](absl::StatusOr<Frame> answer) {
      ASSERT_TRUE(answer.ok()) << answer.status();
      EXPECT_EQ(answer->header.tick(), 8u);
      ++answered;
    });
  }
  EXPECT_TRUE(world_.RunUntil([&] { return answered == 50; }, absl::Seconds(60)));
  EXPECT_GT(client_.rpc.counters().retries, 20u);
  EXPECT_EQ(client_.rpc.in_flight(), 0u);
}

TEST_F(RpcTest, DuplicateAnswersCallBackOnce) {
  network_.SetOptions({.duplicate = 1});
  ServeEcho();
  Call();
  Run();
  EXPECT_EQ(callbacks_, 1);
  EXPECT_EQ(served_, 2u);
  EXPECT_EQ(client_.rpc.counters().late_answers, 3u);  // 2 requests, 2 copies of each answer
}

TEST_F(RpcTest, BacksOffExponentially) {
  std::vector<absl::Duration> times;  // nobody answers
  server_.rpc.Handle(pb::PULL, [&](NodeId, Frame) { times.push_back(world_.Now()); });
  Call();
  Run();
  ASSERT_GT(times.size(), 8u);
  for (size_t i = 1; i < times.size(); ++i) {
    const absl::Duration nominal =
        std::min(absl::Milliseconds(100) * (1 << std::min<size_t>(i - 1, 10)), absl::Seconds(2));
    const absl::Duration network = absl::Milliseconds(1);
    EXPECT_GE(times[i] - times[i - 1], nominal * 0.75 - network);
    EXPECT_LE(times[i] - times[i - 1], nominal * 1.25 + network);
  }
}

TEST_F(RpcTest, ParkedIsNotRetriedAsLost) {
  std::optional<pb::FrameHeader> held;
  server_.rpc.Handle(pb::PULL, [&](NodeId from, Frame request) {
    ++served_;
    held = request.header;
    server_.rpc.ReplyParked(from, request.header, "worker 1 (at tick 6)");
  });
  Call();
  Run(absl::Seconds(10));
  ASSERT_TRUE(held.has_value());
  // 100 ms silences would make some 8 retries; a probe every 2 s +-25% makes 4 to 6 more requests.
  EXPECT_EQ(client_.rpc.counters().retries, 0u);
  EXPECT_GE(served_, 5u);
  EXPECT_LE(served_, 7u);
  EXPECT_EQ(client_.rpc.counters().parked, served_);
  server_.rpc.Reply(kClient, *held, Frame());
  Run(absl::Seconds(1));
  EXPECT_EQ(callbacks_, 1);
  EXPECT_TRUE(answer_->ok());
}

TEST_F(RpcTest, TheFirstParkedIsToldOnce) {
  server_.rpc.Handle(pb::PULL, [&](NodeId from, Frame request) {
    ++served_;
    server_.rpc.ReplyParked(from, request.header, "worker 1");
  });
  int told = 0;
  CallOptions options = Options();
  options.on_parked = [&] { ++told; };
  Call(std::move(options));
  Run(absl::Seconds(10));
  EXPECT_GT(served_, 1u);
  EXPECT_EQ(told, 1);
  // Who is told may end the call, and begin another.
  std::optional<CallId> ended;
  CallOptions ending = Options();
  ending.on_parked = [&] {
    client_.rpc.Cancel(*ended);
    Call();
  };
  ended = Call(std::move(ending));
  Run(absl::Seconds(1));
  EXPECT_EQ(told, 1);
  EXPECT_EQ(client_.rpc.in_flight(), 2u);
  Run();
  EXPECT_EQ(callbacks_, 2);  // deadlines
}

TEST_F(RpcTest, ARequestKeepsTheRankAndIncarnationItComesWith) {
  client_.rpc.SetIdentity(5, 7, 3);
  server_.rpc.SetIdentity(5, 1, 0);
  std::vector<pb::FrameHeader> got;
  server_.rpc.Handle(pb::PULL, [&](NodeId from, Frame request) {
    got.push_back(request.header);
    Frame answer;
    answer.header = request.header;
    server_.rpc.Reply(from, request.header, std::move(answer));
  });
  for (uint32_t rank : {3u, 4u, 0u}) {
    Frame request = Request();
    if (rank != 3) {
      request.header.set_rank(rank);
      request.header.set_incarnation(10 + rank);
    }
    client_.rpc.Call(kServer, std::move(request), Options(), [&](absl::StatusOr<Frame> answer) {
      ASSERT_TRUE(answer.ok());
      answer_ = std::move(answer);
    });
    Run(absl::Seconds(1));
    ASSERT_TRUE(answer_.has_value());
    EXPECT_EQ((*answer_)->header.request_id(), got.back().request_id());
    EXPECT_EQ((*answer_)->header.rank(), 0u);
    EXPECT_EQ((*answer_)->header.incarnation(), 1u);
    EXPECT_EQ(got.back().rank(), rank);
    EXPECT_EQ(got.back().incarnation(), rank == 3 ? 7 : 10 + rank);
    EXPECT_EQ(got.back().job(), 5u);
  }
}

TEST_F(RpcTest, AParkedCallNoticesThatItsHolderIsGone) {
  server_.rpc.Handle(pb::PULL, [&](NodeId from, Frame request) {
    server_.rpc.ReplyParked(from, request.header, "worker 1");
  });
  Call();
  Run(absl::Seconds(1));
  network_.Isolate(kServer);
  Run(absl::Seconds(10));
  EXPECT_GT(client_.rpc.counters().retries, 3u);  // short silences again
}

TEST_F(RpcTest, DeadlineNamesWhatAndWhomAndWhy) {
  server_.rpc.Handle(pb::PULL, [&](NodeId from, Frame request) {
    server_.rpc.ReplyParked(from, request.header, "worker 1 (at tick 6)");
  });
  Call();
  Run();
  ASSERT_EQ(callbacks_, 1);
  const absl::Status& status = answer_->status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  const std::string message(status.message());
  EXPECT_THAT(message, HasSubstr("pull of step 7 from server 0"));
  EXPECT_THAT(message, HasSubstr("worker 1 (at tick 6)"));
  EXPECT_THAT(message, HasSubstr("1m"));
  EXPECT_THAT(message, HasSubstr("tries"));
  EXPECT_EQ(client_.rpc.counters().deadline_exceeded, 1u);
}

TEST_F(RpcTest, DeadlineIsExact) {
  network_.Isolate(kServer);
  CallOptions options = Options();
  options.deadline = absl::Milliseconds(1234);
  Call(std::move(options));
  ASSERT_TRUE(world_.RunUntil([this] { return callbacks_ > 0; }, absl::Minutes(1)));
  EXPECT_EQ(world_.Now(), absl::Milliseconds(1234));
  EXPECT_FALSE(answer_->ok());
}

TEST_F(RpcTest, ErrorsAreFinal) {
  for (const absl::Status& error :
       {absl::InvalidArgumentError("bad part"), absl::FailedPreconditionError("epoch is 4"),
        absl::InternalError("?"), absl::DeadlineExceededError("gave up")}) {
    served_ = 0;
    ServeStatuses({error});
    Call();
    Run();
    EXPECT_EQ(served_, 1u);
    EXPECT_EQ(answer_->status(), error);
  }
  EXPECT_EQ(callbacks_, 4);
}

TEST_F(RpcTest, UnavailableAndExhaustedAreRetried) {
  ServeStatuses({absl::UnavailableError("starting"), absl::ResourceExhaustedError("queue full")});
  Call();
  Run();
  EXPECT_EQ(served_, 3u);
  ASSERT_EQ(callbacks_, 1);
  EXPECT_TRUE(answer_->ok());
  EXPECT_EQ(client_.rpc.counters().retries, 2u);
}

TEST_F(RpcTest, DeadlineTellsTheLastTemporaryError) {
  ServeStatuses(std::vector<absl::Status>(1000, absl::ResourceExhaustedError("queue full")));
  Call();
  Run();
  EXPECT_EQ(answer_->status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(answer_->status().message()), HasSubstr("queue full"));
}

TEST_F(RpcTest, StatusCodesOfLaterReleasesAreErrors) {
  server_.rpc.Handle(pb::PULL, [this](NodeId from, Frame request) {
    Frame answer;
    answer.header.set_status_code(99);
    server_.rpc.Reply(from, request.header, std::move(answer));
  });
  Call();
  Run();
  EXPECT_EQ(answer_->status().code(), absl::StatusCode::kUnknown);
}

TEST_F(RpcTest, CancelledCallsNeverCallBack) {
  ServeEcho();
  const CallId id = Call();
  Call();
  client_.rpc.Cancel(id);
  client_.rpc.Cancel(id);
  client_.rpc.Cancel(CallId{1});
  Run();
  EXPECT_EQ(callbacks_, 1);
  EXPECT_EQ(served_, 2u);
  EXPECT_EQ(client_.rpc.counters().late_answers, 1u);
}

TEST_F(RpcTest, AnUnknownPeerIsTriedUntilItIsKnown) {
  ServeEcho();
  client_.transport->Disconnect(kServer);
  Call();
  EXPECT_EQ(callbacks_, 0);
  client_.env.After(absl::Seconds(1), [this] {
    EXPECT_TRUE(client_.transport->Connect(kServer, "sim://server-0").ok());
  });
  Run();
  ASSERT_EQ(callbacks_, 1);
  EXPECT_TRUE(answer_->ok());
}

TEST_F(RpcTest, UnknownKindsAreAnsweredUnimplemented) {
  Call();
  Run();
  ASSERT_EQ(callbacks_, 1);
  EXPECT_EQ(answer_->status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(answer_->status().message()), HasSubstr("PULL"));
}

TEST_F(RpcTest, OneWayFramesAreNeverAnswered) {
  client_.rpc.Tell(kServer, Request(pb::NORM));  // no handler
  server_.rpc.Handle(pb::HEARTBEAT, [this](NodeId from, Frame request) {
    ++served_;
    EXPECT_EQ(request.header.request_id(), 0u);
    server_.rpc.Reply(from, request.header, Frame());
    server_.rpc.ReplyError(from, request.header, absl::InternalError("?"));
  });
  client_.rpc.Tell(kServer, Request(pb::HEARTBEAT));
  Run();
  EXPECT_EQ(served_, 1u);
  EXPECT_EQ(server_.transport->counters().frames_in, 2u);
  EXPECT_EQ(server_.transport->counters().frames_out, 0u);
}

TEST_F(RpcTest, OnlyTheOneAskedCanAnswer) {
  Node stranger(&world_, &network_, kStranger, "stranger");
  ASSERT_TRUE(stranger.transport->Connect(kClient, "sim://worker-0").ok());
  server_.rpc.Handle(pb::PULL, [&](NodeId from, Frame request) {
    stranger.rpc.ReplyError(kClient, request.header, absl::InternalError("forged"));
    server_.env.After(absl::Milliseconds(20), [this, from, header = request.header] {
      server_.rpc.Reply(from, header, Frame());
    });
  });
  Call();
  Run();
  ASSERT_EQ(callbacks_, 1);
  EXPECT_TRUE(answer_->ok()) << answer_->status();
  EXPECT_EQ(client_.rpc.counters().late_answers, 1u);
}

TEST_F(RpcTest, AdmissionRefusesRequestsAndAnswers) {
  ServeEcho();
  server_.rpc.SetAdmission([](NodeId, const pb::FrameHeader& header) {
    return header.job() == 42 ? absl::OkStatus() : absl::FailedPreconditionError("this is job 42");
  });
  Call();
  Run();
  EXPECT_EQ(served_, 0u);
  EXPECT_EQ(answer_->status(), absl::FailedPreconditionError("this is job 42"));

  client_.rpc.SetIdentity(42, 1, 0);
  client_.rpc.SetAdmission(
      [](NodeId, const pb::FrameHeader&) { return absl::FailedPreconditionError("version 1"); });
  Call();
  ASSERT_TRUE(world_.RunUntil([this] { return callbacks_ == 2; }, absl::Seconds(1)));
  EXPECT_EQ(served_, 1u);
  EXPECT_EQ(answer_->status(), absl::FailedPreconditionError("version 1"));
}

TEST_F(RpcTest, CallbacksMayCallAgain) {
  ServeEcho();
  uint64_t last = 0;
  std::function<void(uint64_t)> next = [&](uint64_t tick) {
    Frame request = Request();
    request.header.set_tick(tick);
    client_.rpc.Call(kServer, std::move(request), Options(), [&](absl::StatusOr<Frame> answer) {
      ASSERT_TRUE(answer.ok());
      last = answer->header.tick();
      if (last < 10) next(last);
    });
  };
  next(0);
  Run();
  EXPECT_EQ(last, 10u);
}

TEST_F(RpcTest, PayloadIsHeldUntilAnsweredAndThenGivenBack) {
  ServeEcho();
  Buffer gradient = Buffer::Copy("12345678");
  Frame request = Request();
  request.header.add_part()->set_count(2);
  request.payload.push_back(gradient);
  bool unique_in_callback = false;
  client_.rpc.Call(kServer, std::move(request), Options(),
                   [&](absl::StatusOr<Frame>) { unique_in_callback = gradient.unique(); });
  EXPECT_FALSE(gradient.unique());
  Run();
  EXPECT_TRUE(unique_in_callback);
}

TEST_F(RpcTest, ADestroyedRpcLeavesNothingBehind) {
  {
    Node gone(&world_, &network_, kStranger, "gone");
    ASSERT_TRUE(gone.transport->Connect(kServer, "sim://server-0").ok());
    gone.rpc.Call(kServer, Request(), Options(), [this](absl::StatusOr<Frame>) { ++callbacks_; });
  }
  Run();
  EXPECT_EQ(callbacks_, 0);
}

}  // namespace
}  // namespace parley
