#include "scheduler/membership.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "scheduler/assignment.h"

namespace parley {
namespace {

using ::testing::HasSubstr;

pb::Cluster TwoByTwo() {
  pb::Cluster cluster;
  cluster.set_servers(2);
  cluster.set_shards_per_server(2);
  cluster.set_workers(2);
  return cluster;
}

pb::Hello ServerHello(uint64_t process, uint32_t shard) {
  pb::Hello hello;
  hello.set_role(pb::SERVER);
  hello.set_process(process);
  hello.set_shard(shard);
  hello.set_node_name(absl::StrCat("host:", process));
  hello.set_endpoint(absl::StrCat("tcp://h:", process, shard));
  return hello;
}

pb::Hello WorkerHello() {
  pb::Hello hello;
  hello.set_role(pb::WORKER);
  hello.set_node_name("host:9");
  return hello;
}

TEST(Membership, ShardsOfAProcessShareItsRank) {
  Membership members("job", TwoByTwo());
  // Shards arrive in any order; ranks go by the first of each process.
  EXPECT_EQ((*members.Admit(NodeId{10}, ServerHello(7, 1), {}))->rank, 0u);
  EXPECT_EQ((*members.Admit(NodeId{11}, ServerHello(5, 0), {}))->rank, 1u);
  EXPECT_EQ((*members.Admit(NodeId{12}, ServerHello(7, 0), {}))->rank, 0u);
  EXPECT_FALSE(members.servers_complete());
  EXPECT_EQ(members.Missing(), "server 1 (1 of 2 shards), worker 0, worker 1");
  EXPECT_EQ((*members.Admit(NodeId{13}, ServerHello(5, 1), {}))->rank, 1u);
  EXPECT_TRUE(members.servers_complete());
  std::vector<uint64_t> order;
  for (Member* member : members.servers()) order.push_back(Value(member->node));
  EXPECT_THAT(order, ::testing::ElementsAre(12, 10, 11, 13));
}

TEST(Membership, SparesTakeThePlacesOfTheDead) {
  Membership members("job", TwoByTwo());
  uint64_t node = 10;
  for (uint64_t process : {5, 7, 8}) {  // the last is a spare
    for (uint32_t shard : {0, 1}) {
      ASSERT_TRUE(members.Admit(NodeId{node++}, ServerHello(process, shard), {}).ok());
    }
  }
  EXPECT_TRUE(members.FillPlaces().empty());
  members.Remove(NodeId{10});
  EXPECT_TRUE(members.FillPlaces().empty());  // a shard of it is still there
  members.Remove(NodeId{11});
  EXPECT_FALSE(members.servers_complete());
  EXPECT_EQ(members.FillPlaces().size(), 2u);
  EXPECT_TRUE(members.servers_complete());
  EXPECT_EQ(members.Find(NodeId{14})->rank, 0u);
  EXPECT_EQ(members.Find(NodeId{15})->rank, 0u);
  EXPECT_EQ(members.Missing(), "worker 0, worker 1");
}

TEST(Membership, HelloAgainIsTheSameMember) {
  Membership members("job", TwoByTwo());
  Member* first = *members.Admit(NodeId{10}, WorkerHello(), absl::Seconds(1));
  Member* again = *members.Admit(NodeId{10}, WorkerHello(), absl::Seconds(3));
  EXPECT_EQ(first, again);
  EXPECT_EQ(again->last_heard, absl::Seconds(3));
  EXPECT_EQ((*members.Admit(NodeId{11}, WorkerHello(), {}))->rank, 1u);
}

TEST(Membership, SurplusNodesAreSparesAndThenRefused) {
  Membership members("job", TwoByTwo());
  for (uint64_t i = 0; i < 2 + Membership::kMaxSpares; ++i) {
    absl::StatusOr<Member*> member = members.Admit(NodeId{100 + i}, WorkerHello(), {});
    ASSERT_TRUE(member.ok());
    EXPECT_EQ((*member)->spare, i >= 2);
  }
  absl::Status refused = members.Admit(NodeId{999}, WorkerHello(), {}).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(refused.message(), HasSubstr("all its 2 workers and 64 spares"));
  EXPECT_EQ(members.workers().size(), 2u);
}

TEST(Membership, ASilentSpareMakesRoom) {
  Membership members("job", TwoByTwo());
  for (uint64_t i = 0; i < 2 + Membership::kMaxSpares; ++i) {
    ASSERT_TRUE(members.Admit(NodeId{100 + i}, WorkerHello(), {}).ok());
  }
  ASSERT_FALSE(members.Admit(NodeId{999}, WorkerHello(), {}).ok());
  members.Remove(NodeId{105});
  EXPECT_EQ(members.Find(NodeId{105}), nullptr);
  EXPECT_TRUE((*members.Admit(NodeId{999}, WorkerHello(), {}))->spare);
}

TEST(Membership, AWantedRankIsGivenIfItIsFree) {
  Membership members("job", TwoByTwo());
  pb::Hello wants_one = WorkerHello();
  wants_one.set_wanted_rank(1);
  EXPECT_EQ((*members.Admit(NodeId{1}, wants_one, {}))->rank, 1u);
  EXPECT_FALSE(members.workers_complete());
  EXPECT_EQ((*members.Admit(NodeId{2}, wants_one, {}))->rank, 0u);
  EXPECT_TRUE(members.workers_complete());
  pb::Hello server = ServerHello(7, 0);
  server.set_wanted_rank(1);
  EXPECT_EQ((*members.Admit(NodeId{3}, server, {}))->rank, 1u);
  EXPECT_EQ(members.Missing(), "server 0, server 1 (1 of 2 shards)");
}

TEST(Membership, RefusalsSayWhy) {
  Membership members("job", TwoByTwo());
  pb::Hello other_job = WorkerHello();
  other_job.set_job("another");
  EXPECT_EQ(members.Admit(NodeId{1}, other_job, {}).status().message(),
            "this scheduler runs job 'job', the node asks for job 'another'");
  EXPECT_THAT(members.Admit(NodeId{1}, ServerHello(7, 2), {}).status().message(),
              HasSubstr("the experiment has shards_per_server 2"));
  pb::Hello no_endpoint = ServerHello(7, 0);
  no_endpoint.clear_endpoint();
  EXPECT_THAT(members.Admit(NodeId{1}, no_endpoint, {}).status().message(),
              HasSubstr("must name its endpoint"));
  pb::Hello long_name = WorkerHello();
  long_name.set_node_name(std::string(300, 'x'));
  EXPECT_THAT(members.Admit(NodeId{1}, long_name, {}).status().message(),
              HasSubstr("a name of 300"));
  pb::Hello no_role = WorkerHello();
  no_role.set_role(pb::SCHEDULER);
  EXPECT_THAT(members.Admit(NodeId{1}, no_role, {}).status().message(),
              HasSubstr("role SCHEDULER cannot join"));
  ASSERT_TRUE(members.Admit(NodeId{1}, ServerHello(7, 0), {}).ok());
  EXPECT_THAT(members.Admit(NodeId{2}, ServerHello(7, 0), {}).status().message(),
              HasSubstr("server 0 shard 0 (host:7) is there already"));
}

TEST(Membership, TheLongestSilentIsFound) {
  Membership members("job", TwoByTwo());
  ASSERT_TRUE(members.Admit(NodeId{1}, WorkerHello(), absl::Seconds(0)).ok());
  ASSERT_TRUE(members.Admit(NodeId{2}, WorkerHello(), absl::Seconds(1)).ok());
  EXPECT_EQ(members.Silent(absl::Seconds(5), absl::Seconds(5)), nullptr);
  EXPECT_EQ(members.Silent(absl::Seconds(7), absl::Seconds(5))->rank, 0u);
  members.Heard(NodeId{1}, absl::Seconds(7));
  EXPECT_EQ(members.Silent(absl::Seconds(7), absl::Seconds(5))->rank, 1u);
}

TEST(MakeAssignment, EveryPartitionHasOneOwnerAndTheLoadIsEven) {
  Membership members("job", TwoByTwo());
  for (uint64_t process : {7, 5}) {
    for (uint32_t shard : {0, 1}) {
      ASSERT_TRUE(
          members.Admit(NodeId{process * 10 + shard}, ServerHello(process, shard), {}).ok());
    }
  }
  ASSERT_TRUE(members.Admit(NodeId{1}, WorkerHello(), {}).ok());
  ASSERT_TRUE(members.Admit(NodeId{2}, WorkerHello(), {}).ok());
  pb::Register tables;
  pb::TableSpec* table = tables.add_table();
  table->set_id(1);
  table->set_name("model");
  table->set_partition_elements(100);
  table->add_tensor()->add_shape(950);  // 10 partitions
  absl::StatusOr<pb::Assignment> made =
      MakeAssignment(tables, members.servers(), members.workers());
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->map().epoch(), 1u);
  ASSERT_EQ(made->map().table(0).owner_size(), 10);
  std::vector<int> load(4, 0);
  for (uint32_t owner : made->map().table(0).owner()) ++load.at(owner);
  EXPECT_THAT(load, ::testing::UnorderedElementsAre(3, 3, 2, 2));
  EXPECT_EQ(made->map().shard(1).node(), 71u);
  EXPECT_EQ(made->workers(), 2u);
  EXPECT_EQ(made->worker_incarnation_size(), 2);

  tables.mutable_table(0)->set_partition_elements(0);
  EXPECT_EQ(MakeAssignment(tables, members.servers(), members.workers()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace parley
