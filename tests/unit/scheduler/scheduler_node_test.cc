// The scheduler among scripted servers and workers, on a virtual clock.
#include "scheduler/scheduler_node.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/scheduler.pb.h"
#include "ps/base/sim_env.h"
#include "ps/base/sim_file_system.h"
#include "ps/checkpoint/checkpoint_files.h"
#include "ps/net/admission.h"
#include "ps/net/rpc.h"
#include "ps/net/scheduler_link.h"
#include "ps/net/sim_network.h"

namespace parley {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class Keeper : public RunObserver {
 public:
  void OnStart(const std::string&, const pb::Experiment&) override {}
  void OnEvent(const std::string& line) override { events.push_back(line); }
  void OnProgress(const RunProgress&) override {}
  void OnEpoch(const EpochMetrics&) override {}
  void OnFinish(const RunSummary& s) override { summary = s; }
  std::vector<std::string> events;
  std::optional<RunSummary> summary;
};

class MemoryStore : public StateStore {
 public:
  void Open(absl::AnyInvocable<void(absl::StatusOr<std::optional<std::string>>)> opened) override {
    opened(state);
  }
  void Save(std::string now, absl::AnyInvocable<void(absl::Status)> saved) override {
    if (!broken.ok()) return saved(broken);
    state = std::move(now);
    ++saves;
    saved(absl::OkStatus());
  }
  std::optional<std::string> state;
  absl::Status broken;
  int saves = 0;
};

// A server or worker that does as it is told and remembers it.
struct Node {
  Node(SimWorld* world, SimNetwork* network, uint64_t id, pb::Role role)
      : node(NodeId{id}), role(role), env(world, absl::StrCat("node ", id)) {
    transport = network->CreateTransport(&env, node, absl::StrCat("sim://", id));
    rpc = std::make_unique<Rpc>(&env, transport.get());
    EXPECT_TRUE(transport->Connect(kSchedulerNode, "sim://scheduler").ok());
    rpc->Handle(pb::ASSIGN, [this](NodeId from, Frame frame) {
      pb::Assignment assignment;
      EXPECT_TRUE(assignment.ParseFromString(frame.header.body()));
      assigned.push_back(assignment);
      Frame answer;
      answer.header.set_body(missing.SerializeAsString());
      rpc->Reply(from, frame.header, std::move(answer));
    });
    rpc->Handle(pb::PING, [this](NodeId from, Frame f) { rpc->Reply(from, f.header, Frame()); });
    rpc->Handle(pb::STOP, [this](NodeId from, Frame f) {
      stop.emplace();
      EXPECT_TRUE(stop->ParseFromString(f.header.body()));
      rpc->Reply(from, f.header, Frame());
    });
    rpc->Handle(pb::COUNT, [this](NodeId from, Frame f) {
      Frame answer;
      answer.header.set_body(counts.SerializeAsString());
      rpc->Reply(from, f.header, std::move(answer));
    });
    rpc->Handle(pb::CHECKPOINT, [this](NodeId from, Frame f) { on_checkpoint(from, f); });
  }

  void Ask(pb::Kind kind, std::string body, std::function<void(absl::StatusOr<Frame>)> then) {
    Frame frame;
    frame.header.set_kind(kind);
    frame.header.set_body(std::move(body));
    rpc->Call(kSchedulerNode, std::move(frame), {.deadline = absl::Minutes(5)}, std::move(then));
  }
  void Join() {
    pb::Hello hello;
    hello.set_role(role);
    hello.set_node_name(absl::StrCat("host:", Value(node)));
    if (role == pb::SERVER) {
      hello.set_process(Value(node));
      hello.set_endpoint(absl::StrCat("sim://", Value(node)));
    }
    Ask(pb::HELLO, hello.SerializeAsString(), [this](absl::StatusOr<Frame> answer) {
      if (!answer.ok()) {
        refused = answer.status();
        return;
      }
      pb::Welcome welcome;
      EXPECT_TRUE(welcome.ParseFromString(answer->header.body()));
      rpc->SetIdentity(welcome.job_id(), welcome.incarnation(), welcome.rank());
      Beat();
      if (role == pb::WORKER) Register();
    });
  }
  void Register() {
    pb::Register tables;
    tables.set_train_samples(100);
    pb::TableSpec* table = tables.add_table();
    table->set_name("model");
    table->set_partition_elements(4);
    table->add_tensor()->add_shape(16);  // 4 partitions
    Ask(pb::REGISTER, tables.SerializeAsString(), [this](absl::StatusOr<Frame> answer) {
      if (!answer.ok()) return;
      pb::Assignment assignment;
      EXPECT_TRUE(assignment.ParseFromString(answer->header.body()));
      assigned.push_back(assignment);
    });
  }
  void Beat() {
    pb::Heartbeat beat;
    if (role == pb::WORKER && !assigned.empty()) {
      for (int rank = 0; rank < Last().worker_node_size(); ++rank) {
        if (Last().worker_node(rank) != Value(node)) continue;
        pb::Heartbeat* worker = beat.add_worker();
        worker->set_rank(rank);
        worker->set_tick(tick);
        worker->set_samples(tick * 5);
      }
    }
    Ask(pb::HEARTBEAT, beat.SerializeAsString(), [](absl::StatusOr<Frame>) {});
    env.After(absl::Milliseconds(100), [this] { Beat(); });
  }
  void Finish(uint32_t rank, uint64_t pushes) {
    pb::Finished finished;
    finished.set_rank(rank);
    finished.set_steps(10);
    finished.set_pushes_acked(pushes);
    finished.set_incarnation(Last().worker_incarnation(rank));
    finished.set_generation(Last().generation());
    Ask(pb::FINISHED, finished.SerializeAsString(), [](absl::StatusOr<Frame>) {});
  }
  // As primary: the copies of its partitions are there.
  void SayAllSynced() {
    const pb::PartitionMap& map = Last().map();
    for (const pb::TableMap& table : map.table()) {
      for (const pb::Backup& backup : table.backup()) {
        if (map.shard(table.owner(backup.partition())).node() != Value(node)) continue;
        pb::BackupNews news;
        news.set_epoch(map.epoch());
        news.set_table(table.table());
        news.set_partition(backup.partition());
        news.set_node(map.shard(backup.shard()).node());
        Ask(pb::BACKUP_NEWS, news.SerializeAsString(), [](absl::StatusOr<Frame>) {});
      }
    }
  }
  const pb::Assignment& Last() const { return assigned.back(); }

  const NodeId node;
  const pb::Role role;
  SimEnv env;
  std::unique_ptr<Transport> transport;
  std::unique_ptr<Rpc> rpc;
  std::vector<pb::Assignment> assigned;
  pb::Assigned missing;
  pb::ServerCounts counts;
  std::optional<pb::Stop> stop;
  absl::Status refused;
  uint64_t tick = 0;
  std::function<void(NodeId, const Frame&)> on_checkpoint = [](NodeId, const Frame&) {};
};

class SchedulerNodeTest : public ::testing::Test {
 protected:
  SchedulerNodeTest() : world_(1), network_(&world_, {}), files_(1) {
    experiment_.mutable_cluster()->set_servers(2);
    experiment_.mutable_cluster()->set_workers(2);
    experiment_.mutable_cluster()->set_heartbeat_ms(100);
    experiment_.mutable_cluster()->set_node_timeout_ms(1000);
    experiment_.mutable_cluster()->set_start_timeout_ms(10000);
    experiment_.mutable_training()->set_epochs(1);
    experiment_.mutable_training()->set_global_batch(10);
  }

  void StartScheduler() {
    scheduler_env_ = std::make_unique<SimEnv>(&world_, "scheduler");
    scheduler_transport_ =
        network_.CreateTransport(scheduler_env_.get(), kSchedulerNode, "sim://scheduler");
    SchedulerNode::Options options;
    options.job = "job";
    options.experiment = experiment_;
    options.store = store_;
    options.files = &files_;
    options.checkpoint_root = root_;
    options.restore = restore_;
    scheduler_ = std::make_unique<SchedulerNode>(scheduler_env_.get(), scheduler_transport_.get(),
                                                 std::move(options), &keeper_,
                                                 [this](absl::Status status) { end_ = status; });
    scheduler_->Start();
  }
  Node* Add(pb::Role role) {
    nodes_.push_back(std::make_unique<Node>(&world_, &network_, 100 + nodes_.size(), role));
    nodes_.back()->Join();
    return nodes_.back().get();
  }
  // Servers 0 and 1, workers 2 and 3, training.
  void StartJob() {
    StartScheduler();
    for (pb::Role role : {pb::SERVER, pb::SERVER, pb::WORKER, pb::WORKER}) {
      Add(role);
      Run(absl::Milliseconds(20));
    }
    Run(absl::Milliseconds(100));
    for (auto& node : nodes_) ASSERT_FALSE(node->assigned.empty());
  }
  void Run(absl::Duration time) {
    const absl::Duration until = world_.Now() + time;
    world_.RunUntil([&] { return world_.Now() >= until; }, time * 2);
  }
  void Kill(size_t index) { nodes_[index]->env.Kill(); }
  std::vector<uint64_t> Owners(const pb::Assignment& assignment) {
    std::vector<uint64_t> owners;
    for (uint32_t owner : assignment.map().table(0).owner()) {
      owners.push_back(assignment.map().shard(owner).node());
    }
    return owners;
  }
  std::string Events() {
    std::string text;
    for (const std::string& event : keeper_.events) absl::StrAppend(&text, event, "\n");
    return text;
  }

  SimWorld world_;
  SimNetwork network_;
  SimFileSystem files_;
  Keeper keeper_;
  MemoryStore memory_;
  StateStore* store_ = nullptr;
  std::string root_, restore_;
  pb::Experiment experiment_;
  std::unique_ptr<SimEnv> scheduler_env_;
  std::unique_ptr<Transport> scheduler_transport_;
  std::unique_ptr<SchedulerNode> scheduler_;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::optional<absl::Status> end_;
};

TEST_F(SchedulerNodeTest, WithoutFailuresThereIsOneRound) {
  StartJob();
  for (auto& node : nodes_) {
    ASSERT_EQ(node->assigned.size(), 1u);
    EXPECT_EQ(node->Last().map().epoch(), 1u);
    EXPECT_EQ(node->Last().generation(), 1u);
  }
  EXPECT_THAT(Owners(nodes_[2]->Last()), ElementsAre(100, 101, 100, 101));
  EXPECT_THAT(nodes_[2]->Last().worker_node(), ElementsAre(102, 103));
  nodes_[0]->counts.set_pushes_applied(3);
  nodes_[1]->counts.set_pushes_applied(4);
  nodes_[2]->Finish(0, 3);
  nodes_[3]->Finish(1, 4);
  Run(absl::Seconds(2));
  ASSERT_TRUE(end_.has_value());
  EXPECT_TRUE(end_->ok()) << *end_;
  EXPECT_TRUE(keeper_.summary->ok) << keeper_.summary->reason;
  EXPECT_EQ(keeper_.summary->pushes_acknowledged, 7u);
  EXPECT_EQ(keeper_.summary->restarts, 0u);
}

TEST_F(SchedulerNodeTest, ACopyTakesOverFromADeadServer) {
  experiment_.mutable_cluster()->set_replicas(1);
  StartJob();
  EXPECT_EQ(nodes_[0]->Last().map().table(0).backup_size(), 4);
  nodes_[0]->SayAllSynced();
  nodes_[1]->SayAllSynced();
  Run(absl::Milliseconds(100));
  EXPECT_THAT(keeper_.events, Contains("all partitions have their copies"));
  Kill(1);
  Run(absl::Seconds(2));
  EXPECT_THAT(Owners(nodes_[0]->Last()), ElementsAre(100, 100, 100, 100));
  EXPECT_GT(nodes_[2]->Last().map().epoch(), 1u);
  EXPECT_EQ(nodes_[2]->Last().generation(), 1u);
  EXPECT_THAT(Events(), HasSubstr("server 1 (host:101) is dead: no heartbeat for"));
  EXPECT_THAT(Events(), HasSubstr("2 partitions were taken over by server 0 (host:100)"));
  // Another server comes: it gets the copies, and then half of the work.
  Node* late = Add(pb::SERVER);
  for (int i = 0; i < 8; ++i) {
    Run(absl::Milliseconds(100));
    nodes_[0]->SayAllSynced();
    if (!late->assigned.empty()) late->SayAllSynced();
  }
  std::vector<uint64_t> owners = Owners(nodes_[0]->Last());
  EXPECT_EQ(std::count(owners.begin(), owners.end(), 104), 2);
  EXPECT_FALSE(end_.has_value());
}

TEST_F(SchedulerNodeTest, WithoutCopiesAllBeginAgain) {
  StartJob();
  Kill(1);
  Run(absl::Milliseconds(1500));
  EXPECT_FALSE(end_.has_value());
  Node* replacement = Add(pb::SERVER);
  Run(absl::Milliseconds(500));
  ASSERT_FALSE(replacement->assigned.empty());
  const pb::Assignment& last = nodes_[2]->Last();
  EXPECT_EQ(last.generation(), 2u);
  EXPECT_FALSE(last.has_restore());
  EXPECT_THAT(Owners(last), ElementsAre(100, 104, 100, 104));
  EXPECT_THAT(last.worker_incarnation(), ElementsAre(2, 2));
  EXPECT_THAT(Events(), HasSubstr("all begin again from the first weights"));
}

TEST_F(SchedulerNodeTest, NobodyComesAndThoseThatAreThereGoOn) {
  StartJob();
  Kill(1);
  Run(absl::Seconds(4));
  EXPECT_THAT(Owners(nodes_[2]->Last()), ElementsAre(100, 100, 100, 100));
  EXPECT_FALSE(end_.has_value());
}

TEST_F(SchedulerNodeTest, WithoutRestartsTheJobEndsAsEver) {
  experiment_.mutable_cluster()->set_max_restarts(0);
  StartJob();
  Kill(1);
  Run(absl::Seconds(6));
  ASSERT_TRUE(end_.has_value());
  EXPECT_THAT(std::string(end_->message()),
              ::testing::AllOf(HasSubstr("server 1 shard 0 (host:101) is dead: no heartbeat for"),
                               HasSubstr("node_timeout_ms is 1000"), HasSubstr("in epoch 1")));
  EXPECT_FALSE(keeper_.summary->ok);
  EXPECT_FALSE(nodes_[2]->stop->ok());
}

TEST_F(SchedulerNodeTest, TheWorkOfADeadWorkerGoesToOthers) {
  StartJob();
  nodes_[0]->missing.add_lowest_missing(7);
  nodes_[0]->missing.add_lowest_missing(5);
  nodes_[1]->missing.add_lowest_missing(7);
  nodes_[1]->missing.add_lowest_missing(6);
  Kill(3);
  Run(absl::Seconds(2));
  EXPECT_THAT(nodes_[2]->Last().worker_node(), ElementsAre(102, 102));
  EXPECT_THAT(nodes_[2]->Last().worker_incarnation(), ElementsAre(1, 2));
  EXPECT_THAT(nodes_[2]->Last().worker_start(), ElementsAre(7, 5));
  EXPECT_THAT(nodes_[2]->Last().worker_skip_below(), ElementsAre());
  EXPECT_THAT(nodes_[0]->Last().worker_node(), ElementsAre(102, 102));
  Node* late = Add(pb::WORKER);
  Run(absl::Milliseconds(500));
  EXPECT_THAT(late->Last().worker_node(), ElementsAre(102, 104));
  EXPECT_THAT(late->Last().worker_incarnation(), ElementsAre(1, 3));
}

TEST_F(SchedulerNodeTest, WorkerLossFailEndsTheJob) {
  experiment_.mutable_cluster()->set_worker_loss(pb::Cluster::FAIL);
  StartJob();
  Kill(3);
  Run(absl::Seconds(6));
  ASSERT_TRUE(end_.has_value());
  EXPECT_THAT(std::string(end_->message()), HasSubstr("worker 1 (host:103) is dead"));
}

TEST_F(SchedulerNodeTest, WorkThatKillsIsNotGivenOutForever) {
  StartJob();
  for (size_t i = 0; i < 8 && !end_.has_value(); ++i) {
    // Whoever has logical worker 1 fails on it.
    for (auto& node : nodes_) {
      if (node->role != pb::WORKER || node->assigned.empty() || !node->env.alive()) continue;
      if (node->Last().worker_node(1) != Value(node->node)) continue;
      pb::Stop reason;
      reason.set_reason("line 7 is no number");
      Frame frame;
      frame.header.set_kind(pb::FAILED);
      frame.header.set_body(reason.SerializeAsString());
      node->rpc->Tell(kSchedulerNode, std::move(frame));
      Run(absl::Milliseconds(5));
      node->env.Kill();
      break;
    }
    Add(pb::WORKER);
    Run(absl::Milliseconds(300));
  }
  Run(absl::Seconds(6));
  ASSERT_TRUE(end_.has_value());
  EXPECT_THAT(std::string(end_->message()),
              ::testing::AllOf(HasSubstr("failed: line 7 is no number"),
                               HasSubstr("logical worker 1 failed 4 times")));
}

TEST_F(SchedulerNodeTest, ASchedulerThatComesBackGoesOn) {
  store_ = &memory_;
  StartJob();
  EXPECT_GT(memory_.saves, 0);
  const uint64_t epoch = nodes_[2]->Last().map().epoch();
  scheduler_env_->Kill();
  Run(absl::Milliseconds(300));
  scheduler_.reset();
  scheduler_transport_.reset();
  StartScheduler();
  Run(absl::Milliseconds(500));
  EXPECT_THAT(Events(), HasSubstr("the scheduler is back, and goes on with epoch 1 and 4 nodes"));
  EXPECT_EQ(nodes_[2]->Last().map().epoch(), epoch);
  EXPECT_EQ(nodes_[2]->Last().generation(), 1u);
  EXPECT_GE(nodes_[0]->assigned.size(), 2u);  // the round was made again
  EXPECT_FALSE(nodes_[0]->stop.has_value());
  nodes_[0]->counts.set_pushes_applied(3);
  nodes_[2]->Finish(0, 2);
  nodes_[3]->Finish(1, 1);
  Run(absl::Seconds(2));
  ASSERT_TRUE(end_.has_value());
  EXPECT_TRUE(end_->ok()) << *end_;
  pb::SchedulerState state;
  ASSERT_TRUE(state.ParseFromString(*memory_.state));
  EXPECT_TRUE(state.ended());
}

TEST_F(SchedulerNodeTest, NothingChangesWhileTheStateCannotBeSaved) {
  store_ = &memory_;
  StartJob();
  memory_.broken = absl::ResourceExhaustedError("disk full");
  Kill(3);
  Run(absl::Seconds(3));
  EXPECT_EQ(nodes_[0]->assigned.size(), 1u);
  EXPECT_THAT(Events(), HasSubstr("cannot be saved"));
  memory_.broken = absl::OkStatus();
  Run(absl::Seconds(2));
  EXPECT_THAT(nodes_[0]->Last().worker_node(), ElementsAre(102, 102));
}

TEST_F(SchedulerNodeTest, ADeposedSchedulerTellsNobodyToStop) {
  store_ = &memory_;
  StartJob();
  memory_.broken = absl::FailedPreconditionError("another leads");
  Kill(3);
  Run(absl::Seconds(3));
  ASSERT_TRUE(end_.has_value());
  EXPECT_THAT(std::string(end_->message()), HasSubstr("another leads"));
  EXPECT_FALSE(keeper_.summary.has_value());
  EXPECT_FALSE(nodes_[0]->stop.has_value());
}

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
        Frame answer;
        answer.header.set_body(file->SerializeAsString());
        node->rpc->Reply(from, frame.header, std::move(answer));
      };
    }
  }
  std::vector<pb::CheckpointRequest> requests_;
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
  nodes_[2]->Finish(0, 0);
  nodes_[3]->Finish(1, 0);
  Run(absl::Seconds(2));
  ASSERT_TRUE(end_.has_value());
  EXPECT_TRUE(end_->ok()) << *end_;
  EXPECT_THAT(*ListCheckpoints(&files_, root_), ElementsAre(10));
  EXPECT_EQ(keeper_.summary->checkpoints, 1u);

  nodes_.clear();
  end_.reset();
  scheduler_.reset();
  scheduler_transport_.reset();
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

TEST_F(SchedulerNodeTest, FewerServersAreAskedForWhileItTrains) {
  StartJob();
  Node tool(&world_, &network_, 900, pb::ROLE_UNKNOWN);
  tool.rpc->SetIdentity(JobId("job"), 0, 0);
  std::vector<std::string> said;
  const auto ask = [&](uint32_t servers) {
    pb::Control control;
    control.set_servers(servers);
    tool.Ask(pb::CONTROL, control.SerializeAsString(), [&](absl::StatusOr<Frame> frame) {
      pb::ControlAnswer answer;
      if (frame.ok()) answer.ParseFromString(frame->header.body());
      said.push_back(frame.ok() ? answer.text() : std::string(frame.status().message()));
    });
  };
  ask(3);
  Run(absl::Milliseconds(100));
  EXPECT_THAT(said, ElementsAre(HasSubstr("3 servers were asked for; allowed are 1")));
  ask(1);
  for (int i = 0; i < 5; ++i) {
    Run(absl::Milliseconds(100));
    nodes_[1]->SayAllSynced();
  }
  EXPECT_THAT(Owners(nodes_[2]->Last()), ElementsAre(100, 100, 100, 100));
  ASSERT_EQ(said.size(), 2u);
  EXPECT_THAT(said[1], HasSubstr("1 servers hold the partitions now; 2 partitions moved"));
  ASSERT_TRUE(nodes_[1]->stop.has_value());
  EXPECT_TRUE(nodes_[1]->stop->ok());
  EXPECT_FALSE(nodes_[0]->stop.has_value());
}

}  // namespace
}  // namespace parley
