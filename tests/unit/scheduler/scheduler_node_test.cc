#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "proto/scheduler.pb.h"
#include "ps/net/admission.h"
#include "scheduler/scheduler_node.h"
#include "tests/unit/scheduler/scheduler_testing.h"

namespace parley {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

TEST_F(SchedulerNodeTest, WithoutFailuresThereIsOneRound) {
  StartJob();
  for (auto& node : nodes_) {
    ASSERT_EQ(node->assigned.size(), 1u);
    EXPECT_EQ(node->Last().map().epoch(), 1u);
    EXPECT_EQ(node->Last().generation(), 1u);
  }
  EXPECT_THAT(Owners(nodes_[2]->Last()), ElementsAre(100, 101, 100, 101));
  EXPECT_THAT(nodes_[2]->Last().worker_node(), ElementsAre(102, 103));
  nodes_[0]->counts.set_pushes_applied(3);
  nodes_[1]->counts.set_pushes_applied(4);
  nodes_[2]->Finish(0, 3);
  nodes_[3]->Finish(1, 4);
  Run(absl::Seconds(2));
  ASSERT_TRUE(end_.has_value());
  EXPECT_TRUE(end_->ok()) << *end_;
  EXPECT_TRUE(keeper_.summary->ok) << keeper_.summary->reason;
  EXPECT_EQ(keeper_.summary->pushes_acknowledged, 7u);
  EXPECT_EQ(keeper_.summary->restarts, 0u);
}

TEST_F(SchedulerNodeTest, ACopyTakesOverFromADeadServer) {
  experiment_.mutable_cluster()->set_replicas(1);
  StartJob();
  EXPECT_EQ(nodes_[0]->Last().map().table(0).backup_size(), 4);
  nodes_[0]->SayAllSynced();
  nodes_[1]->SayAllSynced();
  Run(absl::Milliseconds(100));
  EXPECT_THAT(keeper_.events, Contains("all partitions have their copies"));
  Kill(1);
  Run(absl::Seconds(2));
  EXPECT_THAT(Owners(nodes_[0]->Last()), ElementsAre(100, 100, 100, 100));
  EXPECT_GT(nodes_[2]->Last().map().epoch(), 1u);
  EXPECT_EQ(nodes_[2]->Last().generation(), 1u);
  EXPECT_THAT(Events(), HasSubstr("server 1 (host:101) is dead: no heartbeat for"));
  EXPECT_THAT(Events(), HasSubstr("2 partitions were taken over by server 0 (host:100)"));
  // Another server comes: it gets the copies, and then half of the work.
  Node* late = Add(pb::SERVER);
  for (int i = 0; i < 8; ++i) {
    Run(absl::Milliseconds(100));
    nodes_[0]->SayAllSynced();
    if (!late->assigned.empty()) late->SayAllSynced();
  }
  std::vector<uint64_t> owners = Owners(nodes_[0]->Last());
  EXPECT_EQ(std::count(owners.begin(), owners.end(), 104), 2);
  EXPECT_FALSE(end_.has_value());
}

// Messages overtake each other, and come twice.
TEST_F(SchedulerNodeTest, OfACopyTheNewestNewsAreBelieved) {
  experiment_.mutable_cluster()->set_replicas(1);
  store_ = &memory_;
  StartJob();
  const pb::Assignment first = nodes_[0]->Last();
  const auto synced = [&] {
    pb::SchedulerState state;
    EXPECT_TRUE(state.ParseFromString(*memory_.state));
    return state.assignment().map().table(0).backup(0).synced();
  };
  const pb::Backup& backup = first.map().table(0).backup(0);
  const uint32_t table = first.map().table(0).table();
  Node* primary = nodes_[0].get();
  ASSERT_EQ(first.map().shard(first.map().table(0).owner(backup.partition())).node(),
            Value(primary->node));
  const auto say = [&](pb::BackupNews::What what, uint64_t number) {
    std::optional<absl::Status> answer;
    primary->Say(table, backup, what, number, &answer);
    Run(absl::Milliseconds(100));
    return answer.value_or(absl::UnknownError("not answered"));
  };
  EXPECT_TRUE(say(pb::BackupNews::SYNCED, 3).ok());
  EXPECT_TRUE(synced());
  EXPECT_TRUE(say(pb::BackupNews::DIVERGED, 7).ok());
  EXPECT_FALSE(synced());
  EXPECT_EQ(say(pb::BackupNews::SYNCED, 3).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(synced());
  EXPECT_TRUE(say(pb::BackupNews::SYNCED, 8).ok());
  EXPECT_EQ(say(pb::BackupNews::DIVERGED, 7).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(synced());
  EXPECT_TRUE(say(pb::BackupNews::SYNCED, 8).ok());  // its answer was lost
  EXPECT_TRUE(say(pb::BackupNews::UNSYNCED, 9).ok());
  EXPECT_FALSE(synced());
  EXPECT_THAT(Events(), HasSubstr("cannot be brought up"));
  // As long as it lives, and after it.
  scheduler_.reset();
  scheduler_env_->Kill();
  StartScheduler();
  Run(absl::Milliseconds(500));
  EXPECT_EQ(say(pb::BackupNews::SYNCED, 8).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(synced());
}

// Who goes on without a copy must not have been given up for it.
TEST_F(SchedulerNodeTest, NewsOfACopyThatIsNoneAnyMoreAreRefused) {
  experiment_.mutable_cluster()->set_replicas(1);
  StartJob();
  nodes_[0]->SayAllSynced();
  nodes_[1]->SayAllSynced();
  Run(absl::Milliseconds(100));
  Kill(1);
  Run(absl::Seconds(2));
  Node* late = Add(pb::SERVER);  // gets copies, and half of the work
  Run(absl::Milliseconds(100));
  const pb::Assignment before = nodes_[0]->Last();
  for (int i = 0; i < 8; ++i) {
    Run(absl::Milliseconds(100));
    nodes_[0]->SayAllSynced();
    if (!late->assigned.empty()) late->SayAllSynced();
  }
  const std::vector<uint64_t> was = Owners(before), now = Owners(nodes_[0]->Last());
  int refused = 0;
  for (const pb::Backup& backup : before.map().table(0).backup()) {
    const uint64_t owner = was[backup.partition()];
    if (owner == now[backup.partition()]) continue;
    std::optional<absl::Status> answer;
    ASSERT_EQ(owner, 100u);
    nodes_[0]->Say(0, backup, pb::BackupNews::UNSYNCED, 1000, &answer);
    Run(absl::Milliseconds(100));
    ASSERT_TRUE(answer.has_value());
    EXPECT_EQ(answer->code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(answer->message()), HasSubstr("news 1000 of table 0"));
    ++refused;
  }
  EXPECT_GT(refused, 0);
}

// Its primary had found that they differ, and did not live to say so.
class LostCopyTest : public SchedulerNodeTest {
 protected:
  // Partition 0 is of server 0, with copies on 1, which would be its heir, and 2.
  void StartWithALostCopy() {
    experiment_.mutable_cluster()->set_servers(3);
    experiment_.mutable_cluster()->set_replicas(2);
    StartScheduler();
    for (pb::Role role : {pb::SERVER, pb::SERVER, pb::SERVER, pb::WORKER, pb::WORKER}) {
      Add(role);
      Run(absl::Milliseconds(20));
    }
    Run(absl::Milliseconds(100));
    for (size_t server : {0, 1, 2}) nodes_[server]->SayAllSynced();
    Run(absl::Milliseconds(100));
    ASSERT_THAT(keeper_.events, Contains("all partitions have their copies"));
    ASSERT_THAT(Owners(nodes_[3]->Last()), ElementsAre(100, 101, 102, 100));
    nodes_[1]->lacking.add_lacks()->set_partition(0);
  }
  void ExpectTheOtherCopyTookOver() {
    const pb::Assignment& last = nodes_[3]->Last();
    EXPECT_THAT(Owners(last), ElementsAre(102, 101, 102, 102));
    EXPECT_EQ(last.generation(), 1u);
    EXPECT_FALSE(nodes_[1]->stop.has_value());
    EXPECT_FALSE(end_.has_value());
    EXPECT_THAT(Events(), HasSubstr("server 1 shard 0 (host:101) should take over partitions, but "
                                    "has lost its copies of 1 of them"));
    EXPECT_THAT(Events(), Not(HasSubstr("host:101) is dead")));
    EXPECT_THAT(Events(), Not(HasSubstr("does not follow")));
  }
};

TEST_F(LostCopyTest, AnotherTakesOverAndNobodyIsGivenUpForIt) {
  StartWithALostCopy();
  Kill(0);
  Run(absl::Seconds(2));
  ExpectTheOtherCopyTookOver();
  // It is made again there, of the one that took over. That is primary now: nobody stands by.
  const uint64_t epoch = nodes_[3]->Last().map().epoch();
  Add(pb::SERVER);
  Run(absl::Milliseconds(500));
  ASSERT_GT(nodes_[3]->Last().map().epoch(), epoch);
  bool copied = false;
  const pb::PartitionMap& map = nodes_[3]->Last().map();
  for (const pb::Backup& backup : map.table(0).backup()) {
    EXPECT_FALSE(backup.stands_by());
    copied = copied || (backup.partition() == 0 && map.shard(backup.shard()).node() == 101);
  }
  EXPECT_TRUE(copied);
}

TEST_F(LostCopyTest, ASchedulerThatComesBackHearsOfItAgain) {
  store_ = &memory_;
  StartWithALostCopy();
  nodes_[1]->on_lack = [this] {
    if (scheduler_env_->alive()) scheduler_env_->Kill();
  };
  Kill(0);
  Run(absl::Seconds(2));
  ASSERT_FALSE(scheduler_env_->alive());
  nodes_[1]->on_lack = [] {};
  scheduler_.reset();
  scheduler_transport_.reset();
  keeper_.events.clear();
  StartScheduler();
  Run(absl::Seconds(2));
  ExpectTheOtherCopyTookOver();
}

TEST_F(LostCopyTest, IfNobodyStandsByAllBeginAgain) {
  StartWithALostCopy();
  nodes_[2]->lacking = nodes_[1]->lacking;
  Kill(0);
  Run(absl::Seconds(4));
  EXPECT_EQ(nodes_[3]->Last().generation(), 2u);
  EXPECT_THAT(Owners(nodes_[3]->Last()), ElementsAre(101, 102, 101, 102));
  EXPECT_FALSE(nodes_[1]->stop.has_value());
  EXPECT_FALSE(nodes_[2]->stop.has_value());
}

TEST_F(SchedulerNodeTest, WithoutCopiesAllBeginAgain) {
  StartJob();
  Kill(1);
  Run(absl::Milliseconds(1500));
  EXPECT_FALSE(end_.has_value());
  Node* replacement = Add(pb::SERVER);
  Run(absl::Milliseconds(500));
  ASSERT_FALSE(replacement->assigned.empty());
  const pb::Assignment& last = nodes_[2]->Last();
  EXPECT_EQ(last.generation(), 2u);
  EXPECT_FALSE(last.has_restore());
  EXPECT_THAT(Owners(last), ElementsAre(100, 104, 100, 104));
  EXPECT_THAT(last.worker_incarnation(), ElementsAre(2, 2));
  EXPECT_THAT(Events(), HasSubstr("all begin again from the first weights"));
}

// Seed 2888: its answer went to a question that the worker had closed, and no ASSIGN followed.
TEST_F(SchedulerNodeTest, ALateDuplicateOfARegistrationKeepsNobodyFromTheNextRound) {
  StartJob();
  Kill(0);
  Run(absl::Milliseconds(1300));
  ASSERT_EQ(nodes_[2]->Last().generation(), 1u);  // a replacement is waited for
  nodes_[2]->Ask(pb::REGISTER, Node::Tables().SerializeAsString(), [](absl::StatusOr<Frame>) {});
  Run(absl::Seconds(3));
  EXPECT_EQ(nodes_[3]->Last().generation(), 2u);
  EXPECT_EQ(nodes_[2]->Last().generation(), 2u);
}

TEST_F(SchedulerNodeTest, NobodyComesAndThoseThatAreThereGoOn) {
  StartJob();
  Kill(1);
  Run(absl::Seconds(4));
  EXPECT_THAT(Owners(nodes_[2]->Last()), ElementsAre(100, 100, 100, 100));
  EXPECT_FALSE(end_.has_value());
}

TEST_F(SchedulerNodeTest, WithoutRestartsTheJobEndsAsEver) {
  experiment_.mutable_cluster()->set_max_restarts(0);
  StartJob();
  Kill(1);
  Run(absl::Seconds(6));
  ASSERT_TRUE(end_.has_value());
  EXPECT_THAT(std::string(end_->message()),
              ::testing::AllOf(HasSubstr("server 1 shard 0 (host:101) is dead: no heartbeat for"),
                               HasSubstr("node_timeout_ms is 1000"), HasSubstr("in epoch 1")));
  EXPECT_FALSE(keeper_.summary->ok);
  EXPECT_FALSE(nodes_[2]->stop->ok());
}

TEST_F(SchedulerNodeTest, TheWorkOfADeadWorkerGoesToOthers) {
  StartJob();
  nodes_[0]->missing.add_lowest_missing(7);
  nodes_[0]->missing.add_lowest_missing(5);
  nodes_[1]->missing.add_lowest_missing(7);
  nodes_[1]->missing.add_lowest_missing(6);
  Kill(3);
  Run(absl::Seconds(2));
  EXPECT_THAT(nodes_[2]->Last().worker_node(), ElementsAre(102, 102));
  EXPECT_THAT(nodes_[2]->Last().worker_incarnation(), ElementsAre(1, 2));
  EXPECT_THAT(nodes_[2]->Last().worker_start(), ElementsAre(7, 5));
  EXPECT_THAT(nodes_[2]->Last().worker_skip_below(), ElementsAre());
  EXPECT_THAT(nodes_[0]->Last().worker_node(), ElementsAre(102, 102));
  Node* late = Add(pb::WORKER);
  Run(absl::Milliseconds(500));
  EXPECT_THAT(late->Last().worker_node(), ElementsAre(102, 104));
  EXPECT_THAT(late->Last().worker_incarnation(), ElementsAre(1, 3));
}

TEST_F(SchedulerNodeTest, WorkerLossFailEndsTheJob) {
  experiment_.mutable_cluster()->set_worker_loss(pb::Cluster::FAIL);
  StartJob();
  Kill(3);
  Run(absl::Seconds(6));
  ASSERT_TRUE(end_.has_value());
  EXPECT_THAT(std::string(end_->message()), HasSubstr("worker 1 (host:103) is dead"));
}

TEST_F(SchedulerNodeTest, WorkThatKillsIsNotGivenOutForever) {
  StartJob();
  for (size_t i = 0; i < 8 && !end_.has_value(); ++i) {
    // Whoever has logical worker 1 fails on it.
    for (auto& node : nodes_) {
      if (node->role != pb::WORKER || node->assigned.empty() || !node->env.alive()) continue;
      if (node->Last().worker_node(1) != Value(node->node)) continue;
      pb::Stop reason;
      reason.set_reason("line 7 is no number");
      Frame frame;
      frame.header.set_kind(pb::FAILED);
      frame.header.set_body(reason.SerializeAsString());
      node->rpc->Tell(kSchedulerNode, std::move(frame));
      Run(absl::Milliseconds(5));
      node->env.Kill();
      break;
    }
    Add(pb::WORKER);
    Run(absl::Milliseconds(300));
  }
  Run(absl::Seconds(6));
  ASSERT_TRUE(end_.has_value());
  EXPECT_THAT(std::string(end_->message()),
              ::testing::AllOf(HasSubstr("failed: line 7 is no number"),
                               HasSubstr("logical worker 1 failed 4 times")));
}

TEST_F(SchedulerNodeTest, ASchedulerThatComesBackGoesOn) {
  store_ = &memory_;
  StartJob();
  EXPECT_GT(memory_.saves, 0);
  const uint64_t epoch = nodes_[2]->Last().map().epoch();
  scheduler_env_->Kill();
  Run(absl::Milliseconds(300));
  scheduler_.reset();
  scheduler_transport_.reset();
  StartScheduler();
  Run(absl::Milliseconds(500));
  EXPECT_THAT(Events(), HasSubstr("the scheduler is back, and goes on with epoch 1 and 4 nodes"));
  EXPECT_EQ(nodes_[2]->Last().map().epoch(), epoch);
  EXPECT_EQ(nodes_[2]->Last().generation(), 1u);
  EXPECT_GE(nodes_[0]->assigned.size(), 2u);  // the round was made again
  EXPECT_FALSE(nodes_[0]->stop.has_value());
  nodes_[0]->counts.set_pushes_applied(3);
  nodes_[2]->Finish(0, 2);
  nodes_[3]->Finish(1, 1);
  Run(absl::Seconds(2));
  ASSERT_TRUE(end_.has_value());
  EXPECT_TRUE(end_->ok()) << *end_;
  pb::SchedulerState state;
  ASSERT_TRUE(state.ParseFromString(*memory_.state));
  EXPECT_TRUE(state.ended());
}

TEST_F(SchedulerNodeTest, NothingChangesWhileTheStateCannotBeSaved) {
  store_ = &memory_;
  StartJob();
  memory_.broken = absl::ResourceExhaustedError("disk full");
  Kill(3);
  Run(absl::Seconds(3));
  EXPECT_EQ(nodes_[0]->assigned.size(), 1u);
  EXPECT_THAT(Events(), HasSubstr("cannot be saved"));
  memory_.broken = absl::OkStatus();
  Run(absl::Seconds(2));
  EXPECT_THAT(nodes_[0]->Last().worker_node(), ElementsAre(102, 102));
}

TEST_F(SchedulerNodeTest, ADeposedSchedulerTellsNobodyToStop) {
  store_ = &memory_;
  StartJob();
  memory_.broken = absl::FailedPreconditionError("another leads");
  Kill(3);
  Run(absl::Seconds(3));
  ASSERT_TRUE(end_.has_value());
  EXPECT_THAT(std::string(end_->message()), HasSubstr("another leads"));
  EXPECT_FALSE(keeper_.summary.has_value());
  EXPECT_FALSE(nodes_[0]->stop.has_value());
}

// A partition that moved might wait for a norm for ever, or workers hold weights that are none.
TEST_F(SchedulerNodeTest, PartitionsThatCannotBeCopiedStayWhereTheyAre) {
  experiment_.mutable_consistency()->set_mode(pb::Consistency::ASP);
  experiment_.mutable_optimizer()->set_clip_norm(1);
  StartJob();
  Add(pb::SERVER);
  Run(absl::Seconds(1));
  Node tool(&world_, &network_, 900, pb::ROLE_UNKNOWN);
  tool.rpc->SetIdentity(JobId("job"), 0, 0);
  for (uint32_t servers : {1, 3}) {
    pb::Control control;
    control.set_servers(servers);
    absl::Status said;
    tool.Ask(pb::CONTROL, control.SerializeAsString(),
             [&](absl::StatusOr<Frame> frame) { said = frame.status(); });
    Run(absl::Milliseconds(500));
    EXPECT_EQ(said.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(said.message()),
                HasSubstr("cannot move while this experiment trains: it has optimizer.clip_norm "
                          "with mode ASP"));
  }
  EXPECT_THAT(Owners(nodes_[0]->Last()), ElementsAre(100, 101, 100, 101));
  EXPECT_EQ(nodes_[0]->Last().map().table(0).backup_size(), 0);
  // What is lost is lost as without copies anywhere: all begin again, also on the new server.
  Kill(1);
  Run(absl::Seconds(2));
  EXPECT_EQ(nodes_[2]->Last().generation(), 2u);
  EXPECT_THAT(Owners(nodes_[2]->Last()), ElementsAre(100, 104, 100, 104));
}

TEST_F(SchedulerNodeTest, FewerServersAreAskedForWhileItTrains) {
  StartJob();
  Node tool(&world_, &network_, 900, pb::ROLE_UNKNOWN);
  tool.rpc->SetIdentity(JobId("job"), 0, 0);
  std::vector<std::string> said;
  const auto ask = [&](uint32_t servers) {
    pb::Control control;
    control.set_servers(servers);
    tool.Ask(pb::CONTROL, control.SerializeAsString(), [&](absl::StatusOr<Frame> frame) {
      pb::ControlAnswer answer;
      if (frame.ok()) answer.ParseFromString(frame->header.body());
      said.push_back(frame.ok() ? answer.text() : std::string(frame.status().message()));
    });
  };
  ask(3);
  Run(absl::Milliseconds(100));
  EXPECT_THAT(said, ElementsAre(HasSubstr("3 servers were asked for; allowed are 1")));
  ask(1);
  for (int i = 0; i < 5; ++i) {
    Run(absl::Milliseconds(100));
    nodes_[1]->SayAllSynced();
  }
  EXPECT_THAT(Owners(nodes_[2]->Last()), ElementsAre(100, 100, 100, 100));
  ASSERT_EQ(said.size(), 2u);
  EXPECT_THAT(said[1], HasSubstr("1 servers hold the partitions now; 2 partitions moved"));
  ASSERT_TRUE(nodes_[1]->stop.has_value());
  EXPECT_TRUE(nodes_[1]->stop->ok());
  EXPECT_FALSE(nodes_[0]->stop.has_value());
}

// Whoever hangs up: only the node itself can be found gone by it.
TEST_F(SchedulerNodeTest, ANodeThatStandsStillWhileAnothersConnectionBreaksHasItsTime) {
  experiment_.mutable_cluster()->set_node_timeout_ms(5000);
  StartJob();
  nodes_[0]->env.Stall(absl::Seconds(3));
  Kill(3);
  network_.TellGone(nodes_[3]->node);
  Run(absl::Seconds(1));
  EXPECT_THAT(Events(), HasSubstr("its connection broke"));
  Run(absl::Seconds(3));
  EXPECT_THAT(Events(), Not(HasSubstr("server 0 (host:100) is dead")));
}

}  // namespace
}  // namespace parley
