#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "ps/checkpoint/checkpoint_files.h"
#include "ps/net/admission.h"
#include "scheduler/scheduler_node.h"
#include "tests/unit/scheduler/scheduler_testing.h"

namespace parley {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class SchedulerCheckpointTest : public SchedulerNodeTest {
 protected:
  // Servers write a file for the partitions that are theirs.
  void ServeCheckpoints() {
    for (auto& node : nodes_) {
      node->on_checkpoint = [this, node = node.get()](NodeId from, const Frame& frame) {
        pb::CheckpointRequest request;
        EXPECT_TRUE(request.ParseFromString(frame.header.body()));
        requests_.push_back(request);
        if (request.step() < too_late_) {
          return node->rpc->ReplyError(from, frame.header, absl::OutOfRangeError("too late"));
        }
        std::vector<PartitionRecord> records;
        const std::vector<uint64_t> owners = Owners(node->Last());
        for (uint32_t p = 0; p < owners.size(); ++p) {
          if (owners[p] != Value(node->node)) continue;
          PartitionRecord& record = records.emplace_back();
          record.table_name = "model";
          record.partition = p;
        }
        absl::StatusOr<pb::CheckpointFile> file =
            WriteCheckpointFile(&files_, request.directory(),
                                absl::StrCat("s", Value(node->node), ".safetensors"), records, {});
        ASSERT_TRUE(file.ok()) << file.status();
        written_[Value(node->node)] = file->SerializeAsString();
        Frame answer;
        answer.header.set_body(file->SerializeAsString());
        node->rpc->Reply(from, frame.header, std::move(answer));
      };
    }
  }
  // Checkpoints of steps 5 and 10 are written by then.
  void LoseAServerWhileTheDirectoryIsAway() {
    root_ = "/checkpoints";
    experiment_.mutable_checkpoints()->set_every_steps(5);
    StartJob();
    ServeCheckpoints();
    Run(absl::Seconds(2));
    ASSERT_TRUE(files_.Rename(root_, "/elsewhere").ok());
    Kill(1);
  }
  void FinishWork() {
    nodes_[2]->Finish(0, 0);
    nodes_[3]->Finish(1, 0);
  }
  // All of it is over; what is on disk stays.
  void ForgetJob() {
    nodes_.clear();
    end_.reset();
    KillScheduler();
  }
  std::vector<pb::CheckpointRequest> requests_;
  std::map<uint64_t, std::string> written_;  // what each node answered last
  uint64_t too_late_ = 0;
};

TEST_F(SchedulerCheckpointTest, WrittenOnRequestAndGoneBackTo) {
  root_ = "/checkpoints";
  StartJob();
  ServeCheckpoints();
  nodes_[2]->tick = nodes_[3]->tick = 4;
  too_late_ = 8;  // the first attempt, of step 6, comes too late
  Run(absl::Milliseconds(300));
  pb::Control control;
  control.set_checkpoint(true);
  Node tool(&world_, &network_, 900, pb::ROLE_UNKNOWN);
  tool.rpc->SetIdentity(JobId("job"), 0, 0);
  std::optional<pb::ControlAnswer> answer;
  tool.Ask(pb::CONTROL, control.SerializeAsString(), [&](absl::StatusOr<Frame> frame) {
    ASSERT_TRUE(frame.ok()) << frame.status();
    answer.emplace();
    EXPECT_TRUE(answer->ParseFromString(frame->header.body()));
  });
  Run(absl::Seconds(1));
  ASSERT_TRUE(answer.has_value()) << Events();
  EXPECT_EQ(answer->text(), "checkpoint of step 8 written in /checkpoints");
  EXPECT_TRUE(VerifyCheckpoint(&files_, CheckpointDirectory(root_, 8), {}).ok());
  const absl::StatusOr<pb::CheckpointManifest> manifest =
      ReadManifest(&files_, CheckpointDirectory(root_, 8));
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  EXPECT_EQ(manifest->workers(), 2u);
  EXPECT_EQ(manifest->file_size(), 2);

  Kill(1);
  Run(absl::Seconds(3));
  const pb::Assignment& last = nodes_[2]->Last();
  EXPECT_EQ(last.generation(), 2u);
  EXPECT_EQ(last.restore().step(), 8u);
  EXPECT_EQ(last.restore().directory(), CheckpointDirectory(root_, 8));
  EXPECT_THAT(Events(), HasSubstr("all begin again from the checkpoint of step 8 with 1 servers"));
}

TEST_F(SchedulerCheckpointTest, AFullDiskIsAnAnswer) {
  root_ = "/checkpoints";
  StartJob();
  ServeCheckpoints();
  for (auto& node : nodes_) {
    node->on_checkpoint = [this, serve = node->on_checkpoint](NodeId from, const Frame& frame) {
      files_.SetFaults({});
      serve(from, frame);
      // There was room for the servers' files, and is none for the manifest.
      files_.SetFaults({.capacity_bytes = files_.used_bytes()});
    };
  }
  pb::Control control;
  control.set_checkpoint(true);
  Node tool(&world_, &network_, 900, pb::ROLE_UNKNOWN);
  tool.rpc->SetIdentity(JobId("job"), 0, 0);
  std::optional<absl::Status> said;
  tool.Ask(pb::CONTROL, control.SerializeAsString(),
           [&](absl::StatusOr<Frame> frame) { said = frame.status(); });
  Run(absl::Seconds(3));
  ASSERT_TRUE(said.has_value()) << Events();
  EXPECT_EQ(said->code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(said->message()), HasSubstr("No space left on device"));
}

TEST_F(SchedulerCheckpointTest, BySteps) {
  root_ = "/checkpoints";
  experiment_.mutable_checkpoints()->set_every_steps(3);
  experiment_.mutable_checkpoints()->set_keep(2);
  StartJob();
  ServeCheckpoints();
  Run(absl::Seconds(3));
  std::vector<uint64_t> steps;
  for (const pb::CheckpointRequest& request : requests_) {
    if (steps.empty() || steps.back() != request.step()) steps.push_back(request.step());
  }
  EXPECT_THAT(steps, ElementsAre(3, 6, 9));  // of 10 steps in all
  EXPECT_THAT(*ListCheckpoints(&files_, root_), ElementsAre(6, 9));
}

TEST_F(SchedulerCheckpointTest, AResumedJobBeginsFromItAndSaysWhatDiffers) {
  root_ = "/checkpoints";
  experiment_.mutable_checkpoints()->set_at_end(true);
  StartJob();
  ServeCheckpoints();
  FinishWork();
  Run(absl::Seconds(2));
  ASSERT_TRUE(end_.has_value());
  EXPECT_TRUE(end_->ok()) << *end_;
  EXPECT_THAT(*ListCheckpoints(&files_, root_), ElementsAre(10));
  EXPECT_EQ(keeper_.summary->checkpoints, 1u);

  ForgetJob();
  restore_ = root_;
  StartJob();
  EXPECT_EQ(nodes_[0]->Last().restore().step(), 10u);

  nodes_.clear();
  scheduler_.reset();
  scheduler_transport_.reset();
  experiment_.mutable_cluster()->set_workers(1);
  StartScheduler();
  for (pb::Role role : {pb::SERVER, pb::SERVER, pb::WORKER}) Add(role);
  Run(absl::Seconds(5));
  ASSERT_TRUE(end_.has_value());
  EXPECT_THAT(std::string(end_->message()), HasSubstr("it is of 2 workers, cluster.workers is 1"));
}

TEST_F(SchedulerCheckpointTest, TheOneAtTheEndIsOfTheGenerationThatEnds) {
  root_ = "/checkpoints";
  experiment_.mutable_checkpoints()->set_at_end(true);
  StartJob();
  std::vector<uint64_t> generations;
  for (auto& node : nodes_) {
    node->on_checkpoint = [&, node = node.get()](NodeId from, const Frame& frame) {
      pb::CheckpointRequest request;
      EXPECT_TRUE(request.ParseFromString(frame.header.body()));
      generations.push_back(request.generation());
      node->rpc->ReplyParked(from, frame.header, "the step to come");
    };
  }
  FinishWork();
  Run(absl::Milliseconds(300));
  EXPECT_THAT(generations, ::testing::Contains(1u));
  Kill(1);
  Run(absl::Seconds(5));
  ASSERT_EQ(nodes_[0]->Last().generation(), 2u);
  EXPECT_THAT(generations, ::testing::Each(1u));
  // And at its own end it is asked for.
  ServeCheckpoints();
  FinishWork();
  Run(absl::Seconds(2));
  ASSERT_TRUE(end_.has_value());
  EXPECT_THAT(*ListCheckpoints(&files_, root_), ElementsAre(10));
}

TEST_F(SchedulerCheckpointTest, OneThatIsBeingCommittedIsGoneBackTo) {
  root_ = "/checkpoints";
  experiment_.mutable_checkpoints()->set_every_steps(3);
  StartJob();
  scheduler_env_->SetOffloadDelay(absl::Seconds(1), absl::Seconds(1));
  ServeCheckpoints();
  for (int i = 0; i < 100 && !files_.Exists(CheckpointDirectory(root_, 3)); ++i) {
    Run(absl::Milliseconds(50));
  }
  EXPECT_THAT(Events(), ::testing::Not(HasSubstr("checkpoint of step 3")));
  pb::Stop reason;
  Frame frame;
  frame.header.set_kind(pb::FAILED);
  frame.header.set_body(reason.SerializeAsString());
  nodes_[1]->rpc->Tell(kSchedulerNode, std::move(frame));
  Run(absl::Milliseconds(20));
  Kill(1);
  Run(absl::Seconds(6));
  ASSERT_EQ(nodes_[0]->Last().generation(), 2u);
  EXPECT_EQ(nodes_[0]->Last().restore().step(), 3u) << Events();
}

TEST_F(SchedulerCheckpointTest, ASchedulerThatComesBackKnowsWhatIsWritten) {
  root_ = "/checkpoints";
  store_ = &memory_;
  experiment_.mutable_checkpoints()->set_every_steps(5);
  experiment_.mutable_checkpoints()->set_at_end(true);
  StartJob();
  ServeCheckpoints();
  Run(absl::Seconds(3));
  EXPECT_EQ(requests_.back().step(), 10u);
  requests_.clear();
  KillScheduler();
  StartScheduler();
  Run(absl::Seconds(1));
  FinishWork();
  Run(absl::Seconds(2));
  EXPECT_TRUE(requests_.empty());
  ASSERT_TRUE(end_.has_value());
  EXPECT_TRUE(end_->ok()) << *end_;
}

TEST_F(SchedulerCheckpointTest,
       ASchedulerThatComesBackBeforeTheJobBeganStillComparesTheCheckpoint) {
  root_ = "/checkpoints";
  experiment_.mutable_checkpoints()->set_at_end(true);
  StartJob();
  ServeCheckpoints();
  FinishWork();
  Run(absl::Seconds(2));
  ASSERT_TRUE(end_.has_value());

  ForgetJob();
  restore_ = root_;
  store_ = &memory_;
  experiment_.mutable_cluster()->set_workers(1);
  StartScheduler();
  Add(pb::SERVER);
  Run(absl::Milliseconds(100));
  KillScheduler();
  StartScheduler();
  Run(absl::Milliseconds(100));
  Add(pb::SERVER);
  Add(pb::WORKER);
  Run(absl::Seconds(5));
  ASSERT_TRUE(end_.has_value());
  EXPECT_THAT(std::string(end_->message()), HasSubstr("it is of 2 workers, cluster.workers is 1"));
}

// Trainers go on, and beat, until they are told to begin again.
TEST_F(SchedulerCheckpointTest, WhereWorkersWereBeforeARollBackDoesNotCountAfterIt) {
  root_ = "/checkpoints";
  experiment_.mutable_checkpoints()->set_every_steps(5);
  StartJob();
  for (size_t i : {2, 3}) nodes_[i]->tick = 50;
  bool slow = true;
  nodes_[0]->rpc->Handle(pb::ASSIGN, [&](NodeId from, Frame frame) {
    if (slow) return nodes_[0]->rpc->ReplyParked(from, frame.header, "something");
    pb::Assignment assignment;
    EXPECT_TRUE(assignment.ParseFromString(frame.header.body()));
    nodes_[0]->assigned.push_back(assignment);
    nodes_[0]->rpc->Reply(from, frame.header, Frame());
  });
  Kill(1);
  Run(absl::Seconds(5));
  EXPECT_EQ(nodes_[2]->Last().generation(), 1u);
  ServeCheckpoints();
  for (size_t i : {2, 3}) nodes_[i]->tick = 0;
  slow = false;
  Run(absl::Seconds(3));
  ASSERT_EQ(nodes_[2]->Last().generation(), 2u);
  ASSERT_FALSE(requests_.empty());
  EXPECT_EQ(requests_.front().step(), 5u);
}

TEST_F(SchedulerCheckpointTest, AJobDoesNotBeginAmongTheCheckpointsOfAnother) {
  root_ = "/checkpoints";
  experiment_.mutable_checkpoints()->set_at_end(true);
  StartJob();
  ServeCheckpoints();
  FinishWork();
  Run(absl::Seconds(2));
  ASSERT_TRUE(end_.has_value());
  ForgetJob();
  StartScheduler();
  Run(absl::Seconds(5));
  ASSERT_TRUE(end_.has_value());
  EXPECT_THAT(
      std::string(end_->message()),
      HasSubstr("'/checkpoints' has checkpoints of another run, up to step 10; allowed: a dir"));
}

TEST_F(SchedulerCheckpointTest, OlderOnesGoWhenTheNewOneIsInTheState) {
  root_ = "/checkpoints";
  store_ = &memory_;
  experiment_.mutable_checkpoints()->set_every_steps(5);
  experiment_.mutable_checkpoints()->set_keep(1);
  StartJob();
  ServeCheckpoints();
  memory_.broken = absl::UnavailableError("the disk is full");
  Run(absl::Seconds(3));
  EXPECT_THAT(*ListCheckpoints(&files_, root_), ElementsAre(5, 10));
  memory_.broken = absl::OkStatus();
  Run(absl::Seconds(12));
  EXPECT_THAT(*ListCheckpoints(&files_, root_), ElementsAre(10));
}

TEST_F(SchedulerCheckpointTest, WhatCannotBeReadJustNowIsWaitedFor) {
  LoseAServerWhileTheDirectoryIsAway();
  Run(absl::Seconds(4));
  EXPECT_EQ(nodes_[2]->Last().generation(), 1u);
  EXPECT_THAT(Events(), HasSubstr("the directory of checkpoints '/checkpoints' is not there"));
  ASSERT_TRUE(files_.Rename("/elsewhere", root_).ok());
  Run(absl::Seconds(3));
  EXPECT_EQ(nodes_[2]->Last().generation(), 2u);
  EXPECT_EQ(nodes_[2]->Last().restore().step(), 10u) << Events();
}

TEST_F(SchedulerCheckpointTest, WhatNeverCanBeReadEndsTheJob) {
  LoseAServerWhileTheDirectoryIsAway();
  Run(absl::Seconds(15));
  ASSERT_TRUE(end_.has_value());
  EXPECT_THAT(std::string(end_->message()),
              HasSubstr("no checkpoint could be read within start_timeout_ms 10000"));
}

TEST_F(SchedulerCheckpointTest, AJobWithoutTheCheckpointAtItsEndHasFailed) {
  root_ = "/checkpoints";
  experiment_.mutable_checkpoints()->set_at_end(true);
  StartJob();
  int asked = 0;
  for (auto& node : nodes_) {
    node->on_checkpoint = [&asked, node = node.get()](NodeId from, const Frame& frame) {
      ++asked;
      node->rpc->ReplyError(from, frame.header, absl::InternalError("the disk is full"));
    };
  }
  FinishWork();
  Run(absl::Seconds(9));
  EXPECT_FALSE(end_.has_value());
  Run(absl::Seconds(6));
  ASSERT_TRUE(end_.has_value()) << Events();
  EXPECT_THAT(std::string(end_->message()),
              HasSubstr("the checkpoint at the end was not written: "));
  EXPECT_THAT(std::string(end_->message()), HasSubstr("the disk is full"));
  EXPECT_GE(asked, 3);
  EXPECT_FALSE(keeper_.summary->ok);
}

// Servers answer with what they have written, which is not in the place where it was written.
TEST_F(SchedulerCheckpointTest, OneThatIsThereAlreadyIsNotWrittenAgain) {
  root_ = "/checkpoints";
  store_ = &memory_;
  experiment_.mutable_checkpoints()->set_at_end(true);
  StartJob();
  ServeCheckpoints();
  FinishWork();
  for (int i = 0; i < 1000 && !files_.Exists(CheckpointDirectory(root_, 10)); ++i) {
    if (files_.Exists(PendingDirectory(root_, 10))) {
      memory_.broken = absl::UnavailableError("the disk is full");
    }
    Run(absl::Milliseconds(1));
  }
  KillScheduler();
  for (auto& node : nodes_) {
    node->on_checkpoint = [this, node = node.get()](NodeId from, const Frame& frame) {
      Frame answer;
      answer.header.set_body(written_[Value(node->node)]);
      node->rpc->Reply(from, frame.header, std::move(answer));
    };
  }
  memory_.broken = absl::OkStatus();
  StartScheduler();
  Run(absl::Seconds(5));
  FinishWork();
  Run(absl::Seconds(3));
  ASSERT_TRUE(end_.has_value()) << Events();
  EXPECT_TRUE(end_->ok()) << *end_;
  EXPECT_THAT(*ListCheckpoints(&files_, root_), ElementsAre(10));
}

TEST_F(SchedulerCheckpointTest, TheCheckpointAtTheEndIsNotWaitedForForEver) {
  root_ = "/checkpoints";
  experiment_.mutable_checkpoints()->set_at_end(true);
  experiment_.mutable_cluster()->set_start_timeout_ms(1000);
  StartJob();
  for (auto& node : nodes_) {
    node->on_checkpoint = [node = node.get()](NodeId from, const Frame& frame) {
      node->rpc->ReplyParked(from, frame.header, "the disk");
    };
  }
  FinishWork();
  Run(absl::Seconds(12));
  ASSERT_TRUE(end_.has_value());
  EXPECT_THAT(std::string(end_->message()),
              HasSubstr("no server said what became of it within 10s (10 times"));
}

TEST_F(SchedulerCheckpointTest, AServerThatReadsForEverIsGivenUp) {
  experiment_.mutable_cluster()->set_start_timeout_ms(3000);
  StartJob();
  nodes_[0]->rpc->Handle(pb::ASSIGN, [&](NodeId from, Frame frame) {
    nodes_[0]->rpc->ReplyParked(from, frame.header, "the disk");
  });
  Kill(1);
  Run(absl::Seconds(29));
  EXPECT_THAT(Events(), ::testing::Not(HasSubstr("held there")));
  Run(absl::Seconds(5));
  EXPECT_THAT(Events(), HasSubstr("did not answer within 30s"));
  EXPECT_THAT(Events(), HasSubstr("it is held there, waiting for the disk"));
}

TEST_F(SchedulerCheckpointTest, ARollBackThatASchedulerDiesInCountsOnce) {
  root_ = "/checkpoints";
  store_ = &memory_;
  StartJob();
  Kill(0);
  Kill(1);  // none is left: others are waited for
  Run(absl::Seconds(3));
  KillScheduler();
  StartScheduler();
  Run(absl::Seconds(2));
  for (int i = 0; i < 2; ++i) Add(pb::SERVER);
  Run(absl::Seconds(3));
  EXPECT_EQ(nodes_[2]->Last().generation(), 2u) << Events();
  EXPECT_THAT(Events(), HasSubstr("(roll-back 1 of at most"));
}

}  // namespace
}  // namespace parley
