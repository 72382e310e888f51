// Clusters and assignments for tests of the planner.
#ifndef PARLEY_TESTS_UNIT_SCHEDULER_PLANNER_TESTING_H_
#define PARLEY_TESTS_UNIT_SCHEDULER_PLANNER_TESTING_H_

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "scheduler/planner.h"

namespace parley {

// Servers are named by their rank: node 100 + 10 * rank + shard, process 1000 + rank.
inline PlanServer Server(uint32_t rank, uint32_t shard = 0) {
  return {.node = NodeId{100 + 10 * rank + shard},
          .process = 1000 + rank,
          .rank = rank,
          .shard = shard,
          .endpoint = absl::StrCat("tcp://", rank)};
}
inline PlanWorker Worker(uint32_t place) { return {.node = NodeId{500 + place}, .place = place}; }

// A map over servers of these ranks, partitions dealt out in turn; no backups.
inline pb::Assignment Start(const std::vector<uint32_t>& servers, std::vector<uint32_t> partitions,
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

inline void SyncAll(pb::Assignment* assignment) {
  for (pb::TableMap& table : *assignment->mutable_map()->mutable_table()) {
    for (pb::Backup& backup : *table.mutable_backup()) backup.set_synced(true);
  }
}

inline uint32_t RankOf(const pb::Assignment& assignment, uint32_t shard) {
  return assignment.map().shard(shard).server_rank();
}
// Ranks of the servers by partition: "0|1 2*" is owner 0 and backups 1 and 2, 2 not synced.
inline std::vector<std::string> Places(const pb::Assignment& assignment, int table = 0) {
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
inline std::map<uint32_t, int> Primaries(const pb::Assignment& assignment) {
  std::map<uint32_t, int> count;
  for (const pb::TableMap& table : assignment.map().table()) {
    for (uint32_t owner : table.owner()) ++count[RankOf(assignment, owner)];
  }
  return count;
}
// Rounds until nothing changes, with every copy synced after each.
inline pb::Assignment Settle(const PlanInput& input, pb::Assignment current) {
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

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_SCHEDULER_PLANNER_TESTING_H_
