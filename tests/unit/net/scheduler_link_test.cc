// A node's tie to a scripted scheduler, on a virtual clock.
#include "ps/net/scheduler_link.h"

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

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kEndpoint[] = "sim://scheduler";
constexpr NodeId kNode{200}, kStranger{300};

// A transport whose connections break when the test says so.
class BreakableTransport : public Transport {
 public:
  explicit BreakableTransport(std::unique_ptr<Transport> inner) : inner_(std::move(inner)) {}
  NodeId self() const override { return inner_->self(); }
  std::string endpoint() const override { return inner_->endpoint(); }
  absl::Status Connect(NodeId peer, const std::string& endpoint) override {
    ++connects;
    if (peer == kSchedulerNode) at = endpoint;
    return inner_->Connect(peer, endpoint);
  }
  void Disconnect(NodeId peer) override { inner_->Disconnect(peer); }
  absl::Status Send(NodeId to, Frame frame) override { return inner_->Send(to, std::move(frame)); }
  void SetReceiver(Receiver receiver) override { inner_->SetReceiver(std::move(receiver)); }
  void SetPeerGone(PeerGone gone) override { gone_ = std::move(gone); }
  TransportCounters counters() const override { return inner_->counters(); }

  void Break(NodeId peer) { gone_(peer); }
  int connects = 0;
  std::string at;  // where the scheduler was looked for last

 private:
  std::unique_ptr<Transport> inner_;
  PeerGone gone_;
};

// What the scheduler would be, as far as a node sees it.
struct FakeScheduler {
  FakeScheduler(SimWorld* world, SimNetwork* network, const std::string& endpoint = kEndpoint)
      : env(world, "scheduler"),
        transport(network->CreateTransport(&env, kSchedulerNode, endpoint)),
        rpc(&env, transport.get()) {
    welcome.set_rank(2);
    welcome.set_incarnation(5);
    welcome.set_job_id(77);
    pb::Cluster* cluster = welcome.mutable_experiment()->mutable_cluster();
    cluster->set_heartbeat_ms(500);
    cluster->set_node_timeout_ms(2000);
    cluster->set_scheduler_timeout_ms(10000);
    rpc.Handle(pb::HELLO, [this](NodeId from, Frame request) {
      Frame answer;
      answer.header.set_body(welcome.SerializeAsString());
      rpc.Reply(from, request.header, std::move(answer));
    });
    rpc.Handle(pb::HEARTBEAT, [this](NodeId from, Frame request) {
      beats.push_back(env.Now());
      if (refusal.ok()) {
        rpc.Reply(from, request.header, Frame());
      } else {
        rpc.ReplyError(from, request.header, refusal);
      }
    });
  }

  SimEnv env;
  std::unique_ptr<Transport> transport;
  Rpc rpc;
  pb::Welcome welcome;
  absl::Status refusal;
  std::vector<absl::Duration> beats;
};

class SchedulerLinkTest : public ::testing::Test {
 protected:
  void Join(bool takes_assignments = true, const std::string& scheduler = kEndpoint) {
    transport_ = std::make_unique<BreakableTransport>(network_.CreateTransport(&env_, kNode, ""));
    rpc_ = std::make_unique<Rpc>(&env_, transport_.get());
    SchedulerLink::Handlers handlers;
    handlers.on_welcome = [this](const pb::Welcome&) { welcomed_ = true; };
    handlers.heartbeat = [] { return pb::Heartbeat(); };
    if (takes_assignments) {
      handlers.on_assign = [this](const pb::Assignment& assignment) -> absl::StatusOr<std::string> {
        epochs_.push_back(assignment.map().epoch());
        if (!assign_status_.ok()) return assign_status_;
        return absl::StrCat("took ", assignment.map().epoch());
      };
    }
    handlers.on_end = [this](absl::Status status) {
      EXPECT_FALSE(end_.has_value()) << "told twice";
      end_ = std::move(status);
    };
    handlers.log = [this](const std::string& line) { log_.push_back(line); };
    link_ = std::make_unique<SchedulerLink>(
        &env_, transport_.get(), rpc_.get(),
        SchedulerLink::Options{.scheduler = scheduler, .hello = {}}, std::move(handlers));
    link_->Start();
    ASSERT_TRUE(world_.RunUntil([this] { return welcomed_; }, absl::Seconds(5)));
  }

  void Run(absl::Duration time) {
    world_.RunUntil([] { return false; }, time);
  }

  // What `from` gets for an answer.
  absl::StatusOr<Frame> Ask(Rpc& from, pb::Kind kind, const std::string& body) {
    Frame frame;
    frame.header.set_kind(kind);
    frame.header.set_body(body);
    std::optional<absl::StatusOr<Frame>> answer;
    from.Call(kNode, std::move(frame), {.deadline = absl::Seconds(3), .what = "question"},
              [&](absl::StatusOr<Frame> got) { answer = std::move(got); });
    world_.RunUntil([&] { return answer.has_value(); }, absl::Seconds(5));
    return *std::move(answer);
  }

  static std::string Epoch(uint64_t epoch) {
    pb::Assignment assignment;
    assignment.mutable_map()->set_epoch(epoch);
    return assignment.SerializeAsString();
  }

  SimWorld world_{5};
  SimNetwork network_{&world_, {}};
  FakeScheduler scheduler_{&world_, &network_};
  SimEnv env_{&world_, "node"};
  std::unique_ptr<BreakableTransport> transport_;
  std::unique_ptr<Rpc> rpc_;
  std::unique_ptr<SchedulerLink> link_;
  bool welcomed_ = false;
  absl::Status assign_status_;
  std::vector<uint64_t> epochs_;
  std::vector<std::string> log_;
  std::optional<absl::Status> end_;
};

TEST_F(SchedulerLinkTest, AnswersAssignmentsAsTheHandlerSays) {
  Join();
  absl::StatusOr<Frame> answer = Ask(scheduler_.rpc, pb::ASSIGN, Epoch(4));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->header.body(), "took 4");
  assign_status_ = absl::FailedPreconditionError("too old");
  EXPECT_EQ(Ask(scheduler_.rpc, pb::ASSIGN, Epoch(3)).status(), assign_status_);
  EXPECT_THAT(epochs_, ElementsAre(4, 3));
  EXPECT_TRUE(absl::IsInvalidArgument(Ask(scheduler_.rpc, pb::ASSIGN, "\xff").status()));
  EXPECT_FALSE(end_.has_value());
}

TEST_F(SchedulerLinkTest, OnlyTheSchedulerAssignsAndAnybodyMayAskForASign) {
  Join();
  SimEnv env(&world_, "stranger");
  auto transport = network_.CreateTransport(&env, kStranger, "sim://stranger");
  Rpc stranger(&env, transport.get());
  // The node has no endpoint: it is known once it was heard.
  Frame hello;
  hello.header.set_kind(pb::PING);
  ASSERT_TRUE(transport_->Connect(kStranger, "sim://stranger").ok());
  rpc_->Tell(kStranger, std::move(hello));
  Run(absl::Milliseconds(10));
  EXPECT_TRUE(absl::IsPermissionDenied(Ask(stranger, pb::ASSIGN, Epoch(1)).status()));
  EXPECT_THAT(epochs_, IsEmpty());
  EXPECT_TRUE(Ask(stranger, pb::PING, "").ok());
  EXPECT_TRUE(Ask(scheduler_.rpc, pb::PING, "").ok());
}

TEST_F(SchedulerLinkTest, WithoutAHandlerAssignmentsAreNotServed) {
  Join(/*takes_assignments=*/false);
  EXPECT_TRUE(absl::IsUnimplemented(Ask(scheduler_.rpc, pb::ASSIGN, Epoch(1)).status()));
}

TEST_F(SchedulerLinkTest, AnAbsenceIsBorneAndSaidOnce) {
  Join();
  Run(absl::Seconds(3));
  network_.Isolate(kSchedulerNode);
  const size_t before = scheduler_.beats.size();
  Run(absl::Milliseconds(8700));
  EXPECT_FALSE(end_.has_value());
  ASSERT_EQ(log_.size(), 1u);
  EXPECT_THAT(log_[0], AllOf(HasSubstr("the scheduler at sim://scheduler has not answered for 2."),
                             HasSubstr("scheduler_timeout_ms 10000")));
  EXPECT_EQ(scheduler_.beats.size(), before);
  EXPECT_GT(transport_->connects, 1);  // it keeps looking for it
  network_.Heal();
  Run(absl::Seconds(3));
  ASSERT_EQ(log_.size(), 2u);
  EXPECT_THAT(log_[1], HasSubstr("the scheduler is back after 9."));
  EXPECT_GT(scheduler_.beats.size(), before);
  // A second absence is one more, with all the time of the first.
  network_.Isolate(kSchedulerNode);
  Run(absl::Seconds(9));
  EXPECT_EQ(log_.size(), 3u);
  EXPECT_FALSE(end_.has_value());
}

TEST_F(SchedulerLinkTest, ASchedulerThatIsGoneForGoodEndsTheNode) {
  Join();
  network_.Isolate(kSchedulerNode);
  ASSERT_TRUE(world_.RunUntil([this] { return end_.has_value(); }, absl::Seconds(12)));
  EXPECT_TRUE(absl::IsUnavailable(*end_));
  EXPECT_THAT(
      std::string(end_->message()),
      AllOf(HasSubstr("the scheduler at sim://scheduler has not answered a heartbeat for 10"),
            HasSubstr("scheduler_timeout_ms is 10000")));
}

TEST_F(SchedulerLinkTest, ASchedulerThatDoesNotKnowTheNodeEndsIt) {
  for (const absl::Status& refusal :
       {absl::FailedPreconditionError("join first"), absl::NotFoundError("who is it")}) {
    end_.reset();
    Join();
    scheduler_.refusal = refusal;
    ASSERT_TRUE(world_.RunUntil([this] { return end_.has_value(); }, absl::Seconds(2)));
    EXPECT_EQ(*end_, refusal);
    scheduler_.refusal = absl::OkStatus();
    link_.reset();
    rpc_.reset();
    transport_.reset();
  }
}

TEST_F(SchedulerLinkTest, ABrokenConnectionIsFollowedByAHeartbeat) {
  Join();
  Run(absl::Milliseconds(3700));
  const size_t before = scheduler_.beats.size();
  transport_->Break(NodeId{42});
  Run(absl::Milliseconds(5));
  EXPECT_EQ(scheduler_.beats.size(), before);  // somebody else's
  // Heartbeats go out at multiples of 500 ms after the welcome; this is far from the next.
  transport_->Break(kSchedulerNode);
  Run(absl::Milliseconds(5));
  EXPECT_EQ(scheduler_.beats.size(), before + 1);
  for (int i = 0; i < 20; ++i) transport_->Break(kSchedulerNode);
  Run(absl::Milliseconds(5));
  EXPECT_EQ(scheduler_.beats.size(), before + 1);
  // And they go on as before, one a period.
  Run(absl::Milliseconds(5000));
  EXPECT_NEAR(static_cast<double>(scheduler_.beats.size() - before), 11, 1);
}

// Of three only the one of the fixture, the last, leads at first.
constexpr char kPlaces[] = "sim://here,sim://there,sim://scheduler";

TEST_F(SchedulerLinkTest, WhoJoinsLooksForTheOneThatLeads) {
  Join(true, kPlaces);
  EXPECT_EQ(transport_->at, kEndpoint);
  const int connects = transport_->connects;
  Run(absl::Seconds(20));
  EXPECT_EQ(transport_->connects, connects) << "it stays where it is answered";
  EXPECT_THAT(log_, IsEmpty());
}

TEST_F(SchedulerLinkTest, ANodeFindsTheOneThatTakesOverBeforeThatOneGivesItUp) {
  Join(true, kPlaces);
  Run(absl::Seconds(3));
  const absl::Duration before = env_.Now();
  scheduler_.env.Kill();
  FakeScheduler other(&world_, &network_, "sim://there");
  ASSERT_TRUE(world_.RunUntil([&] { return !other.beats.empty(); }, absl::Seconds(10)));
  // node_timeout_ms is 2000, and a heartbeat may have been answered right before the death.
  EXPECT_LT(env_.Now() - before, absl::Milliseconds(2000));
  EXPECT_EQ(transport_->at, "sim://there");
  Run(absl::Seconds(5));
  EXPECT_EQ(transport_->at, "sim://there");
  EXPECT_FALSE(end_.has_value());
}

TEST_F(SchedulerLinkTest, NobodyAtAnyPlaceEndsTheNode) {
  Join(true, kPlaces);
  network_.Isolate(kSchedulerNode);
  ASSERT_TRUE(world_.RunUntil([this] { return end_.has_value(); }, absl::Seconds(12)));
  EXPECT_THAT(std::string(end_->message()),
              HasSubstr(absl::StrCat("the scheduler at ", kPlaces, " has not answered")));
}

TEST_F(SchedulerLinkTest, APlaceThatIsNoneIsFoundOutAtOnce) {
  transport_ = std::make_unique<BreakableTransport>(network_.CreateTransport(&env_, kNode, ""));
  rpc_ = std::make_unique<Rpc>(&env_, transport_.get());
  SchedulerLink::Handlers handlers;
  handlers.on_end = [this](absl::Status status) { end_ = std::move(status); };
  link_ = std::make_unique<SchedulerLink>(
      &env_, transport_.get(), rpc_.get(),
      SchedulerLink::Options{.scheduler = absl::StrCat(kEndpoint, ",elsewhere"), .hello = {}},
      std::move(handlers));
  link_->Start();
  ASSERT_TRUE(world_.RunUntil([this] { return end_.has_value(); }, absl::Seconds(1)));
  EXPECT_TRUE(absl::IsInvalidArgument(*end_)) << *end_;
}

}  // namespace
}  // namespace parley
