#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "scheduler/planner.h"
#include "tests/unit/scheduler/planner_testing.h"

namespace parley {
namespace {

using ::testing::SizeIs;

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
    // Whoever is appointed may refuse before anything is synced by it, or goes on as primary.
    input_.vacant.clear();
    if (!appointed_.empty() && Draw(3) == 0) {
      for (const auto& partition : appointed_) {
        if (Draw(2) == 0) input_.vacant.insert(partition);
      }
      return;
    }
    for (pb::TableMap& table : *current_.mutable_map()->mutable_table()) {
      for (pb::Backup& backup : *table.mutable_backup()) {
        backup.clear_stands_by();
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
    appointed_.clear();
    for (int t = 0; t < plan.next.map().table_size(); ++t) {
      for (int p = 0; p < plan.next.map().table(t).owner_size(); ++p) {
        if (NodeOf(current_, current_.map().table(t).owner(p)) ==
            NodeOf(plan.next, plan.next.map().table(t).owner(p))) {
          continue;
        }
        appointed_.emplace(t, p);
      }
    }
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

  // Whose owner has refused; those that stand by are as good as synced then.
  bool Vacant(int table, uint32_t partition) {
    return input_.vacant.contains({static_cast<size_t>(table), partition});
  }
  bool StandsBy(int table, uint32_t partition, uint64_t node) {
    for (const pb::Backup& backup : current_.map().table(table).backup()) {
      if (backup.partition() == partition && NodeOf(current_, backup.shard()) == node) {
        return backup.stands_by();
      }
    }
    return false;
  }

  void CheckLost(const Plan& plan) {
    const auto table = static_cast<int>(plan.lost_table);
    const uint32_t owner = current_.map().table(table).owner(plan.lost_partition);
    const bool vacant = Vacant(table, plan.lost_partition);
    EXPECT_FALSE(Lives(NodeOf(current_, owner)) && !vacant);
    for (const auto& [node, synced] : Copies(current_, table, plan.lost_partition)) {
      const bool good = synced || (vacant && StandsBy(table, plan.lost_partition, node));
      EXPECT_FALSE(good && Lives(node));
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
    if (before == after) {
      EXPECT_FALSE(Vacant(t, p));
      return;
    }
    ASSERT_TRUE(old_copies.contains(after)) << "taken over by one that has no copy";
    EXPECT_TRUE(old_copies.at(after) || (Vacant(t, p) && StandsBy(t, p, after)))
        << "taken over by a copy that is not synced";
  }

  // Left alone it comes to rest: everybody has what was asked for, and the work is spread.
  void Drain() {
    input_.vacant.clear();
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
  std::set<std::pair<size_t, uint32_t>> appointed_;  // partitions, by the newest plan
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
