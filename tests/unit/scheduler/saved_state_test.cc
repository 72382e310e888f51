#include "scheduler/saved_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

namespace parley {
namespace {

using ::testing::HasSubstr;

pb::Cluster Config() {
  pb::Cluster cluster;
  cluster.set_servers(2);
  cluster.set_shards_per_server(1);
  cluster.set_workers(1);
  return cluster;
}

// Two servers with four partitions and a copy of each, and one worker.
pb::SchedulerState Good() {
  pb::SchedulerState state;
  state.set_servers_wanted(2);
  pb::TableSpec* table = state.mutable_tables()->add_table();
  table->set_id(7);
  table->set_name("model");
  table->set_partition_elements(4);
  table->add_tensor()->add_shape(16);
  pb::Assignment* assignment = state.mutable_assignment();
  *assignment->add_table() = *table;
  assignment->add_worker_node(200);
  assignment->add_worker_incarnation(1);
  pb::PartitionMap* map = assignment->mutable_map();
  map->set_epoch(3);
  pb::TableMap* owners = map->add_table();
  owners->set_table(7);
  for (uint32_t shard = 0; shard < 2; ++shard) {
    map->add_shard()->set_node(100 + shard);
    pb::MemberState* member = state.add_member();
    member->set_node(100 + shard);
    member->set_role(pb::SERVER);
    member->set_rank(shard);
    member->set_process(100 + shard);
    member->set_name("host");
  }
  for (uint32_t p = 0; p < 4; ++p) {
    owners->add_owner(p % 2);
    pb::Backup* backup = owners->add_backup();
    backup->set_partition(p);
    backup->set_shard((p + 1) % 2);
  }
  pb::MemberState* worker = state.add_member();
  worker->set_node(200);
  worker->set_role(pb::WORKER);
  state.add_checkpoint(4);
  state.add_checkpoint(8);
  state.mutable_tally()->add_finished()->set_rank(0);
  return state;
}

TEST(SavedStateTest, WhatWasSavedIsGood) {
  EXPECT_TRUE(CheckSavedState(Good(), Config()).ok()) << CheckSavedState(Good(), Config());
  pb::SchedulerState nobody_here;
  nobody_here.set_servers_wanted(2);
  EXPECT_TRUE(CheckSavedState(nobody_here, Config()).ok());
}

TEST(SavedStateTest, WhatTheSchedulerCouldNotGoOnFromIsNamed) {
  struct Case {
    const char* named;
    std::function<void(pb::SchedulerState*)> change;
  };
  const auto map = [](pb::SchedulerState* state) {
    return state->mutable_assignment()->mutable_map();
  };
  const Case cases[] = {
      {"an owner is shard 2", [&](auto* s) { map(s)->mutable_table(0)->set_owner(3, 2); }},
      {"with 5 owners", [&](auto* s) { map(s)->mutable_table(0)->add_owner(0); }},
      {"of table 8", [&](auto* s) { map(s)->mutable_table(0)->set_table(8); }},
      {"partition 4 at shard 1",
       [&](auto* s) { map(s)->mutable_table(0)->mutable_backup(0)->set_partition(4); }},
      {"partition 0 at shard 9",
       [&](auto* s) { map(s)->mutable_table(0)->mutable_backup(0)->set_shard(9); }},
      {"two copies of partition 0",
       [&](auto* s) { map(s)->mutable_table(0)->mutable_backup(0)->set_shard(0); }},
      {"node 100 is two shards", [&](auto* s) { map(s)->mutable_shard(1)->set_node(100); }},
      {"no epoch", [&](auto* s) { map(s)->clear_epoch(); }},
      {"the epoch is", [&](auto* s) { map(s)->set_epoch(~uint64_t{0}); }},
      {"2 tables", [](auto* s) { s->mutable_assignment()->add_table(); }},
      {"assigned as another",
       [](auto* s) { s->mutable_tables()->mutable_table(0)->mutable_tensor(0)->set_shape(0, 99); }},
      {"wants 0 servers", [](auto* s) { s->clear_servers_wanted(); }},
      {"neither server nor worker", [](auto* s) { s->mutable_member(0)->clear_role(); }},
      {"is there twice", [](auto* s) { s->mutable_member(0)->set_node(200); }},
      {"rank 1, which is another's", [](auto* s) { s->mutable_member(0)->set_rank(1); }},
      {"after one of 8", [](auto* s) { s->add_checkpoint(8); }},
      {"worker 1 has finished",
       [](auto* s) { s->mutable_tally()->mutable_finished(0)->set_rank(1); }},
      {"worker 5 has reported", [](auto* s) { s->mutable_tally()->add_report()->set_rank(5); }},
  };
  for (const Case& c : cases) {
    pb::SchedulerState state = Good();
    c.change(&state);
    const absl::Status status = CheckSavedState(state, Config());
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << c.named;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.named));
  }
}

TEST(SavedStateTest, AnotherExperimentsStateIsNamed) {
  pb::SchedulerState gathering = Good();
  gathering.clear_assignment();
  pb::Cluster smaller = Config();
  smaller.set_servers(1);
  absl::Status status = CheckSavedState(gathering, smaller);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("'host' as server 1"));
  // Once the job has begun, how many servers there are is the state's own.
  EXPECT_TRUE(CheckSavedState(Good(), smaller).ok());

  pb::Cluster larger = Config();
  larger.set_workers(2);
  status = CheckSavedState(Good(), larger);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("of 1 workers"));

  pb::SchedulerState sharded = Good();
  sharded.mutable_member(1)->set_shard(1);
  EXPECT_EQ(CheckSavedState(sharded, Config()).code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace parley
