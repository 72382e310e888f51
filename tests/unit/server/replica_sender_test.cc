// What a primary does about a copy that is slow, dumb, or not what the map before said: with a
// whole shard, and a copy that answers as it is told.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>

#include "tests/unit/server/server_cluster.h"

namespace parley {
namespace {

constexpr uint64_t kCopy = 150;

class ReplicaSenderTest : public ::testing::Test {
 protected:
  // Server 0 is primary of one partition, which has `elements`.
  void Start(uint64_t elements) {
    cluster_.experiment.mutable_consistency()->set_mode(pb::Consistency::ASP);
    cluster_.AddDense();
    cluster_.table.mutable_tensor(0)->set_shape(0, elements);
    cluster_.table.set_partition_elements(elements);
    values_.assign(elements, 1);
    cluster_.AddServer();
    copy_.rpc.SetIdentity(ServerCluster::kJob, 1, 1);
    for (pb::Kind kind : {pb::SYNC, pb::REPLICATE}) {
      copy_.rpc.Handle(kind, [this, kind](NodeId from, Frame request) {
        if (silent_) return;
        if (kind == pb::SYNC) ++syncs_;
        if (kind == pb::REPLICATE && !answer_.ok()) {
          copy_.rpc.ReplyError(from, request.header, std::exchange(answer_, absl::OkStatus()));
          return;
        }
        if (kind == pb::SYNC && !refusal_.ok()) {
          copy_.rpc.ReplyError(from, request.header, refusal_);
        } else {
          copy_.rpc.Reply(from, request.header, Frame());
        }
      });
    }
  }
  void Assign(uint64_t epoch, uint64_t since, bool synced) {
    pb::Assignment map = cluster_.Map(epoch, {0});
    pb::ShardAddress* shard = map.mutable_map()->add_shard();
    shard->set_node(kCopy);
    shard->set_endpoint("sim://copy");
    cluster_.AddBackup(&map, 0, 1, synced);
    map.mutable_map()->mutable_table(0)->mutable_backup(0)->set_since(since);
    cluster_.AssignTo({0}, map);
  }
  // An update without a tick: as many as one likes may be on their way.
  ServerCluster::Later* Push(size_t worker = 0) {
    Request push(pb::PUSH, ServerCluster::kTable);
    push.Weight(1).Part(0, ++sequence_[worker]).Values(values_);
    cluster_.AskLater(worker, 0, std::move(push), &answers_.emplace_back());
    return &answers_.back();
  }
  size_t Answered() const {
    return std::count_if(answers_.begin(), answers_.end(),
                         [](const ServerCluster::Later& answer) { return answer.has_value(); });
  }

  ServerCluster cluster_;
  ServerCluster::Node copy_{&cluster_.world, &cluster_.network, NodeId{kCopy}, "sim://copy"};
  bool silent_ = false;
  absl::Status refusal_;  // of SYNC
  absl::Status answer_;   // to the next REPLICATE
  int syncs_ = 0;
  uint64_t sequence_[2] = {0, 0};
  std::vector<float> values_;
  std::deque<ServerCluster::Later> answers_;
};

// The map was made before the scheduler heard that the copy is complete, and it may promote it.
TEST_F(ReplicaSenderTest, ACopyThatWasSaidToBeCompleteCountsWhateverAMapSays) {
  Start(4);
  Assign(1, 1, false);
  ASSERT_TRUE(cluster_.RunUntilNews(1));
  silent_ = true;
  for (int i = 0; i < 1100; ++i) Push(i % 2);  // more than may wait: it is to be brought up anew
  cluster_.Run(absl::Milliseconds(100));
  EXPECT_THAT(cluster_.log, testing::Contains(testing::HasSubstr("1024 operations behind")));
  Assign(2, 1, false);
  cluster_.Run(absl::Seconds(5));
  EXPECT_EQ(Answered(), 0u);
  silent_ = false;
  EXPECT_TRUE(cluster_.RunUntil([&] { return Answered() == answers_.size(); }));
  EXPECT_EQ(syncs_, 2);
}

TEST_F(ReplicaSenderTest, ACopyThatAMapBetweenHasDroppedIsBroughtUpAgain) {
  Start(4);
  Assign(1, 1, false);
  ASSERT_TRUE(cluster_.RunUntilNews(1));
  EXPECT_EQ(syncs_, 1);
  silent_ = true;
  Assign(2, 1, false);  // the same one
  ASSERT_TRUE(cluster_.RunUntilNews(2));
  Assign(4, 4, false);  // of 3 nothing was heard here
  cluster_.Run(absl::Seconds(5));
  EXPECT_EQ(cluster_.news.size(), 2u);
  silent_ = false;
  ASSERT_TRUE(cluster_.RunUntilNews(3));
  EXPECT_EQ(syncs_, 2);
}

TEST_F(ReplicaSenderTest, WhatWaitsForACopyIsBoundedByItsBytesAndThenByPatience) {
  Start((uint64_t{4} << 20) - 1024);  // a little less than 16 MiB
  silent_ = true;
  Assign(1, 1, false);
  cluster_.Run(absl::Milliseconds(100));  // a SYNC is on its way
  for (int i = 0; i < 5; ++i) {
    ServerCluster::Later* push = Push();
    ASSERT_TRUE(cluster_.RunUntil([&] { return i == 4 || push->has_value(); })) << i;
  }
  Push();
  cluster_.Run(absl::Seconds(5));
  EXPECT_EQ(Answered(), 4u);  // the fifth is one too many, and with it they wait
  // Unless that is in vain.
  refusal_ = absl::InternalError("no room");
  silent_ = false;
  EXPECT_TRUE(cluster_.RunUntil([&] { return Answered() == 6; }));
  EXPECT_TRUE(cluster_.news.empty());
  refusal_ = absl::OkStatus();
  EXPECT_TRUE(cluster_.RunUntilNews(1));
}

// The map was made before the scheduler heard of the difference.
TEST_F(ReplicaSenderTest, ACopyThatDifferedIsSaidToBeCompleteWhateverAMapSaid) {
  Start(4);
  Assign(1, 1, false);
  ASSERT_TRUE(cluster_.RunUntilNews(1));
  cluster_.takes_news = false;
  answer_ = absl::DataLossError("another checksum");
  Push();
  ASSERT_TRUE(cluster_.RunUntil([&] { return answer_.ok(); }));
  Assign(2, 1, true);
  cluster_.takes_news = true;
  ASSERT_TRUE(cluster_.RunUntilNews(2));
  ASSERT_EQ(cluster_.news.size(), 3u);
  EXPECT_EQ(cluster_.news[1].what(), pb::BackupNews::DIVERGED);
  for (size_t i = 1; i < 3; ++i) {
    EXPECT_GT(cluster_.news[i].number(), cluster_.news[i - 1].number());
  }
}

// Or it would stop the partition for good.
TEST_F(ReplicaSenderTest, ACopyThatCannotBeBroughtUpCountsNoMoreOnceTheSchedulerKnows) {
  Start(4);
  Assign(1, 1, false);
  ASSERT_TRUE(cluster_.RunUntilNews(1));
  refusal_ = absl::ResourceExhaustedError("no memory for the state of a partition");
  cluster_.takes_news = false;
  answer_ = absl::DataLossError("another checksum");
  Push();
  ASSERT_TRUE(cluster_.RunUntil([&] { return syncs_ > 2; }));
  refusal_ = absl::AbortedError("attempt 2 is over");  // as a copy does once it has forgotten it
  cluster_.Run(absl::Seconds(60));
  EXPECT_EQ(Answered(), 0u);  // it may be promoted
  cluster_.takes_news = true;
  ASSERT_TRUE(cluster_.RunUntilNews(1, pb::BackupNews::UNSYNCED));
  ASSERT_TRUE(cluster_.RunUntil([&] { return Answered() == 1; }));
  ServerCluster::Later* push = Push();
  ASSERT_TRUE(cluster_.RunUntil([&] { return push->has_value(); }));
  Assign(2, 1, false);
  cluster_.Run(absl::Seconds(5));
  EXPECT_TRUE(cluster_.RunUntilNews(1, pb::BackupNews::UNSYNCED));
  // Until it can be.
  refusal_ = absl::OkStatus();
  ASSERT_TRUE(cluster_.RunUntilNews(2));
  silent_ = true;
  push = Push();
  cluster_.Run(absl::Seconds(5));
  EXPECT_FALSE(push->has_value());
}

// It may have made a primary of it meanwhile.
TEST_F(ReplicaSenderTest, ACopyGoesOnToCountThatTheSchedulerDoesNotSayItWillNotPromote) {
  Start(4);
  Assign(1, 1, false);
  ASSERT_TRUE(cluster_.RunUntilNews(1));
  cluster_.news_answer = absl::FailedPreconditionError("epoch 2 has no such copy");
  refusal_ = absl::InternalError("no");
  answer_ = absl::DataLossError("another checksum");
  Push();
  ASSERT_TRUE(cluster_.RunUntilNews(3, pb::BackupNews::UNSYNCED));
  EXPECT_EQ(Answered(), 0u);
}

// What was told while that was on its way counts: it may be believed to be complete.
TEST_F(ReplicaSenderTest, ACopyThatIsBroughtUpBeforeTheSchedulerAnswersCounts) {
  Start(4);
  Assign(1, 1, false);
  ASSERT_TRUE(cluster_.RunUntilNews(1));
  cluster_.takes_news = false;
  refusal_ = absl::InternalError("no");
  answer_ = absl::DataLossError("another checksum");
  ServerCluster::Later* push = Push();
  ASSERT_TRUE(cluster_.RunUntil([&] { return syncs_ > 1; }));
  refusal_ = absl::OkStatus();
  ASSERT_TRUE(cluster_.RunUntil([&] { return push->has_value(); }));
  silent_ = true;
  cluster_.takes_news = true;
  push = Push();
  cluster_.Run(absl::Seconds(60));
  EXPECT_FALSE(push->has_value());
  EXPECT_EQ(cluster_.news.back().what(), pb::BackupNews::SYNCED);
}

// As when its transport refuses to send it: the copy has what it had, and may be promoted.
TEST_F(ReplicaSenderTest, AnOperationThatCannotBeDeliveredIsNotSaidToBeADifference) {
  Start(4);
  Assign(1, 1, false);
  ASSERT_TRUE(cluster_.RunUntilNews(1));
  answer_ = absl::InvalidArgumentError("a payload buffer of 90000000 bytes");
  ServerCluster::Later* push = Push();
  ASSERT_TRUE(cluster_.RunUntil([&] { return push->has_value(); }));
  EXPECT_EQ(syncs_, 2);
  cluster_.Run(absl::Seconds(5));
  for (const pb::BackupNews& item : cluster_.news) EXPECT_EQ(item.what(), pb::BackupNews::SYNCED);
}

}  // namespace
}  // namespace parley
