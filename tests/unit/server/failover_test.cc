// Copies of partitions through whole server shards: brought up, kept, promoted, moved, fenced.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ps/server/replica_sender.h"
#include "tests/unit/server/failover_testing.h"

namespace parley {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST_F(FailoverTest, APrimaryThatDiesLosesNothingThatWasAcknowledged) {
  StartWithCopies(pb::Consistency::BSP);
  EXPECT_EQ(cluster_.news[0].node(), ServerCluster::kFirstServer + 1);
  ServerCluster::Later first;
  cluster_.AskLater(0, 0, Push(0, 1, 1), &first);
  cluster_.Run(absl::Seconds(2));
  EXPECT_FALSE(first.has_value());  // held for worker 1, and this server may die
  ASSERT_TRUE(cluster_.AskAs(1, 0, Push(0, 1, 3)).ok());
  ASSERT_TRUE(cluster_.RunUntil([&] { return first.has_value(); }));
  ASSERT_TRUE((*first).ok()) << first->status();
  // The next step: one push is held by a server that dies.
  ServerCluster::Later lost;
  cluster_.AskLater(0, 0, Push(1, 2, 1), &lost);
  cluster_.Run(absl::Milliseconds(20));
  cluster_.Kill(0);
  cluster_.AssignTo({1}, cluster_.Map(3, {1}));
  EXPECT_THAT(Weights(1, 1), Each(-2));
  // Sent again: what was acknowledged is a duplicate, what was not is taken.
  ASSERT_TRUE(cluster_.AskAs(1, 1, Push(0, 1, 3)).ok());
  ASSERT_TRUE(cluster_.AskAs(0, 1, Push(1, 2, 1)).ok());
  ASSERT_TRUE(cluster_.AskAs(1, 1, Push(1, 2, 5)).ok());
  EXPECT_THAT(Weights(1, 2), Each(-5));
  const pb::ServerCounts counts = cluster_.Count(1);
  EXPECT_EQ(counts.pushes_applied(), 4u);
  EXPECT_EQ(counts.pushes_duplicate(), 1u);
  EXPECT_THAT(counts.acknowledged(), ElementsAre(2, 2));
  EXPECT_EQ(counts.samples(), 4);
  EXPECT_EQ(counts.partitions(), 1u);
}

TEST_F(FailoverTest, NothingIsAcknowledgedNorReadThatACopyLacks) {
  StartWithCopies(pb::Consistency::BSP);
  cluster_.network.Cut(NodeId{ServerCluster::kFirstServer},
                       NodeId{ServerCluster::kFirstServer + 1});
  ServerCluster::Later pushes[2], pull;
  cluster_.AskLater(0, 0, Push(0, 1, 1), &pushes[0]);
  cluster_.AskLater(1, 0, Push(0, 1, 3), &pushes[1]);
  cluster_.AskLater(0, 0, Pull(1), &pull);
  cluster_.Run(absl::Seconds(30));
  EXPECT_FALSE(pushes[0].has_value() || pushes[1].has_value() || pull.has_value());
  cluster_.network.Heal();
  ASSERT_TRUE(cluster_.RunUntil([&] { return pushes[0] && pushes[1] && pull; }));
  EXPECT_TRUE(pushes[0]->ok() && pushes[1]->ok());
  ASSERT_TRUE((*pull).ok());
  EXPECT_THAT(FloatsOf(SplitPayload(**pull)[0].values), Each(-2));
}

TEST_F(FailoverTest, APushThatWaitsForOthersIsToldSoAtOnce) {
  StartWithCopies(pb::Consistency::BSP);
  std::vector<pb::FrameHeader> parked;
  cluster_.network.SetTap([&](NodeId, NodeId, const Frame& frame) {
    if (frame.header.kind() == pb::PARKED) parked.push_back(frame.header);
  });
  ServerCluster::Later push;
  cluster_.AskLater(0, 0, Push(0, 1, 1), &push);
  cluster_.Run(absl::Milliseconds(50));
  ASSERT_EQ(parked.size(), 1u);
  EXPECT_THAT(parked[0].status_message(), HasSubstr("worker 1 to push step 0"));
  parked.clear();
  ASSERT_TRUE(cluster_.AskAs(1, 0, Push(0, 1, 1)).ok());
  EXPECT_TRUE(parked.empty());  // it waits for the copy alone
}

TEST_F(FailoverTest, AStalePrimaryCanAcknowledgeNothing) {
  StartWithCopies(pb::Consistency::ASP);
  cluster_.AssignTo({1}, cluster_.Map(3, {1}));  // server 0 has not heard of it
  ServerCluster::Later push;
  cluster_.AskLater(0, 0, Push(0, 1, 7), &push);
  cluster_.Run(absl::Seconds(30));
  EXPECT_FALSE(push.has_value());
  EXPECT_THAT(Weights(1, 0), Each(0));
  cluster_.AssignTo({0}, cluster_.Map(3, {1}));
  ASSERT_TRUE(cluster_.RunUntil([&] { return push.has_value(); }));
  EXPECT_EQ(CodeOf(push), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(cluster_.AskAs(0, 1, Push(0, 1, 7)).ok());
  EXPECT_THAT(Weights(1, 0), Each(-7));
  EXPECT_EQ(cluster_.Assign(0, cluster_.Map(2, {0})).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(FailoverTest, PartitionsMoveWhilePushesGoOnAndEachCountsOnce) {
  cluster_.network.SetOptions({.loss = 0.05, .duplicate = 0.05});
  cluster_.experiment.mutable_consistency()->set_mode(pb::Consistency::ASP);
  cluster_.AddDense(3);
  for (int i = 0; i < 3; ++i) cluster_.AddServer();
  uint64_t epoch = 1;
  std::vector<uint32_t> owners = {0, 0, 1};
  cluster_.AssignTo({0, 1, 2}, cluster_.Map(epoch, owners));
  constexpr uint64_t kTicks = 60;
  std::vector<std::unique_ptr<ServerCluster::Later>> late;
  for (uint64_t tick = 0; tick < kTicks; ++tick) {
    // Every tenth tick one partition begins to move on, and is there five ticks later.
    const uint32_t moving = (tick / 10) % 3;
    const uint32_t to = (owners[moving] + 1) % 3;
    if (tick % 10 == 0) {
      pb::Assignment map = cluster_.Map(++epoch, owners);
      cluster_.AddBackup(&map, moving, to, false);
      cluster_.AssignTo({0, 1, 2}, map);
    }
    for (size_t worker = 0; worker < 2; ++worker) {
      for (uint32_t p = 0; p < 3; ++p) {
        const auto pushed =
            cluster_.AskAs(worker, owners[p], Push(tick, tick + 1, 1, p), absl::Seconds(60));
        ASSERT_TRUE(pushed.ok()) << pushed.status();
      }
    }
    if (tick % 10 == 5) {
      ASSERT_TRUE(cluster_.RunUntilNews(tick / 10 + 1));
      // One push that is under way meets the move; it is sent again to the new owner below.
      late.push_back(std::make_unique<ServerCluster::Later>());
      cluster_.AskLater(0, owners[moving], Push(tick + 1, tick + 2, 1, moving), late.back().get());
      owners[moving] = to;
      cluster_.AssignTo({0, 1, 2}, cluster_.Map(++epoch, owners));
    }
  }
  uint64_t applied = 0, accepted = 0;
  for (size_t server = 0; server < 3; ++server) {
    applied += cluster_.Count(server).pushes_applied();
    accepted += cluster_.Count(server).pushes_accepted();
  }
  EXPECT_EQ(applied, accepted);
  for (uint32_t p = 0; p < 3; ++p) {
    Request pull(pb::PULL, kTable);
    const auto answer = cluster_.AskAs(0, owners[p], pull.Tick(0).Part(p));
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_THAT(FloatsOf(SplitPayload(*answer)[0].values), Each(-1.f * 2 * kTicks));
  }
}

TEST_F(FailoverTest, ASpareHasNothingUntilItIsNeeded) {
  StartWithCopies(pb::Consistency::ASP);
  ASSERT_TRUE(cluster_.AskAs(0, 0, Push(0, 1, 2)).ok());
  const size_t spare = cluster_.AddServer();
  pb::Assignment map = cluster_.Map(3, {0});
  cluster_.AddBackup(&map, 0, 1, true);
  const auto assigned = cluster_.Assign(spare, map);
  ASSERT_TRUE(assigned.ok()) << assigned.status();
  EXPECT_EQ(assigned->lowest_missing_size(), 0);
  EXPECT_EQ(cluster_.AskAs(0, spare, Pull(0)).status().code(),
            absl::StatusCode::kFailedPrecondition);
  // There is nothing here to become primary.
  EXPECT_EQ(cluster_.Assign(spare, cluster_.Map(4, {2})).status().code(),
            absl::StatusCode::kFailedPrecondition);
  cluster_.Kill(1);
  cluster_.news.clear();
  map = cluster_.Map(4, {0});
  cluster_.AddBackup(&map, 0, 2, false);
  cluster_.AssignTo({0, spare}, map);
  ASSERT_TRUE(cluster_.RunUntilNews(1));
  cluster_.Kill(0);
  cluster_.AssignTo({spare}, cluster_.Map(5, {2}));
  EXPECT_THAT(Weights(spare, 0), Each(-2));
}

TEST_F(FailoverTest, ACopyWithoutStateIsNotPromotedAndSaysSo) {
  cluster_.experiment.mutable_consistency()->set_mode(pb::Consistency::ASP);
  cluster_.AddDense(2);
  for (int i = 0; i < 3; ++i) cluster_.AddServer();
  pb::Assignment map = cluster_.Map(1, {0, 1});
  cluster_.AddBackup(&map, 0, 2, false);
  cluster_.AssignTo({0, 1, 2}, map);
  ASSERT_TRUE(cluster_.RunUntilNews(1));
  ASSERT_TRUE(cluster_.AskAs(0, 0, Push(0, 1, 1)).ok());
  // What the map says of server 1 is not so.
  cluster_.network.Cut(NodeId{ServerCluster::kFirstServer},
                       NodeId{ServerCluster::kFirstServer + 1});
  map = cluster_.Map(2, {0, 1});
  cluster_.AddBackup(&map, 0, 1, true);
  cluster_.AddBackup(&map, 0, 2, true);
  cluster_.AssignTo({0, 1, 2}, map);
  cluster_.Kill(0);
  map = cluster_.Map(3, {1, 1});
  cluster_.AddBackup(&map, 0, 2, false);
  cluster_.AssignTo({2}, map);
  const auto refused = cluster_.Assign(1, map);
  ASSERT_TRUE(refused.ok()) << refused.status();
  ASSERT_EQ(refused->lacks_size(), 1);
  EXPECT_EQ(refused->lacks(0).table(), kTable);
  EXPECT_EQ(refused->lacks(0).partition(), 0u);
  EXPECT_EQ(refused->lowest_missing_size(), 0);
  EXPECT_EQ(cluster_.AskAs(0, 1, Pull(0)).status().code(), absl::StatusCode::kFailedPrecondition);
  // The other one still has what it had, though it was to follow this one; and this goes on.
  map = cluster_.Map(4, {2, 1});
  cluster_.AddBackup(&map, 0, 1, false);
  cluster_.news.clear();
  cluster_.AssignTo({1, 2}, map);
  EXPECT_THAT(Weights(2, 0), Each(-1));
  EXPECT_TRUE(cluster_.RunUntilNews(1));
  ASSERT_TRUE(cluster_.AskAs(0, 1, Push(0, 1, 1, 1)).ok());
}

TEST_F(FailoverTest, OfThreeCopiesTheOthersFollowTheOneThatIsPromoted) {
  cluster_.experiment.mutable_consistency()->set_mode(pb::Consistency::ASP);
  cluster_.AddDense();
  for (int i = 0; i < 3; ++i) cluster_.AddServer();
  pb::Assignment map = cluster_.Map(1, {0});
  cluster_.AddBackup(&map, 0, 1, true);
  cluster_.AddBackup(&map, 0, 2, true);
  cluster_.AssignTo({0, 1, 2}, map);
  ASSERT_TRUE(cluster_.AskAs(0, 0, Push(0, 1, 1)).ok());
  // Server 2 alone hears of an operation that is never acknowledged.
  cluster_.network.Cut(NodeId{ServerCluster::kFirstServer},
                       NodeId{ServerCluster::kFirstServer + 1});
  ServerCluster::Later lost;
  cluster_.AskLater(1, 0, Push(0, 1, 100), &lost);
  cluster_.Run(absl::Seconds(1));
  EXPECT_FALSE(lost.has_value());
  cluster_.Kill(0);
  map = cluster_.Map(2, {1});
  cluster_.AddBackup(&map, 0, 2, true);
  cluster_.AssignTo({1, 2}, map);
  ASSERT_TRUE(cluster_.AskAs(0, 1, Push(1, 2, 1)).ok());
  cluster_.Kill(1);
  cluster_.AssignTo({2}, cluster_.Map(3, {2}));
  EXPECT_THAT(Weights(2, 0), Each(-2));
}

TEST_F(FailoverTest, ACopyThatHasDivergedIsNamedAndBroughtUpAgain) {
  cluster_.experiment.mutable_consistency()->set_mode(pb::Consistency::ASP);
  cluster_.AddDense();
  cluster_.AddServer();
  // A server that answers as it is told.
  ServerCluster::Node copy(&cluster_.world, &cluster_.network, NodeId{150}, "sim://copy");
  copy.rpc.SetIdentity(ServerCluster::kJob, 1, 1);
  int syncs = 0, operations = 0;
  copy.rpc.Handle(pb::SYNC, [&](NodeId from, Frame request) {
    ++syncs;
    copy.rpc.Reply(from, request.header, Frame());
  });
  copy.rpc.Handle(pb::REPLICATE, [&](NodeId from, Frame request) {
    if (++operations == 2) {
      copy.rpc.ReplyError(from, request.header, absl::DataLossError("another checksum"));
    } else {
      copy.rpc.Reply(from, request.header, Frame());
    }
  });
  pb::Assignment map = cluster_.Map(1, {0});
  pb::ShardAddress* shard = map.mutable_map()->add_shard();
  shard->set_node(150);
  shard->set_endpoint("sim://copy");
  cluster_.AddBackup(&map, 0, 1, false);
  cluster_.AssignTo({0}, map);
  ASSERT_TRUE(cluster_.RunUntilNews(1));
  ASSERT_TRUE(cluster_.AskAs(0, 0, Push(0, 1, 1)).ok());
  ASSERT_TRUE(cluster_.AskAs(0, 0, Push(1, 2, 1)).ok());  // once it is brought up again
  ASSERT_TRUE(cluster_.RunUntilNews(2));
  ASSERT_EQ(cluster_.news.size(), 3u);
  EXPECT_EQ(cluster_.news[1].what(), pb::BackupNews::DIVERGED);
  EXPECT_THAT(cluster_.news[1].text(), HasSubstr("another checksum"));
  EXPECT_EQ(cluster_.news[1].node(), 150u);
  EXPECT_EQ(syncs, 2);
  EXPECT_EQ(operations, 2);
}

// Transports refuse payload buffers of more than 80 MiB.
TEST_F(FailoverTest, OnlyThePrimaryOfTheMapIsBelievedByACopy) {
  StartWithCopies(pb::Consistency::ASP);
  Request forged(pb::REPLICATE, kTable);
  pb::ReplicaOp op;
  op.set_index(1);
  forged.Part(0).Values({9, 9, 9, 9}).header().set_body(op.SerializeAsString());
  forged.header().set_epoch(2);
  EXPECT_EQ(cluster_.AskAs(0, 1, forged).status().code(), absl::StatusCode::kFailedPrecondition);
  Request sync = forged;
  sync.header().set_kind(pb::SYNC);
  EXPECT_EQ(cluster_.AskAs(0, 1, sync).status().code(), absl::StatusCode::kFailedPrecondition);
  cluster_.Kill(0);
  cluster_.AssignTo({1}, cluster_.Map(3, {1}));
  EXPECT_THAT(Weights(1, 0), Each(0));
}

TEST_F(FailoverTest, ACopyPromotedBehindItsNeighbourGetsTheNormOfTheStep) {
  cluster_.network.SetOptions({.min_delay = absl::Milliseconds(1),
                               .max_delay = absl::Milliseconds(1)});  // nothing overtakes
  cluster_.experiment.mutable_consistency()->set_mode(pb::Consistency::BSP);
  cluster_.AddDense(2)->mutable_optimizer()->set_clip_norm(100);
  cluster_.AddServer();
  cluster_.AddServer();
  pb::Assignment map = cluster_.Map(1, {0, 1});
  cluster_.AddBackup(&map, 0, 1, false);
  cluster_.AssignTo({0, 1}, map);
  ASSERT_TRUE(cluster_.RunUntilNews(1));
  map = cluster_.Map(2, {0, 1});
  cluster_.AddBackup(&map, 0, 1, true);
  cluster_.AssignTo({0, 1}, map);
  // Server 1 hears the total of step 0 and nothing after it: partition 1 there makes the step, its
  // copy of partition 0 does not.
  const NodeId dying{ServerCluster::kFirstServer}, heir{ServerCluster::kFirstServer + 1};
  uint64_t asked = 0;
  bool answered = false;
  cluster_.network.SetTap([&](NodeId from, NodeId to, const Frame& frame) {
    if (frame.header.kind() == pb::NORM && from == heir) asked = frame.header.request_id();
    if (asked == 0 || from != dying || to != heir || frame.header.request_id() != asked) return;
    answered = true;
    cluster_.network.CutOneWay(dying, heir);
  });
  ServerCluster::Later pushes[4], again[2];
  for (size_t worker = 0; worker < 2; ++worker) {
    for (uint32_t p = 0; p < 2; ++p) {
      cluster_.AskLater(worker, p, Push(0, 1 + p, 1, p), &pushes[2 * worker + p]);
    }
  }
  ASSERT_TRUE(cluster_.RunUntil([&] { return answered; }));
  cluster_.Run(absl::Seconds(1));
  EXPECT_FALSE(pushes[0].has_value() || pushes[2].has_value());
  cluster_.Kill(0);
  cluster_.AssignTo({1}, cluster_.Map(3, {1, 1}));
  for (size_t worker = 0; worker < 2; ++worker) {
    cluster_.AskLater(worker, 1, Push(0, 1, 1, 0), &again[worker]);
  }
  EXPECT_THAT(Weights(1, 1), Each(-1));
  EXPECT_TRUE(again[0] && again[0]->ok() && again[1] && again[1]->ok());
}

// Or the partition that went elsewhere would never hear of it.
TEST_F(FailoverTest, ALeaveThatWasRoutedByAnOlderMapIsRefused) {
  cluster_.AddDense(2);
  cluster_.AddServer();
  cluster_.AddServer();
  pb::Assignment map = cluster_.Map(1, {0, 1});
  cluster_.AddBackup(&map, 1, 0, false);
  cluster_.AssignTo({0, 1}, map);
  ASSERT_TRUE(cluster_.RunUntilNews(1));
  cluster_.AssignTo({0, 1}, cluster_.Map(2, {0, 0}));
  Request leave(pb::LEAVE, 0);
  pb::Leave after;
  after.set_after_tick(0);
  leave.header().set_body(after.SerializeAsString());
  EXPECT_EQ(cluster_.AskAs(0, 1, leave).status().code(), absl::StatusCode::kFailedPrecondition);
  leave.header().set_epoch(2);
  for (size_t server : {0, 1}) EXPECT_TRUE(cluster_.AskAs(0, server, leave).ok());
}

TEST_F(FailoverTest, AMapWithAShardThatCannotBeReachedMovesNothing) {
  cluster_.AddDense(2);
  cluster_.AddServer();
  cluster_.AddServer();
  cluster_.AssignTo({0, 1}, cluster_.Map(1, {0, 0}));
  pb::Assignment map = cluster_.Map(2, {0, 1});
  cluster_.AddBackup(&map, 0, 1, false);
  map.mutable_map()->mutable_shard(1)->set_endpoint("nowhere");
  const absl::Status refused = cluster_.Assign(0, map).status();
  EXPECT_THAT(std::string(refused.message()), HasSubstr("nowhere"));
  for (uint32_t p = 0; p < 2; ++p) {
    Request pull(pb::PULL, kTable);
    const auto answer = cluster_.AskAs(0, 0, pull.Tick(0).Part(p));
    EXPECT_TRUE(answer.ok()) << answer.status();
  }
}

TEST_F(FailoverTest, AWorkerIsReplacedAndItsFormerSelfRefused) {
  StartWithCopies(pb::Consistency::BSP);
  ServerCluster::Later old;
  cluster_.AskLater(1, 0, Push(0, 1, 3), &old);
  cluster_.Run(absl::Milliseconds(50));
  const size_t heir = cluster_.AddWorker(1, 21);
  pb::Assignment map = cluster_.Map(3, {0});
  cluster_.AddBackup(&map, 0, 1, true);
  map.set_worker_node(1, ServerCluster::kFirstWorker + heir);
  map.set_worker_incarnation(1, 21);
  const auto assigned = cluster_.Assign(0, map);
  ASSERT_TRUE(assigned.ok()) << assigned.status();
  ASSERT_EQ(assigned->lowest_missing_size(), 2);
  EXPECT_EQ(assigned->lowest_missing(0), 0u);
  ASSERT_TRUE(cluster_.Assign(1, map).ok());
  ASSERT_TRUE(cluster_.RunUntil([&] { return old.has_value(); }));
  EXPECT_EQ(CodeOf(old), absl::StatusCode::kFailedPrecondition);
  Request stale = Push(0, 1, 3);
  stale.header().set_epoch(2);
  EXPECT_EQ(cluster_.AskAs(1, 0, stale).status().code(), absl::StatusCode::kFailedPrecondition);
  // Its gradient was held and stays; the heir's is the same one, and counts once.
  ServerCluster::Later again;
  cluster_.AskLater(heir, 0, Push(0, 1, 3), &again);
  ASSERT_TRUE(cluster_.AskAs(0, 0, Push(0, 1, 1)).ok());
  ASSERT_TRUE(cluster_.RunUntil([&] { return again.has_value(); }));
  EXPECT_TRUE(again->ok()) << again->status();
  EXPECT_THAT(Weights(0, 1), Each(-2));
  EXPECT_THAT(cluster_.Count(0).acknowledged(), ElementsAre(1, 1));
}

}  // namespace
}  // namespace parley
