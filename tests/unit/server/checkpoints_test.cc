// Checkpoints through whole server shards: saved at a step while pushes go on, read by a new
// generation.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "ps/checkpoint/checkpoint_files.h"
#include "tests/unit/server/server_cluster.h"

namespace parley {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kTable = ServerCluster::kTable;

class CheckpointsTest : public ::testing::Test {
 protected:
  void Start(pb::Consistency::Mode mode, const std::vector<uint32_t>& owners) {
    cluster_.experiment.mutable_consistency()->set_mode(mode);
    owners_ = owners;
    cluster_.AddServer();
    cluster_.AddServer();
    cluster_.AssignTo({0, 1}, cluster_.Map(1, owners));
  }
  void PushAll(uint64_t tick) {
    for (size_t worker = 0; worker < 2; ++worker) PushTo(worker, tick);
  }
  void PushTo(size_t worker, uint64_t tick) {
    for (uint32_t p = 0; p < owners_.size(); ++p) {
      Request push(pb::PUSH, kTable);
      push.Tick(tick).Weight(1).Part(p, tick + 1).Values({1, 1, 1, 1});
      const auto status = cluster_.AskAs(worker, owners_[p], push).status();
      ASSERT_TRUE(status.ok()) << status;
    }
  }
  std::vector<float> Weights(uint32_t partition, uint64_t tick) {
    Request pull(pb::PULL, kTable);
    const auto answer = cluster_.AskAs(0, owners_[partition], pull.Tick(tick).Part(partition));
    EXPECT_TRUE(answer.ok()) << answer.status();
    return answer.ok() ? FloatsOf(SplitPayload(*answer)[0].values) : std::vector<float>();
  }
  static pb::CheckpointRequest At(uint64_t step) {
    pb::CheckpointRequest request;
    request.set_step(step);
    request.set_directory(PendingDirectory("/ckpt", step));
    request.set_full(true);
    return request;
  }
  void Ask(size_t server, const pb::CheckpointRequest& request, ServerCluster::Later* answer) {
    ASSERT_TRUE(cluster_.files.MakeDirectory(request.directory()).ok());
    Frame frame;
    frame.header.set_kind(pb::CHECKPOINT);
    frame.header.set_body(request.SerializeAsString());
    cluster_.AskLater(server, std::move(frame), answer);
  }
  pb::CheckpointFile Wait(ServerCluster::Later* answer) {
    pb::CheckpointFile file;
    EXPECT_TRUE(cluster_.RunUntil([&] { return answer->has_value(); }));
    EXPECT_TRUE((*answer)->ok()) << (*answer)->status();
    if ((*answer)->ok()) {
      EXPECT_TRUE(file.ParseFromString((**answer)->header.body()));
    }
    return file;
  }
  void Commit(uint64_t step, const std::string& base,
              const std::vector<pb::CheckpointFile>& files) {
    pb::CheckpointManifest manifest;
    manifest.set_job("test");
    manifest.set_step(step);
    manifest.set_workers(2);
    *manifest.add_table() = cluster_.table;
    for (const pb::CheckpointFile& file : files) {
      if (!file.name().empty()) *manifest.add_file() = file;
    }
    const absl::Status status = CommitCheckpoint(&cluster_.files, "/ckpt", base, manifest);
    ASSERT_TRUE(status.ok()) << status;
  }
  // All begin again from the checkpoint of `step`, or from the first weights.
  pb::Assignment Generation(uint64_t generation, uint64_t epoch, std::optional<uint64_t> step) {
    pb::Assignment map = cluster_.Map(epoch, owners_);
    map.set_generation(generation);
    for (uint32_t rank = 0; rank < 2; ++rank) {
      map.set_worker_incarnation(static_cast<int>(rank), 30 + rank);
      cluster_.workers[rank]->rpc.SetIdentity(ServerCluster::kJob, 30 + rank, rank);
    }
    if (step) {
      map.mutable_restore()->set_directory(CheckpointDirectory("/ckpt", *step));
      map.mutable_restore()->set_step(*step);
    }
    return map;
  }

  ServerCluster cluster_;
  std::vector<uint32_t> owners_;
};

TEST_F(CheckpointsTest, AStepIsSavedWhilePushesGoOnAndAGenerationBeginsFromIt) {
  cluster_.AddDense(3);
  Start(pb::Consistency::BSP, {0, 1, 0});
  PushAll(0);
  ServerCluster::Later answers[2];
  for (size_t server = 0; server < 2; ++server) Ask(server, At(2), &answers[server]);
  cluster_.Run(absl::Seconds(1));
  EXPECT_FALSE(answers[0].has_value() || answers[1].has_value());  // step 1 is not done
  PushTo(0, 1);
  PushTo(0, 2);  // held: worker 1 will complete both steps at once
  PushTo(1, 1);
  PushTo(1, 2);
  PushAll(3);
  std::vector<pb::CheckpointFile> files = {Wait(&answers[0]), Wait(&answers[1])};
  EXPECT_EQ(files[0].name(), "server-0-0-0000000000000064.safetensors");
  EXPECT_EQ(files[0].step(), 2u);
  EXPECT_EQ(files[0].partition_size(), 2);
  EXPECT_EQ(files[1].partition_size(), 1);
  // The same again.
  ServerCluster::Later again;
  Ask(0, At(2), &again);
  EXPECT_EQ(Wait(&again).SerializeAsString(), files[0].SerializeAsString());
  Commit(2, "", files);
  EXPECT_THAT(Weights(0, 4), Each(-4));
  owners_ = {1, 0, 0};  // wherever they were
  const pb::Assignment map = Generation(1, 2, 2);
  cluster_.AssignTo({0, 1}, map);
  const auto assigned = cluster_.Assign(0, map);  // the answer was lost
  ASSERT_TRUE(assigned.ok());
  EXPECT_THAT(assigned->lowest_missing(), ElementsAre(2, 2));
  EXPECT_THAT(assigned->highest_missing(), ElementsAre(2, 2));
  for (uint32_t p = 0; p < 3; ++p) EXPECT_THAT(Weights(p, 2), Each(-2));
  for (size_t worker = 0; worker < 2; ++worker) {
    for (uint32_t p = 0; p < 3; ++p) {
      Request push(pb::PUSH, kTable);
      push.Tick(2).Weight(1).Part(p, 1).Values({1, 1, 1, 1});
      ASSERT_TRUE(cluster_.AskAs(worker, owners_[p], push).ok());
    }
  }
  EXPECT_THAT(Weights(1, 3), Each(-3));
  EXPECT_THAT(cluster_.Count(0).acknowledged(), ElementsAre(2, 2));  // of this generation
}

TEST_F(CheckpointsTest, AGenerationMayBeginFromTheFirstWeights) {
  cluster_.AddDense();
  Start(pb::Consistency::BSP, {0});
  PushAll(0);
  cluster_.AssignTo({0, 1}, Generation(1, 2, std::nullopt));
  EXPECT_THAT(Weights(0, 0), Each(0));
  EXPECT_EQ(cluster_.Count(0).pushes_accepted(), 0u);
  PushAll(0);
  EXPECT_THAT(Weights(0, 1), Each(-1));
  EXPECT_EQ(cluster_.Assign(0, cluster_.Map(3, {0})).status().code(),
            absl::StatusCode::kFailedPrecondition);  // of the generation before
}

TEST_F(CheckpointsTest, AStepThatIsOverCannotBeSaved) {
  cluster_.AddDense();
  Start(pb::Consistency::BSP, {0});
  for (uint64_t tick = 0; tick < 3; ++tick) PushAll(tick);
  ServerCluster::Later late, now;
  Ask(0, At(2), &late);
  ASSERT_TRUE(cluster_.RunUntil([&] { return late.has_value(); }));
  EXPECT_EQ(late->status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(std::string(late->status().message()), HasSubstr("has done 3 steps"));
  Ask(0, At(3), &now);
  EXPECT_EQ(Wait(&now).partition_size(), 1);
  // Who is primary of nothing has nothing to write.
  ServerCluster::Later none;
  Ask(1, At(3), &none);
  EXPECT_EQ(Wait(&none).name(), "");
}

// The one that is wanted by now may be of an earlier step: only who asked tells which came later.
TEST_F(CheckpointsTest, ALateDuplicateOfOneThatWasGivenUpEndsNoOther) {
  cluster_.AddDense();
  Start(pb::Consistency::BSP, {0});
  PushAll(0);
  std::vector<Frame> asked;
  cluster_.network.SetTap([&](NodeId, NodeId, const Frame& frame) {
    if (frame.header.kind() == pb::CHECKPOINT) asked.push_back(frame);
  });
  ServerCluster::Later done, far, near;
  Ask(0, At(1), &done);
  EXPECT_EQ(Wait(&done).step(), 1u);
  Ask(0, At(9), &far);
  cluster_.Run(absl::Milliseconds(100));
  Ask(0, At(2), &near);
  ASSERT_TRUE(cluster_.RunUntil([&] { return far.has_value(); }));
  EXPECT_EQ(far->status().code(), absl::StatusCode::kAborted);
  cluster_.network.SetTap({});
  for (const Frame& late : asked) {
    const NodeId server{ServerCluster::kFirstServer};
    ASSERT_TRUE(cluster_.scheduler->transport->Send(server, late).ok());
  }
  cluster_.Run(absl::Milliseconds(100));
  EXPECT_FALSE(near.has_value());
  PushAll(1);
  EXPECT_EQ(Wait(&near).step(), 2u);
}

TEST_F(CheckpointsTest, WhatIsMissingOrBrokenIsAnErrorOfTheAssignment) {
  cluster_.AddDense();
  Start(pb::Consistency::BSP, {0});
  const auto missing = cluster_.Assign(0, Generation(1, 2, 7)).status();
  EXPECT_FALSE(missing.ok());
  EXPECT_THAT(std::string(missing.message()), HasSubstr("/ckpt/step-000000000007"));
  EXPECT_FALSE(cluster_.ended.has_value());
  cluster_.AssignTo({0}, Generation(2, 3, std::nullopt));  // something else instead
  EXPECT_THAT(Weights(0, 0), Each(0));
}

TEST_F(CheckpointsTest, ADiskThatIsFullFailsTheCheckpointAlone) {
  cluster_.AddDense();
  Start(pb::Consistency::BSP, {0});
  PushAll(0);
  cluster_.files.SetFaults({.capacity_bytes = 10});
  ServerCluster::Later full;
  Ask(0, At(1), &full);
  ASSERT_TRUE(cluster_.RunUntil([&] { return full.has_value(); }));
  EXPECT_FALSE(full->ok());
  EXPECT_FALSE(cluster_.ended.has_value());
  cluster_.files.SetFaults({});
  ServerCluster::Later again;  // the very same: what failed is tried anew
  Ask(0, At(1), &again);
  const pb::CheckpointFile written = Wait(&again);
  EXPECT_EQ(written.step(), 1u);
  // It was lost since, as by a disk that lies: when it is asked for anew it is written anew.
  const std::string path = absl::StrCat(At(1).directory(), "/", written.name());
  ASSERT_TRUE(cluster_.files.Remove(path).ok());
  ServerCluster::Later anew;
  Ask(0, At(1), &anew);
  EXPECT_EQ(Wait(&anew).name(), written.name());
  EXPECT_TRUE(cluster_.files.Exists(path));
  PushAll(1);
  ServerCluster::Later better;
  Ask(0, At(2), &better);
  EXPECT_EQ(Wait(&better).step(), 2u);
}

TEST_F(CheckpointsTest, OfSparseTablesTheRowsTouchedSinceTheLastAreEnough) {
  cluster_.AddSparse();
  Start(pb::Consistency::BSP, {0});
  const auto push = [&](uint64_t tick, uint64_t key) {
    for (size_t worker = 0; worker < 2; ++worker) {
      Request request(pb::PUSH, kTable);
      request.Tick(tick).Weight(1).Part(0, tick + 1).Keys({key}).Values({1, 1});
      ASSERT_TRUE(cluster_.AskAs(worker, 0, request).ok());
    }
  };
  push(0, 7);
  push(1, 8);
  ServerCluster::Later first, second;
  Ask(0, At(2), &first);
  pb::CheckpointFile full = Wait(&first);
  EXPECT_FALSE(full.partition(0).state().changes_only());
  Commit(2, "", {full});
  push(2, 8);
  pb::CheckpointRequest changes = At(3);
  changes.set_full(false);
  changes.set_since(2);
  Ask(0, changes, &second);
  pb::CheckpointFile more = Wait(&second);
  EXPECT_TRUE(more.partition(0).state().changes_only());
  // Built on one that was never made: everything is saved.
  changes.set_step(4);
  changes.set_directory(PendingDirectory("/ckpt", 4));
  changes.set_since(2);
  push(3, 8);
  ServerCluster::Later third;
  Ask(0, changes, &third);
  EXPECT_FALSE(Wait(&third).partition(0).state().changes_only());
}

}  // namespace
}  // namespace parley
