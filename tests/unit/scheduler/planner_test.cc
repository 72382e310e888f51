#include "scheduler/planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace parley {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// Servers are named by their rank: node 100 + 10 * rank + shard, process 1000 + rank.
PlanServer Server(uint32_t rank, uint32_t shard = 0) {
  return {.node = NodeId{100 + 10 * rank + shard},
          .process = 1000 + rank,
          .rank = rank,
          .shard = shard,
          .endpoint = absl::StrCat("tcp://", rank)};
}
PlanWorker Worker(uint32_t place) { return {.node = NodeId{500 + place}, .place = place}; }

// A map over servers of these ranks, partitions dealt out in turn; no backups.
pb::Assignment Start(const std::vector<uint32_t>& servers, std::vector<uint32_t> partitions,
                     uint32_t workers) {
  pb::Assignment start;
  start.mutable_map()->set_epoch(1);
  for (uint32_t rank : servers) {
    pb::ShardAddress* shard = start.mutable_map()->add_shard();
    shard->set_node(100 + 10 * rank);
    shard->set_server_rank(rank);
    shard->set_shard(0);
    shard->set_endpoint(absl::StrCat("tcp://", rank));
    shard->set_incarnation(1);
  }
  uint32_t next = 0;
  for (uint32_t count : partitions) {
    pb::TableMap* table = start.mutable_map()->add_table();
    table->set_table(start.map().table_size());
    for (uint32_t p = 0; p < count; ++p) table->add_owner(next++ % servers.size());
  }
  for (uint32_t rank = 0; rank < workers; ++rank) {
    start.add_worker_node(500 + rank);
    start.add_worker_incarnation(1);
  }
  return start;
}

void SyncAll(pb::Assignment* assignment) {
  for (pb::TableMap& table : *assignment->mutable_map()->mutable_table()) {
    for (pb::Backup& backup : *table.mutable_backup()) backup.set_synced(true);
  }
}

uint32_t RankOf(const pb::Assignment& assignment, uint32_t shard) {
  return assignment.map().shard(shard).server_rank();
}
// Ranks of the servers by partition: "0|1 2*" is owner 0 and backups 1 and 2, 2 not synced.
std::vector<std::string> Places(const pb::Assignment& assignment, int table = 0) {
  std::vector<std::string> places;
  const pb::TableMap& map = assignment.map().table(table);
  for (int p = 0; p < map.owner_size(); ++p) {
    std::string text = absl::StrCat(RankOf(assignment, map.owner(p)));
    const char* sign = "|";
    for (const pb::Backup& backup : map.backup()) {
      if (backup.partition() != static_cast<uint32_t>(p)) continue;
      absl::StrAppend(&text, sign, RankOf(assignment, backup.shard()), backup.synced() ? "" : "*");
      sign = " ";
    }
    places.push_back(text);
  }
  return places;
}
// Primaries of all tables by server rank.
std::map<uint32_t, int> Primaries(const pb::Assignment& assignment) {
  std::map<uint32_t, int> count;
  for (const pb::TableMap& table : assignment.map().table()) {
    for (uint32_t owner : table.owner()) ++count[RankOf(assignment, owner)];
  }
  return count;
}
// Rounds until nothing changes, with every copy synced after each.
pb::Assignment Settle(const PlanInput& input, pb::Assignment current) {
  SyncAll(&current);
  for (int i = 0; i < 200; ++i) {
    Plan plan = MakePlan(input, current);
    EXPECT_FALSE(plan.lost);
    if (!plan.changed) {
      EXPECT_TRUE(plan.settled);
      return current;
    }
    EXPECT_EQ(plan.next.map().epoch(), current.map().epoch() + 1);
    current = plan.next;
    SyncAll(&current);
  }
  ADD_FAILURE() << "it never settles";
  return current;
}

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

// A random history: servers and workers die and come, sizes change, copies are synced or not.
class History {
 public:
  explicit History(uint64_t seed) : random_(seed) {
    input_.replicas = Draw(3);
    const uint32_t servers = 1 + input_.replicas + Draw(3);
    input_.servers_wanted = servers;
    input_.max_moves = 1 + Draw(4);
    shards_ = 1 + Draw(2);
    std::vector<uint32_t> ranks;
    for (uint32_t i = 0; i < servers + Draw(2); ++i) AddServer();
    for (uint32_t i = 0; i < servers; ++i) ranks.push_back(i);
    std::vector<uint32_t> tables;
    for (uint32_t t = 0; t < 1 + Draw(3); ++t) tables.push_back(1 + Draw(12));
    workers_ = 1 + Draw(4);
    current_ = Start(ranks, tables, workers_);
    for (uint32_t w = 0; w < workers_; ++w) input_.workers.push_back(Worker(w));
  }

  void Run() {
    for (int round = 0; round < 40 && !lost_; ++round) {
      Disturb();
      Step();
      if (::testing::Test::HasFailure()) return;
    }
    if (lost_ || input_.workers.empty()) return;
    Drain();
  }

 private:
  uint32_t Draw(uint32_t below) {
    return std::uniform_int_distribution<uint32_t>(0, below - 1)(random_);
  }

  void AddServer() {
    for (uint32_t shard = 0; shard < shards_; ++shard)
      input_.servers.push_back(Server(next_, shard));
    ++next_;
  }

  void Disturb() {
    const auto dice = Draw(8);
    if (dice == 0) AddServer();
    if (dice == 1 && input_.servers.size() > shards_) {
      const uint32_t rank = input_.servers[Draw(input_.servers.size())].rank;
      std::erase_if(input_.servers, [&](const PlanServer& s) { return s.rank == rank; });
    }
    if (dice == 2) input_.workers.push_back(Worker(20 + next_worker_++));
    if (dice == 3 && !input_.workers.empty()) {
      input_.workers.erase(input_.workers.begin() + Draw(input_.workers.size()));
    }
    if (dice == 4) input_.servers_wanted = 1 + Draw(5);
    if (dice == 5 && !input_.workers.empty()) {
      input_.workers[Draw(input_.workers.size())].slow = Draw(2) == 0;
    }
    for (pb::TableMap& table : *current_.mutable_map()->mutable_table()) {
      for (pb::Backup& backup : *table.mutable_backup()) {
        if (Draw(2) == 0) backup.set_synced(true);
      }
    }
  }

  void Step() {
    const Plan plan = MakePlan(input_, current_);
    EXPECT_EQ(MakePlan(input_, current_).next.SerializeAsString(), plan.next.SerializeAsString());
    lost_ = plan.lost;
    if (lost_) {
      CheckLost(plan);
      return;
    }
    Check(plan);
    current_ = plan.next;
  }

  uint64_t NodeOf(const pb::Assignment& a, uint32_t shard) { return a.map().shard(shard).node(); }
  bool Lives(uint64_t node) {
    return std::any_of(input_.servers.begin(), input_.servers.end(),
                       [&](const PlanServer& s) { return Value(s.node) == node; });
  }
  std::map<uint64_t, bool> Copies(const pb::Assignment& a, int table, uint32_t partition) {
    std::map<uint64_t, bool> copies;  // node -> synced
    for (const pb::Backup& backup : a.map().table(table).backup()) {
      if (backup.partition() == partition) copies[NodeOf(a, backup.shard())] = backup.synced();
    }
    return copies;
  }

  void CheckLost(const Plan& plan) {
    const pb::TableMap& table = current_.map().table(plan.lost_table);
    EXPECT_FALSE(Lives(NodeOf(current_, table.owner(plan.lost_partition))));
    for (const auto& [node, synced] : Copies(current_, plan.lost_table, plan.lost_partition)) {
      EXPECT_FALSE(synced && Lives(node));
    }
  }

  void Check(const Plan& plan) {
    const pb::Assignment& next = plan.next;
    ASSERT_EQ(next.map().table_size(), current_.map().table_size());
    std::set<uint64_t> named;
    for (const pb::ShardAddress& shard : next.map().shard()) {
      EXPECT_TRUE(Lives(shard.node()));
      EXPECT_TRUE(named.insert(shard.node()).second);
    }
    for (int t = 0; t < next.map().table_size(); ++t) {
      ASSERT_EQ(next.map().table(t).owner_size(), current_.map().table(t).owner_size());
      uint32_t last = 0;
      for (const pb::Backup& backup : next.map().table(t).backup()) {
        EXPECT_GE(backup.partition(), last);
        last = backup.partition();
      }
      for (int p = 0; p < next.map().table(t).owner_size(); ++p) CheckPartition(next, t, p);
    }
    std::set<uint64_t> nodes;
    for (const PlanWorker& worker : input_.workers) nodes.insert(Value(worker.node));
    for (uint32_t rank = 0; rank < workers_; ++rank) {
      const bool moved = next.worker_node(rank) != current_.worker_node(rank);
      EXPECT_EQ(next.worker_incarnation(rank) > current_.worker_incarnation(rank), moved);
      if (!nodes.empty()) {
        EXPECT_TRUE(nodes.contains(next.worker_node(rank)));
      }
    }
  }

  void CheckPartition(const pb::Assignment& next, int t, uint32_t p) {
    const uint64_t before = NodeOf(current_, current_.map().table(t).owner(p));
    const uint64_t after = NodeOf(next, next.map().table(t).owner(p));
    const std::map<uint64_t, bool> old_copies = Copies(current_, t, p);
    const std::map<uint64_t, bool> copies = Copies(next, t, p);
    std::set<uint64_t> processes = {(after - 100) / 10};
    for (const auto& [node, synced] : copies) {
      EXPECT_TRUE(processes.insert((node - 100) / 10).second) << "two copies on one process";
      // Nothing but what was synced, under the same primary, counts as synced.
      if (!synced) continue;
      EXPECT_EQ(before, after);
      ASSERT_TRUE(old_copies.contains(node));
      EXPECT_TRUE(old_copies.at(node));
    }
    if (before == after) return;
    ASSERT_TRUE(old_copies.contains(after)) << "taken over by one that has no copy";
    EXPECT_TRUE(old_copies.at(after)) << "taken over by a copy that is not synced";
  }

  // Left alone it comes to rest: everybody has what was asked for, and the work is spread.
  void Drain() {
    current_ = Settle(input_, current_);
    std::set<uint32_t> live;
    for (const PlanServer& server : input_.servers) live.insert(server.rank);
    const size_t serving = std::min<size_t>(live.size(), input_.servers_wanted);
    const size_t backups = std::min<size_t>(input_.replicas, serving - 1);
    for (int t = 0; t < current_.map().table_size(); ++t) {
      const pb::TableMap& table = current_.map().table(t);
      std::map<uint32_t, int> owned;
      for (int s = 0; s < current_.map().shard_size(); ++s) owned[s] = 0;
      EXPECT_EQ(owned.size(), serving * shards_);
      for (int p = 0; p < table.owner_size(); ++p) {
        EXPECT_THAT(Copies(current_, t, p), SizeIs(backups));
        ++owned[table.owner(p)];
      }
      int least = 1000, most = 0;
      for (const auto& [shard, count] : owned) {
        least = std::min(least, count);
        most = std::max(most, count);
      }
      // With several shards a process, a copy on the one keeps a partition off the others.
      if (shards_ == 1) {
        EXPECT_LE(most - least, 1);
      }
    }
    std::map<uint64_t, int> ranks;
    for (uint64_t node : current_.worker_node()) ++ranks[node];
    for (const PlanWorker& a : input_.workers) {
      for (const PlanWorker& b : input_.workers) {
        if (b.slow) continue;
        EXPECT_LE(ranks[Value(a.node)] - ranks[Value(b.node)], 1);
      }
    }
  }

  std::mt19937_64 random_;
  PlanInput input_;
  pb::Assignment current_;
  uint32_t shards_ = 1, workers_ = 1, next_ = 0, next_worker_ = 0;
  bool lost_ = false;
};

TEST(PlannerProperty, NothingIsLostOrDoubledInRandomHistories) {
  for (uint64_t seed = 1; seed <= 3000; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    History(seed).Run();
    if (::testing::Test::HasFailure()) return;
  }
}

}  // namespace
}  // namespace parley
