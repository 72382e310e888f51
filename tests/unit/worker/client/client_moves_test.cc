// A client and partitions that move under what it has asked: which messages go where, and that no
// gradient is lost, applied twice or encoded twice.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "tests/unit/worker/client/moving_cluster.h"
#include "worker/client/dense_codecs.h"
#include "worker/client/shard_queues.h"

namespace parley {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kDense = MovingCluster::kDense, kSparse = MovingCluster::kSparse;
const std::vector<uint32_t> kAll = {0, 1, 2, 3, 4};

Buffer Gradients(float scale) {
  Buffer gradients = Buffer::Allocate(MovingCluster::kElements * sizeof(float));
  for (uint32_t i = 0; i < MovingCluster::kElements; ++i) {
    gradients.mutable_floats()[i] = scale * (static_cast<float>(i % 11) - 5);
  }
  return gradients;
}

std::vector<float> Pulled(MovingCluster& cluster) {
  std::vector<float> parameters(MovingCluster::kElements, -1);
  bool done = false;
  cluster.dense().Pull(
      0, parameters.data(), [](auto) {}, [&](const PullResult&) { done = true; });
  EXPECT_TRUE(cluster.Run([&] { return done; })) << cluster.error;
  return parameters;
}

std::vector<uint32_t> PartitionsOf(const pb::FrameHeader& header) {
  std::vector<uint32_t> partitions;
  for (const pb::Part& part : header.part()) partitions.push_back(part.partition());
  return partitions;
}

// Nobody answers server 0's pushes, though they are applied: their answers are lost.
MovingCluster::Script ServerZeroIsSilentIn(MovingCluster& cluster) {
  return [&cluster](uint32_t server, NodeId from, const Frame& request) {
    if (server != 0) return false;
    cluster.network.Isolate(cluster.servers[0]->node());
    cluster.Answer(server, from, request);
    return true;
  };
}

TEST(ClientMovesTest, APushOnItsWayIsCutByOwnerAndKeepsItsSequencesAndBytes) {
  MovingCluster cluster(1);
  cluster.Start(2);
  cluster.dense().Push(0, 1, kAll, Gradients(1));
  ASSERT_TRUE(cluster.AllAcknowledged());
  // Server 0 has 0, 2 and 4. It takes what comes now, but its answers are lost, and 2 goes away.
  cluster.script = [](uint32_t server, NodeId, const Frame&) { return server == 0; };
  cluster.dense().Push(1, 1, kAll, Gradients(10));
  cluster.Settle();
  const size_t before = cluster.servers[0]->requests.size();
  EXPECT_THAT(PartitionsOf(cluster.servers[0]->requests[before - 2]), ElementsAre(0, 2));
  cluster.script = nullptr;
  cluster.partitions[{kDense, 2}].owner = 1;
  cluster.TellClient();
  cluster.Settle();
  // The one of partition 4 was left alone: nothing of it has moved.
  ASSERT_EQ(cluster.servers[0]->requests.size(), before + 1);
  EXPECT_THAT(PartitionsOf(cluster.servers[0]->requests.back()), ElementsAre(0));
  EXPECT_EQ(cluster.servers[0]->requests.back().part(0).sequence(), 2u);
  EXPECT_EQ(cluster.servers[0]->requests.back().part(0).acked_below(), 2u);
  EXPECT_EQ(cluster.servers[0]->requests.back().epoch(), 2u);
  EXPECT_THAT(PartitionsOf(cluster.servers[1]->requests.back()), ElementsAre(2));
  EXPECT_EQ(cluster.servers[1]->requests.back().part(0).sequence(), 2u);
  ASSERT_TRUE(cluster.AllAcknowledged());
  for (uint32_t p : kAll) {
    const auto& pushes = cluster.partitions[{kDense, p}].pushes;
    ASSERT_EQ(pushes.size(), 2u);
    EXPECT_EQ(pushes.at(2).tick, 1u);
  }
  EXPECT_EQ(cluster.client->counters().pushes_acked, 10u);
  const Buffer sum = Gradients(11);
  EXPECT_EQ(Pulled(cluster),
            std::vector<float>(sum.floats(), sum.floats() + MovingCluster::kElements));
}

// Applied by the one that died, acknowledged by its heir: once.
TEST(ClientMovesTest, WhatADeadShardHadTakenIsAcknowledgedByTheNextAsADuplicate) {
  MovingCluster cluster(2);
  cluster.Start(3);
  cluster.script = ServerZeroIsSilentIn(cluster);
  std::vector<float> parameters(MovingCluster::kElements);
  bool pulled = false;
  cluster.dense().BeginPull(
      1, parameters.data(), [](auto) {}, [&](const PullResult&) { pulled = true; });
  cluster.dense().PushPull(0, 1, kAll, Gradients(1));
  cluster.Settle();
  EXPECT_FALSE(pulled);
  EXPECT_THAT(cluster.client->WaitingFor(), HasSubstr("server 0"));
  cluster.Kill(0, 2);
  cluster.TellClient();
  ASSERT_TRUE(cluster.Run([&] { return pulled; })) << cluster.error;
  ASSERT_TRUE(cluster.AllAcknowledged());
  EXPECT_EQ(cluster.servers[2]->requests.back().kind(), pb::PUSH_PULL);  // it stays one
  EXPECT_EQ(cluster.node.rpc.in_flight(), 0u);
  for (uint32_t p : kAll) EXPECT_EQ((cluster.partitions[{kDense, p}].pushes.size()), 1u);
  EXPECT_EQ((cluster.partitions[{kDense, 0}].pushes.at(1).arrivals), 2);
  EXPECT_EQ(parameters, cluster.weights);
}

TEST(ClientMovesTest, RefusedByEpochIsHeldUntilTheMapComes) {
  MovingCluster cluster(3);
  cluster.Start(2);
  for (auto& [at, partition] : cluster.partitions) partition.owner = 1;  // the servers hear first
  cluster.dense().Push(0, 1, kAll, Gradients(1));
  const std::vector<uint64_t> keys = {1, 2, 3};
  const float gradients[6] = {1, 2, 3, 4, 5, 6};
  bool done = false;
  cluster.sparse().Push(0, 1, keys, gradients, [&] { done = true; });
  std::vector<float> parameters(MovingCluster::kElements), rows(6);
  int pulled = 0;
  cluster.dense().Pull(
      1, parameters.data(), [](auto) {}, [&](const PullResult&) { ++pulled; });
  cluster.sparse().Pull(1, keys, rows.data(), [&](const PullResult&) { ++pulled; });
  cluster.Settle(absl::Seconds(30));
  EXPECT_THAT(cluster.client->WaitingFor(),
              HasSubstr("a newer partition map for the push of step 0 to server 0 shard 0"));
  EXPECT_FALSE(done);
  EXPECT_EQ(pulled, 0);
  cluster.TellClient();
  ASSERT_TRUE(cluster.Run([&] { return done && pulled == 2; })) << cluster.error;
  ASSERT_TRUE(cluster.AllAcknowledged());
  EXPECT_EQ(cluster.client->WaitingFor(), "");
  EXPECT_EQ(parameters, cluster.weights);
  EXPECT_EQ(rows, std::vector<float>(gradients, gradients + 6));
}

TEST(ClientMovesTest, AnOlderMapAndOneThatDoesNotCoverTheTablesChangeNothing) {
  MovingCluster cluster(4);
  cluster.Start(2);
  const pb::PartitionMap old = cluster.Map();
  cluster.TellClient();
  pb::PartitionMap bad = cluster.Map();
  bad.mutable_table(0)->mutable_owner()->RemoveLast();
  EXPECT_THAT(std::string(cluster.client->OnMap(bad).message()),
              HasSubstr("the map of table 2 has 4 owners, expected is one for each of 5"));
  bad = cluster.Map();
  bad.mutable_table(1)->set_owner(3, 2);
  EXPECT_THAT(std::string(cluster.client->OnMap(bad).message()),
              HasSubstr("partition 3 of table 4 is owned by shard 2, allowed is less than 2"));
  for (auto& [at, partition] : cluster.partitions) partition.owner = 0;
  cluster.TellClient();
  EXPECT_TRUE(cluster.client->OnMap(old).ok());
  cluster.dense().Push(0, 1, kAll, Gradients(1));
  ASSERT_TRUE(cluster.AllAcknowledged());
  EXPECT_TRUE(cluster.servers[1]->requests.empty());
}

// What a codec made of a gradient is what every owner gets: the residual moved on once.
TEST(ClientMovesTest, ACodedPushIsCutWithoutBeingEncodedAgain) {
  for (const std::string codec : {"one_bit", "int8"}) {
    MovingCluster cluster(5, {.max_delay = absl::Milliseconds(5)}, codec);
    cluster.Start(3);
    for (uint64_t tick = 0; tick < 8; ++tick) {
      if (tick % 2 == 1) {
        cluster.script = [](uint32_t, NodeId, const Frame&) { return true; };
      }
      cluster.dense().Push(tick, 1, kAll, Gradients(0.37f * static_cast<float>(tick + 1)));
      cluster.Settle();
      cluster.script = nullptr;
      for (uint32_t p : kAll) cluster.partitions[{kDense, p}].owner = (p * tick + tick) % 3;
      cluster.TellClient();
      ASSERT_TRUE(cluster.AllAcknowledged()) << cluster.error;
    }
    // The same gradients through an encoder that nothing happened to.
    pb::TableSpec spec;
    spec.set_id(kDense);
    spec.set_partition_elements(MovingCluster::kPerPartition);
    spec.add_tensor()->add_shape(MovingCluster::kElements);
    spec.mutable_compression()->set_push(codec);
    spec.mutable_compression()->set_block(16);
    BufferPool pool;
    auto encoder = DensePushEncoder::Create(spec, &cluster.layout, &pool);
    ASSERT_TRUE(encoder.ok());
    for (uint64_t tick = 0; tick < 8; ++tick) {
      const Buffer gradients = Gradients(0.37f * static_cast<float>(tick + 1));
      for (uint32_t p : kAll) {
        pb::FrameHeader header;
        header.add_part();
        const std::vector<Buffer> expected = encoder->Encode({p}, gradients, &header);
        const auto& pushes = cluster.partitions[{kDense, p}].pushes;
        ASSERT_EQ(pushes.size(), 8u);
        EXPECT_EQ(pushes.at(tick + 1).tick, tick);
        EXPECT_EQ(pushes.at(tick + 1).values, expected[0].view()) << p << " of step " << tick;
        EXPECT_EQ(pushes.at(tick + 1).value_bytes, header.part(0).value_bytes());
      }
    }
  }
}

TEST(ClientMovesTest, RowsAreToldAndReadWhereTheyAreNowAndTheirListsAreSentAnew) {
  MovingCluster cluster(6);
  cluster.Start(2);
  std::vector<uint64_t> keys(200);
  std::iota(keys.begin(), keys.end(), 5);
  std::vector<float> gradients(keys.size() * MovingCluster::kDim);
  std::iota(gradients.begin(), gradients.end(), 1.0f);
  int done = 0;
  const auto step = [&](uint64_t tick) {
    cluster.sparse().Push(tick, 1, keys, gradients.data(), [&] { ++done; });
  };
  step(0);
  ASSERT_TRUE(cluster.Run([&] { return done == 1; })) << cluster.error;
  // Now the lists are known where they are, and travel as digests; everything moves under way.
  cluster.script = [](uint32_t, NodeId, const Frame&) { return true; };
  step(1);
  std::vector<float> rows(gradients.size());
  cluster.sparse().Pull(2, keys, rows.data(), [&](const PullResult&) { ++done; });
  cluster.Settle();
  EXPECT_GT(cluster.client->counters().key_digests_sent, 0u);
  cluster.script = nullptr;
  cluster.AddServer();
  for (uint32_t p = 0; p < MovingCluster::kSparsePartitions; ++p) {
    cluster.partitions[{kSparse, p}].owner = p % 3;
  }
  cluster.TellClient();
  ASSERT_TRUE(cluster.Run([&] { return done == 3; })) << cluster.error;
  EXPECT_TRUE(cluster.AllAcknowledged());
  // The new shard was sent lists; the old ones had to say what they never had.
  EXPECT_GT(cluster.servers[2]->requests.size(), 0u);
  EXPECT_EQ(cluster.misses > 0, cluster.client->counters().key_misses > 0);
  for (size_t i = 0; i < keys.size(); ++i) {
    for (uint32_t d = 0; d < MovingCluster::kDim; ++d) {
      EXPECT_EQ(cluster.rows[keys[i]][d], 2 * gradients[i * MovingCluster::kDim + d]);
    }
  }
  // A pull and a push may meet at another server in either order; the next pull sees both.
  cluster.sparse().Pull(2, keys, rows.data(), [&](const PullResult&) { ++done; });
  ASSERT_TRUE(cluster.Run([&] { return done == 4; })) << cluster.error;
  for (size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(rows[i], 2 * gradients[i]);
}

// A shard that had the lists, lost the partition and has it again may have forgotten them.
TEST(ClientMovesTest, AKeyMissAfterAMoveIsHealed) {
  MovingCluster cluster(7);
  cluster.Start(2);
  std::vector<uint64_t> keys(300);
  std::iota(keys.begin(), keys.end(), 0);
  const std::vector<float> gradients(keys.size() * MovingCluster::kDim, 1);
  for (uint64_t tick = 0; tick < 4; ++tick) {
    bool done = false;
    cluster.sparse().Push(tick, 1, keys, gradients.data(), [&] { done = true; });
    ASSERT_TRUE(cluster.Run([&] { return done; })) << cluster.error;
    if (tick == 1) cluster.ForgetLists();
    for (auto& [at, partition] : cluster.partitions) partition.owner = 1 - partition.owner;
    cluster.TellClient();
  }
  EXPECT_GT(cluster.misses, 0u);
  EXPECT_GT(cluster.client->counters().key_misses, 0u);
  for (uint64_t key : keys) EXPECT_EQ(cluster.rows[key][0], 4);
}

TEST(ClientMovesTest, UpdatesThatAreGatheredOrOnTheirWayMoveAndEndOnce) {
  MovingCluster cluster(8);
  cluster.Start(2);
  int done = 0;
  const auto update = [&](int calls) {
    for (int i = 0; i < calls; ++i) {
      const uint64_t key = static_cast<uint64_t>(i);
      const float gradient[2] = {1, 2};
      cluster.sparse().Update({key}, gradient, [&] { ++done; });
    }
  };
  cluster.script = [](uint32_t, NodeId, const Frame&) { return true; };
  for (int turn = 0; turn < 3; ++turn) {  // two on their way, one gathered
    update(50);
    cluster.Settle();
  }
  cluster.script = nullptr;
  update(10);
  for (auto& [at, partition] : cluster.partitions) partition.owner = at.second / 4;
  cluster.TellClient();
  ASSERT_TRUE(cluster.AllAcknowledged()) << cluster.error;
  EXPECT_EQ(done, 160);
  EXPECT_EQ(cluster.sparse().updates_open(), 0u);
  EXPECT_EQ(cluster.client->counters().updates_acked, 160u);
  for (uint64_t key = 0; key < 50; ++key) {
    EXPECT_EQ(cluster.rows[key],
              (std::vector<float>{key < 10 ? 4.0f : 3.0f, key < 10 ? 8.0f : 6.0f}));
  }
  update(50);  // and afterwards as ever
  ASSERT_TRUE(cluster.AllAcknowledged()) << cluster.error;
  EXPECT_EQ(done, 210);
}

TEST(ClientMovesTest, LeaveIsHeardByEveryPartitionWhereverItGoes) {
  MovingCluster cluster(9);
  cluster.Start(3);
  bool left = false;
  // Server 2 answers; 0 is dead, and 1 has heard it, but its answer is lost.
  cluster.network.Isolate(cluster.servers[0]->node());
  cluster.script = [](uint32_t server, NodeId, const Frame&) { return server == 1; };
  cluster.client->Leave(9, [&] { left = true; });
  cluster.Settle();
  EXPECT_FALSE(left);
  EXPECT_EQ(cluster.servers[2]->requests.size(), 1u);
  cluster.script = nullptr;
  // What was at server 0 comes to 2, which has answered for its own already.
  cluster.Kill(0, 2);
  cluster.AddServer();
  cluster.TellClient();
  ASSERT_TRUE(cluster.Run([&] { return left; })) << cluster.error;
  for (const auto& [at, partition] : cluster.partitions) EXPECT_EQ(partition.left, 9u);
  EXPECT_EQ(cluster.servers[2]->requests.size(), 2u);
  EXPECT_EQ(cluster.servers[3]->requests.size(), 1u);
  EXPECT_EQ(cluster.node.rpc.in_flight(), 0u);
}

TEST(ClientMovesTest, LeaveIsOverWhenTheOnlyOneItWaitedForIsGone) {
  MovingCluster cluster(10);
  cluster.Start(2);
  for (auto& [at, partition] : cluster.partitions) partition.owner = 1;
  cluster.TellClient();
  cluster.network.Isolate(cluster.servers[0]->node());
  bool left = false;
  cluster.client->Leave(4, [&] { left = true; });
  cluster.Settle();
  EXPECT_FALSE(left);
  cluster.Kill(0, 1);
  cluster.TellClient();
  EXPECT_TRUE(left);
}

// With backups a push of a step is parked until the step is there, which takes other workers.
TEST(ClientMovesTest, ParkedPushesDoNotStopThoseBehindThem) {
  MovingCluster cluster(11);
  cluster.Start(1);
  std::vector<std::pair<NodeId, Frame>> parked;
  cluster.script = [&](uint32_t server, NodeId from, const Frame& request) {
    cluster.servers[server]->rpc().ReplyParked(from, request.header, "worker 1");
    parked.emplace_back(from, request);
    return true;
  };
  const uint64_t kTicks = 2 * ShardQueues::kCreditMessages;
  for (uint64_t tick = 0; tick < kTicks; ++tick) {
    cluster.dense().Push(tick, 1, kAll, Gradients(1));
  }
  cluster.Settle(absl::Seconds(1));
  EXPECT_EQ(parked.size(), 3 * kTicks);  // two partitions a message
  for (const auto& [from, request] : parked) cluster.Answer(0, from, request);
  ASSERT_TRUE(cluster.AllAcknowledged()) << cluster.error;
  EXPECT_EQ(cluster.client->counters().pushes_acked, 5 * kTicks);
}

}  // namespace
}  // namespace parley
