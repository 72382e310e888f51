// The scheduler's own troubles: it stands still, loses the lead, finds another job's state, or is
// started again in the middle of something.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "proto/scheduler.pb.h"
#include "ps/net/admission.h"
#include "scheduler/scheduler_node.h"
#include "tests/unit/scheduler/scheduler_testing.h"

namespace parley {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Saves wait until they are let through.
class HeldStore : public MemoryStore {
 public:
  void Save(std::string now, absl::AnyInvocable<void(absl::Status)> saved) override {
    if (!held) return MemoryStore::Save(std::move(now), std::move(saved));
    waiting.emplace_back(std::move(now), std::move(saved));
  }
  void Release() {
    held = false;
    for (auto& [now, saved] : std::exchange(waiting, {})) {
      MemoryStore::Save(std::move(now), std::move(saved));
    }
  }
  bool held = false;
  std::vector<std::pair<std::string, absl::AnyInvocable<void(absl::Status)>>> waiting;
};

class SchedulerRestartTest : public SchedulerNodeTest {
 protected:
  void KillScheduler() {
    scheduler_env_->Kill();
    Run(absl::Milliseconds(300));
    scheduler_.reset();
    scheduler_transport_.reset();
  }
  // What FAILED says, from the node with this index.
  void SayFailed(size_t index) {
    pb::Stop reason;
    reason.set_reason("line 7 is no number");
    Frame frame;
    frame.header.set_kind(pb::FAILED);
    frame.header.set_body(reason.SerializeAsString());
    nodes_[index]->rpc->Tell(kSchedulerNode, std::move(frame));
    Run(absl::Milliseconds(20));
    nodes_[index]->env.Kill();
  }
  HeldStore held_;
};

TEST_F(SchedulerRestartTest, ASchedulerThatStoodStillGivesNobodyUp) {
  StartJob();
  for (int i = 0; i < 5; ++i) {
    Run(absl::Milliseconds(37));
    scheduler_env_->Stall(absl::Seconds(3));
    Run(absl::Seconds(4));
  }
  EXPECT_THAT(Events(), Not(HasSubstr("is dead")));
  for (auto& node : nodes_) EXPECT_EQ(node->assigned.size(), 1u);
  // Whoever is silent from then on is missed as ever.
  Kill(3);
  Run(absl::Seconds(2));
  EXPECT_THAT(Events(), HasSubstr("worker 1 (host:103) is dead"));
}

TEST_F(SchedulerRestartTest, ItDoesNotTakeItsOwnStandstillForTheSilenceOfOneItAsks) {
  StartJob();
  nodes_[3]->env.Stall(absl::Milliseconds(300));
  Node other(&world_, &network_, 800, pb::WORKER);  // tells the scheduler of a broken connection
  other.Join();
  Run(absl::Milliseconds(20));
  other.env.Kill();
  for (int i = 0; i < 10; ++i) network_.TellGone(NodeId{800});  // of which some get there
  Run(absl::Milliseconds(30));
  scheduler_env_->Stall(absl::Milliseconds(450));
  Run(absl::Seconds(1));
  EXPECT_THAT(Events(), Not(HasSubstr("(host:103) is dead")));
}

TEST_F(SchedulerRestartTest, WhoeverIsSlowWhenAnothersConnectionBreaksIsNotShot) {
  experiment_.mutable_cluster()->set_node_timeout_ms(3000);
  StartJob();
  Node* dying = Add(pb::WORKER);
  Run(absl::Milliseconds(200));
  nodes_[1]->env.Stall(absl::Milliseconds(700));
  for (int i = 0; i < 10; ++i) network_.TellGone(dying->node);  // of which some get there
  dying->env.Kill();
  Run(absl::Milliseconds(600));
  EXPECT_THAT(Events(), HasSubstr("(host:104) is dead: its connection broke"));
  Run(absl::Seconds(3));
  EXPECT_THAT(Events(), Not(HasSubstr("(host:101) is dead")));
}

// It may have looked for the scheduler elsewhere, for want of an answer, and will be back.
TEST_F(SchedulerRestartTest, WhoHasNotHeardThatItIsAdmittedIsNotShotWhenItsConnectionBreaks) {
  experiment_.mutable_cluster()->set_node_timeout_ms(3000);
  StartScheduler();
  Run(absl::Milliseconds(100));
  Node* away = Add(pb::WORKER);
  away->env.Stall(absl::Seconds(60));  // the Welcome finds nobody
  Run(absl::Milliseconds(100));
  EXPECT_THAT(Events(), HasSubstr("(host:100) joined"));
  away->env.Kill();
  for (int i = 0; i < 10; ++i) network_.TellGone(away->node);  // of which some get there
  Run(absl::Seconds(1));
  EXPECT_THAT(Events(), Not(HasSubstr("connection broke")));
  Run(absl::Seconds(4));
  EXPECT_THAT(Events(), HasSubstr("(host:100) is dead"));  // by its silence
}

TEST_F(SchedulerRestartTest, WhoHasYetToFindTheNextSchedulerIsNotShotWhenAnothersConnectionBreaks) {
  experiment_.mutable_cluster()->set_node_timeout_ms(3000);
  store_ = &memory_;
  StartJob();
  KillScheduler();
  nodes_[3]->env.Stall(absl::Milliseconds(1500));
  StartScheduler();
  Node* dying = Add(pb::WORKER);
  Run(absl::Milliseconds(200));
  for (int i = 0; i < 10; ++i) network_.TellGone(dying->node);  // of which some get there
  dying->env.Kill();
  Run(absl::Milliseconds(1000));
  EXPECT_THAT(Events(), HasSubstr("(host:104) is dead: its connection broke"));
  Run(absl::Seconds(3));
  EXPECT_THAT(Events(), Not(HasSubstr("(host:103) is dead")));
}

TEST_F(SchedulerRestartTest, ADeposedSchedulerThatFailsTellsNobody) {
  experiment_.mutable_cluster()->set_worker_loss(pb::Cluster::FAIL);
  store_ = &held_;
  StartJob();
  held_.held = true;
  Kill(3);  // ends the job, if it were this one's
  Run(absl::Seconds(2));
  ASSERT_FALSE(held_.waiting.empty());
  held_.broken = absl::FailedPreconditionError("another leads");
  held_.Release();
  Run(absl::Seconds(10));
  ASSERT_TRUE(end_.has_value());
  EXPECT_THAT(std::string(end_->message()), HasSubstr("another leads"));
  EXPECT_FALSE(scheduler_->owns_state()) << "so it is not removed";
  EXPECT_FALSE(keeper_.summary.has_value());
  for (auto& node : nodes_) EXPECT_FALSE(node->stop.has_value());
}

TEST_F(SchedulerRestartTest, AFailureIsToldThoughItCannotBeSaved) {
  experiment_.mutable_cluster()->set_worker_loss(pb::Cluster::FAIL);
  store_ = &memory_;
  StartJob();
  memory_.broken = absl::ResourceExhaustedError("disk full");
  Kill(3);
  Run(absl::Seconds(20));
  ASSERT_TRUE(end_.has_value());
  EXPECT_THAT(std::string(end_->message()), HasSubstr("is dead"));
  EXPECT_TRUE(nodes_[0]->stop.has_value());
}

TEST_F(SchedulerRestartTest, AnothersStateIsLeftAlone) {
  store_ = &memory_;
  pb::SchedulerState state;
  state.set_format(1);
  state.set_job("another");
  for (const std::string& theirs : {state.SerializeAsString(), std::string("no state at all")}) {
    memory_.state = theirs;
    memory_.saves = 0;
    end_.reset();
    StartScheduler();
    Run(absl::Seconds(10));
    ASSERT_TRUE(end_.has_value());
    EXPECT_FALSE(end_->ok());
    EXPECT_FALSE(scheduler_->owns_state());
    EXPECT_EQ(memory_.state, theirs);
    EXPECT_EQ(memory_.saves, 0);
    scheduler_.reset();
    scheduler_transport_.reset();
  }
  memory_.state.reset();
  StartScheduler();
  Run(absl::Milliseconds(100));
  EXPECT_TRUE(scheduler_->owns_state());
}

// Each roll-back gives a logical worker its chances anew.
TEST_F(SchedulerRestartTest, FailuresBeforeARollBackDoNotCountAfterIt) {
  experiment_.mutable_cluster()->set_max_restarts(5);
  StartJob();
  for (auto& node : nodes_) node->tick = 50;
  Run(absl::Milliseconds(200));
  const auto fail_on_rank_1 = [&] {
    for (size_t i = 0; i < nodes_.size(); ++i) {
      Node* node = nodes_[i].get();
      if (node->role != pb::WORKER || node->assigned.empty() || !node->env.alive()) continue;
      if (node->Last().worker_node(1) != Value(node->node)) continue;
      SayFailed(i);
      break;
    }
    Add(pb::WORKER);
    Run(absl::Milliseconds(400));
  };
  for (int i = 0; i < 2; ++i) fail_on_rank_1();
  Kill(1);  // a server: all begin again
  Run(absl::Seconds(3));
  ASSERT_EQ(nodes_[0]->Last().generation(), 2u) << Events();
  for (auto& node : nodes_) node->tick = 10;
  for (int i = 0; i < 3; ++i) fail_on_rank_1();
  EXPECT_FALSE(end_.has_value()) << *end_;
}

TEST_F(SchedulerRestartTest, AWorkerThatIsReadyIsKnownToTheNextScheduler) {
  store_ = &held_;
  StartJob();
  Node* spare = Add(pb::WORKER);
  Run(absl::Milliseconds(100));
  ASSERT_FALSE(spare->assigned.empty());
  KillScheduler();
  StartScheduler();
  Run(absl::Milliseconds(500));
  Kill(3);
  Run(absl::Seconds(2));
  EXPECT_EQ(nodes_[0]->Last().worker_node(1), Value(spare->node)) << Events();
}

TEST_F(SchedulerRestartTest, AWorkerIsNotAnsweredBeforeItIsKnownForGood) {
  store_ = &held_;
  StartJob();
  Node* spare = Add(pb::WORKER);
  // Let HELLO through, and hold the next.
  while (!Events().empty() && Events().find("host:104) joined") == std::string::npos) {
    Run(absl::Milliseconds(1));
  }
  Run(absl::Microseconds(10));
  held_.held = true;
  Run(absl::Milliseconds(200));
  EXPECT_TRUE(spare->assigned.empty());
  held_.Release();
  Run(absl::Milliseconds(200));
  EXPECT_FALSE(spare->assigned.empty());
}

// A round waits for its save when a death calls all back to the beginning: it is not sent then.
TEST_F(SchedulerRestartTest, ARoundThatWasCalledOffIsNotSentOnceItIsSaved) {
  store_ = &held_;
  StartJob();
  held_.held = true;
  SayFailed(3);  // its round waits to be saved
  ASSERT_FALSE(held_.waiting.empty());
  SayFailed(1);  // a server: its partitions are lost
  Run(absl::Milliseconds(50));
  held_.Release();
  Run(absl::Milliseconds(300));
  ASSERT_THAT(Events(), Not(HasSubstr("all begin again")));  // a replacement is waited for
  EXPECT_EQ(nodes_[0]->assigned.size(), 1u);
  Add(pb::SERVER);
  Run(absl::Milliseconds(500));
  EXPECT_EQ(nodes_[0]->Last().generation(), 2u);
}

TEST_F(SchedulerRestartTest, AServerMayReadACheckpointForLongerThanStartTimeout) {
  StartScheduler();
  for (pb::Role role : {pb::SERVER, pb::SERVER, pb::WORKER, pb::WORKER}) Add(role);
  bool read = false;
  nodes_[0]->rpc->Handle(pb::ASSIGN, [&](NodeId from, Frame frame) {
    if (read) return nodes_[0]->rpc->Reply(from, frame.header, Frame());
    nodes_[0]->rpc->ReplyParked(from, frame.header, "the checkpoint to be read");
  });
  Run(absl::Seconds(35));  // start_timeout_ms is 10 s
  EXPECT_FALSE(end_.has_value()) << *end_;
  EXPECT_TRUE(nodes_[2]->assigned.empty());
  read = true;
  Run(absl::Seconds(5));
  EXPECT_FALSE(nodes_[2]->assigned.empty());
  EXPECT_THAT(Events(), HasSubstr("training starts"));
}

TEST_F(SchedulerRestartTest, RequestsThatWaitAreBounded) {
  StartJob();
  Node tool(&world_, &network_, 900, pb::ROLE_UNKNOWN);
  tool.rpc->SetIdentity(JobId("job"), 0, 0);
  std::vector<std::string> said;
  for (int i = 0; i < 70; ++i) {
    pb::Control control;
    control.set_servers(1);  // nobody says that the copies are there: it waits
    tool.Ask(pb::CONTROL, control.SerializeAsString(), [&](absl::StatusOr<Frame> frame) {
      said.push_back(frame.ok() ? "done" : std::string(frame.status().message()));
    });
  }
  Run(absl::Milliseconds(500));
  EXPECT_EQ(said.size(), 6u);
  EXPECT_THAT(said, ::testing::Each(HasSubstr("64 requests wait already")));
}

}  // namespace
}  // namespace parley
