#include "scheduler/planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "tests/unit/scheduler/planner_testing.h"

namespace parley {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class PlannerTest : public ::testing::Test {
 protected:
  void Servers(std::vector<uint32_t> ranks) {
    input_.servers.clear();
    for (uint32_t rank : ranks) input_.servers.push_back(Server(rank));
  }
  void Workers(std::vector<uint32_t> places) {
    input_.workers.clear();
    for (uint32_t place : places) input_.workers.push_back(Worker(place));
  }
  PlanInput input_;
};

TEST_F(PlannerTest, WhatIsWellStaysAsItIs) {
  Servers({0, 1, 2});  // 2 is a spare
  Workers({0, 1, 2});
  input_.servers_wanted = 2;
  const pb::Assignment start = Start({0, 1}, {5, 2}, 2);
  const Plan plan = MakePlan(input_, start);
  EXPECT_FALSE(plan.changed);
  EXPECT_TRUE(plan.settled);
  EXPECT_EQ(plan.next.SerializeAsString(), start.SerializeAsString());
}

TEST_F(PlannerTest, BackupsAreMadeOnOtherServersAndTheWorkIsSpread) {
  Servers({0, 1, 2});
  Workers({0});
  input_.servers_wanted = 3;
  input_.replicas = 1;
  const Plan plan = MakePlan(input_, Start({0, 1, 2}, {6}, 1));
  EXPECT_TRUE(plan.changed);
  EXPECT_FALSE(plan.settled);
  EXPECT_THAT(Places(plan.next), ElementsAre("0|1*", "1|0*", "2|0*", "0|2*", "1|2*", "2|1*"));
  EXPECT_EQ(plan.next.map().table(0).backup(0).since(), 2u);
  // Nothing more to do until something is synced.
  const Plan again = MakePlan(input_, plan.next);
  EXPECT_FALSE(again.changed);
  EXPECT_FALSE(again.settled);
}

TEST_F(PlannerTest, ASyncedBackupTakesOver) {
  Servers({0, 1, 2});
  Workers({0});
  input_.servers_wanted = 3;
  input_.replicas = 1;
  const pb::Assignment before = Settle(input_, Start({0, 1, 2}, {6}, 1));
  Servers({0, 2});
  const Plan plan = MakePlan(input_, before);
  ASSERT_FALSE(plan.lost);
  EXPECT_EQ(plan.taken_over, 2u);
  EXPECT_THAT(plan.heirs, ElementsAre(NodeId{100}, NodeId{120}));
  EXPECT_THAT(Places(plan.next), ElementsAre("0|2*", "0|2*", "2|0", "0|2", "2|0*", "2|0*"));
  EXPECT_EQ(plan.next.map().shard_size(), 2);
}

TEST_F(PlannerTest, ACopyThatIsNotSyncedDoesNot) {
  Servers({0, 1});
  Workers({0});
  input_.servers_wanted = 2;
  input_.replicas = 1;
  pb::Assignment current = Settle(input_, Start({0, 1}, {2, 3}, 1));
  current.mutable_map()->mutable_table(1)->mutable_backup(1)->set_synced(false);
  ASSERT_EQ(Places(current, 1)[1], "1|0*");
  Servers({0});
  const Plan plan = MakePlan(input_, current);
  EXPECT_TRUE(plan.lost);
  EXPECT_EQ(plan.lost_table, 1u);
  EXPECT_EQ(plan.lost_partition, 1u);
}

TEST_F(PlannerTest, WithoutReplicasADeadServerLosesPartitionsUnlessItHadNone) {
  Servers({0});
  Workers({0});
  input_.servers_wanted = 2;
  EXPECT_TRUE(MakePlan(input_, Start({0, 1}, {4}, 1)).lost);
  const Plan plan = MakePlan(input_, Start({0, 1}, {1}, 1));
  EXPECT_FALSE(plan.lost);
  EXPECT_TRUE(plan.changed);  // the map names it no more
}

TEST_F(PlannerTest, ASpareStandsInForADeadServer) {
  Servers({0, 1, 2});
  Workers({0});
  input_.servers_wanted = 2;
  input_.replicas = 1;
  pb::Assignment current = Settle(input_, Start({0, 1}, {4}, 1));
  EXPECT_THAT(Places(current), ElementsAre("0|1", "1|0", "0|1", "1|0"));
  Servers({1, 2});
  const Plan plan = MakePlan(input_, current);
  EXPECT_THAT(Places(plan.next), ElementsAre("1|2*", "1|2*", "1|2*", "1|2*"));
  current = Settle(input_, plan.next);
  EXPECT_EQ(Primaries(current)[1], 2);
  EXPECT_EQ(Primaries(current)[2], 2);
  // The old one comes back under its name: it is the spare now.
  Servers({0, 1, 2});
  EXPECT_FALSE(MakePlan(input_, current).changed);
}

TEST_F(PlannerTest, WhenAPromotionHappensTheOtherCopiesAreBroughtUpAgain) {
  Servers({0, 1, 2});
  Workers({0});
  input_.servers_wanted = 3;
  input_.replicas = 2;
  pb::Assignment current = Settle(input_, Start({0, 1, 2}, {1}, 1));
  EXPECT_THAT(Places(current), ElementsAre("0|1 2"));
  Servers({1, 2});
  const Plan plan = MakePlan(input_, current);
  EXPECT_THAT(Places(plan.next), ElementsAre("1|2*"));
  EXPECT_EQ(plan.next.map().table(0).backup(0).since(), plan.next.map().epoch());
}

TEST_F(PlannerTest, AnHeirThatHasLostItsStateIsPassedOver) {
  Servers({0, 1, 2, 3});
  Workers({0});
  input_.servers_wanted = 4;
  input_.replicas = 3;
  const pb::Assignment before = Settle(input_, Start({0, 1, 2, 3}, {1}, 1));
  EXPECT_THAT(Places(before), ElementsAre("0|1 2 3"));
  Servers({1, 2, 3});
  input_.replicas = 2;
  const Plan first = MakePlan(input_, before);
  EXPECT_THAT(Places(first.next), ElementsAre("1|2* 3*"));
  input_.vacant = {{0, 0}};
  const Plan second = MakePlan(input_, first.next);
  ASSERT_FALSE(second.lost);
  EXPECT_EQ(second.taken_over, 1u);
  EXPECT_THAT(second.heirs, ElementsAre(NodeId{120}));
  EXPECT_THAT(Places(second.next), ElementsAre("2|3* 1*"));
  const Plan third = MakePlan(input_, second.next);
  EXPECT_THAT(Places(third.next), ElementsAre("3|1* 2*"));
  // Those that have refused do not stand by.
  EXPECT_TRUE(MakePlan(input_, third.next).lost);
}

// It may have acknowledged what they lack.
TEST_F(PlannerTest, WhoStandsByIsNoHeirOfOneThatDies) {
  Servers({0, 1, 2});
  Workers({0});
  input_.servers_wanted = 3;
  input_.replicas = 2;
  const pb::Assignment before = Settle(input_, Start({0, 1, 2}, {1}, 1));
  Servers({1, 2});
  const Plan first = MakePlan(input_, before);
  ASSERT_THAT(Places(first.next), ElementsAre("1|2*"));
  EXPECT_TRUE(first.next.map().table(0).backup(0).stands_by());
  Servers({2});
  EXPECT_TRUE(MakePlan(input_, first.next).lost);
}

// Else there would be nobody to stand in; and it goes once it is not needed for that any more.
TEST_F(PlannerTest, ACopyThatStandsByIsKeptThoughItsServerIsLetGo) {
  Servers({0, 1, 2});
  Workers({0});
  input_.servers_wanted = 3;
  input_.replicas = 2;
  const pb::Assignment before = Settle(input_, Start({0, 1, 2}, {1}, 1));
  Servers({1, 2});
  input_.servers_wanted = 1;
  Plan plan = MakePlan(input_, before);
  EXPECT_THAT(Places(plan.next), ElementsAre("1|2*"));
  plan.next.mutable_map()->mutable_table(0)->mutable_backup(0)->clear_stands_by();
  EXPECT_THAT(Places(MakePlan(input_, plan.next).next), ElementsAre("1"));
}

TEST_F(PlannerTest, AServerMorePartitionsMoveUntilTheyAreSpread) {
  Servers({0, 1, 2});
  Workers({0});
  input_.servers_wanted = 3;
  const Plan first = MakePlan(input_, Start({0, 1}, {12, 1}, 1));
  EXPECT_TRUE(first.changed);
  EXPECT_EQ(first.moved, 0u);
  int joining = 0;
  for (const std::string& place : Places(first.next)) joining += place.ends_with("|2*");
  EXPECT_EQ(joining, 4);
  pb::Assignment current = Settle(input_, first.next);
  EXPECT_THAT(Primaries(current),
              ElementsAre(std::pair(0u, 5), std::pair(1u, 4), std::pair(2u, 4)));
  EXPECT_THAT(current.map().table(0).backup(), IsEmpty());
}

TEST_F(PlannerTest, AtMostSoManyMoveAtATime) {
  Servers({0, 1});
  Workers({0});
  input_.servers_wanted = 2;
  input_.max_moves = 3;
  pb::Assignment current = Start({0}, {20}, 1);
  for (int round = 0; round < 100; ++round) {
    const Plan plan = MakePlan(input_, current);
    int joining = 0;
    for (const pb::Backup& backup : plan.next.map().table(0).backup()) joining += !backup.synced();
    EXPECT_LE(joining, 3);
    if (!plan.changed && plan.settled) break;
    current = plan.next;
    // One arrives at a time.
    for (pb::Backup& backup : *current.mutable_map()->mutable_table(0)->mutable_backup()) {
      if (backup.synced()) continue;
      backup.set_synced(true);
      break;
    }
  }
  EXPECT_EQ(Primaries(current)[0], 10);
  EXPECT_EQ(Primaries(current)[1], 10);
}

TEST_F(PlannerTest, AServerLessItsPartitionsAreCopiedFirst) {
  Servers({0, 1, 2});
  Workers({0});
  input_.servers_wanted = 2;
  pb::Assignment current = Start({0, 1, 2}, {6}, 1);
  const Plan first = MakePlan(input_, current);
  EXPECT_THAT(Places(first.next), ElementsAre("0", "1", "2|0*", "0", "1", "2|1*"));
  EXPECT_FALSE(first.settled);
  current = Settle(input_, first.next);
  EXPECT_THAT(Places(current), ElementsAre("0", "1", "0", "0", "1", "1"));
  EXPECT_EQ(current.map().shard_size(), 2);
}

TEST_F(PlannerTest, AServerLessWithReplicasKeepsTheNumberOfCopies) {
  Servers({0, 1, 2});
  Workers({0});
  input_.servers_wanted = 3;
  input_.replicas = 1;
  pb::Assignment current = Settle(input_, Start({0, 1, 2}, {9}, 1));
  input_.servers_wanted = 2;
  current = Settle(input_, current);
  EXPECT_EQ(current.map().shard_size(), 2);
  for (const std::string& place : Places(current)) {
    EXPECT_TRUE(place == "0|1" || place == "1|0") << place;
  }
}

TEST_F(PlannerTest, ShardsOfOneProcessNeverHoldTwoCopies) {
  for (uint32_t rank : {0, 1}) {
    for (uint32_t shard : {0, 1}) input_.servers.push_back(Server(rank, shard));
  }
  Workers({0});
  input_.servers_wanted = 2;
  input_.replicas = 3;  // more than there can be
  pb::Assignment start;
  start.mutable_map()->set_epoch(4);
  for (const PlanServer& server : input_.servers) {
    pb::ShardAddress* shard = start.mutable_map()->add_shard();
    shard->set_node(Value(server.node));
    shard->set_server_rank(server.rank);
  }
  pb::TableMap* table = start.mutable_map()->add_table();
  for (uint32_t p = 0; p < 8; ++p) table->add_owner(p % 4);
  start.add_worker_node(500);
  start.add_worker_incarnation(1);
  const pb::Assignment settled = Settle(input_, start);
  for (const std::string& place : Places(settled)) {
    EXPECT_TRUE(place == "0|1" || place == "1|0") << place;
  }
}

TEST_F(PlannerTest, WherePartitionsMayNotBeCopiedNoneMoves) {
  Servers({0, 1, 2});
  Workers({0});
  input_.partitions_move = false;
  input_.replicas = 1;
  for (uint32_t servers : {1, 2, 3}) {
    input_.servers_wanted = servers;
    const Plan plan = MakePlan(input_, Start({0, 1}, {6}, 1));
    EXPECT_THAT(Places(plan.next), ElementsAre("0", "1", "0", "1", "0", "1"));
    EXPECT_TRUE(plan.settled);
  }
  Servers({0});
  EXPECT_TRUE(MakePlan(input_, Start({0, 1}, {6}, 1)).lost);
}

TEST_F(PlannerTest, RanksOfADeadNodeGoToTheOneWithTheFewest) {
  Servers({0});
  Workers({0, 2, 7});  // 7 is a spare
  pb::Assignment current = Start({0}, {1}, 3);
  const Plan plan = MakePlan(input_, current);
  EXPECT_THAT(plan.moved_ranks, ElementsAre(1u));
  EXPECT_THAT(plan.next.worker_node(), ElementsAre(500u, 507u, 502u));
  EXPECT_THAT(plan.next.worker_incarnation(), ElementsAre(1u, 2u, 1u));
  Workers({0, 2});
  const Plan crowded = MakePlan(input_, current);
  EXPECT_THAT(crowded.next.worker_node(), ElementsAre(500u, 500u, 502u));
  // Its replacement comes: it gets its own rank again.
  Workers({0, 1, 2});
  input_.workers[1].node = NodeId{599};
  const Plan back = MakePlan(input_, crowded.next);
  EXPECT_THAT(back.next.worker_node(), ElementsAre(500u, 599u, 502u));
  EXPECT_THAT(back.next.worker_incarnation(), ElementsAre(1u, 3u, 1u));
  input_.move_living = false;
  EXPECT_FALSE(MakePlan(input_, crowded.next).changed);
}

TEST_F(PlannerTest, WithoutAnyWorkerItWaits) {
  Servers({0});
  const Plan plan = MakePlan(input_, Start({0}, {1}, 2));
  EXPECT_TRUE(plan.orphans);
  EXPECT_FALSE(plan.changed);
}

TEST_F(PlannerTest, ARankThatIsDoneNeedsNoNode) {
  Servers({0});
  Workers({0});
  input_.finished = {1};
  EXPECT_FALSE(MakePlan(input_, Start({0}, {1}, 2)).changed);
  input_.finished = {0, 1};
  input_.workers.clear();
  EXPECT_FALSE(MakePlan(input_, Start({0}, {1}, 2)).orphans);
}

TEST_F(PlannerTest, ASlowNodeGivesItsRankAway) {
  Servers({0});
  Workers({0, 1, 2});
  input_.workers[1].slow = true;
  input_.workers[1].step_seconds = 3;
  const pb::Assignment start = Start({0}, {1}, 2);
  const Plan idle = MakePlan(input_, start);
  EXPECT_THAT(idle.next.worker_node(), ElementsAre(500u, 502u));
  EXPECT_FALSE(MakePlan(input_, idle.next).changed);  // it gets nothing back
  Workers({0, 1});
  input_.workers[1].slow = true;
  input_.workers[1].step_seconds = 3;
  EXPECT_FALSE(MakePlan(input_, start).changed);  // how fast the other is, is not known
  input_.workers[0].step_seconds = 2;
  EXPECT_FALSE(MakePlan(input_, start).changed);  // two steps of 2 s are no better than one of 3
  input_.workers[0].step_seconds = 1;
  EXPECT_THAT(MakePlan(input_, start).next.worker_node(), ElementsAre(500u, 500u));
}

TEST_F(PlannerTest, CopiesGoToOtherHostsWhereThereAreSome) {
  Servers({0, 1, 2, 3});
  input_.replicas = 1;
  input_.servers_wanted = 4;
  for (PlanServer& server : input_.servers) server.host = server.rank < 2 ? "a" : "b";
  const auto expect_apart = [&](const pb::Assignment& assignment) {
    for (const std::string& place : Places(assignment)) {
      EXPECT_NE(place[0] < '2', place[2] < '2') << place;
    }
  };
  const pb::Assignment start = Settle(input_, Start({0, 1, 2, 3}, {16}, 1));
  expect_apart(start);
  // A host with one server alone takes all that the other's servers have.
  Servers({0, 1, 2});
  for (PlanServer& server : input_.servers) server.host = server.rank < 2 ? "a" : "b";
  expect_apart(Settle(input_, start));
  // And one host is better than no copy.
  Servers({0, 1});
  for (PlanServer& server : input_.servers) server.host = "a";
  for (const std::string& place : Places(Settle(input_, Start({0, 1}, {4}, 1)))) {
    EXPECT_EQ(place.size(), 3u) << place;
  }
}

}  // namespace
}  // namespace parley
