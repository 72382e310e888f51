// Worker nodes that are given logical workers, and lose them, by a scripted scheduler.
#include "worker/worker_node.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "google/protobuf/text_format.h"
#include "ps/net/scheduler_link.h"
#include "tests/unit/worker/bsp_server.h"
#include "tests/unit/worker/fake_server.h"
#include "tools/local/local_run.h"
#include "worker/workload.h"

namespace parley {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kExperiment[] = R"(
  name: "test" seed: 3
  cluster {
    workers: 3 partition_kib: 4 max_request_kib: 8 compute_threads: 1 heartbeat_ms: 20
    node_timeout_ms: 200 scheduler_timeout_ms: 5000 start_timeout_ms: 10000
  }
  data { synthetic { train_samples: 50 test_samples: 20 width: 24 classes: 4 } }
  model {
    layer { name: "fc1" linear { out: 100 } }
    layer { name: "drop1" dropout { p: 0.2 } }
    layer { name: "fc2" linear { out: 30 } }
    layer { name: "fc3" linear { out: 4 } }
    layer { name: "out" log_softmax {} }
  }
  training { epochs: 5 global_batch: 16 eval_batch: 3 }
  optimizer { sgd { momentum: 0.9 } lr: 0.1 }
  consistency {}
)";
constexpr uint32_t kWorkers = 3, kServers = 2;
constexpr uint64_t kJob = 5;

struct Node {
  Node(SimWorld* world, SimNetwork* network, NodeId id)
      : id(id),
        env(world, absl::StrCat("worker", Value(id))),
        transport(network->CreateTransport(&env, id, "")) {}
  NodeId id;
  SimEnv env;
  std::unique_ptr<Transport> transport;
  std::vector<std::string> log;
  std::optional<absl::Status> end;
  std::unique_ptr<WorkerNode> node;
};

// Says what it is told to say, and keeps what it hears.
class FakeScheduler {
 public:
  FakeScheduler(SimWorld* world, SimNetwork* network, pb::Experiment experiment)
      : experiment_(std::move(experiment)),
        env_(world, "scheduler"),
        transport_(network->CreateTransport(&env_, kSchedulerNode, "sim://scheduler")),
        rpc_(&env_, transport_.get()) {
    rpc_.SetIdentity(kJob, 1, 0);
    rpc_.Handle(pb::HELLO, [this](NodeId from, Frame request) {
      pb::Welcome welcome;
      // What a node is called matters to nobody: what it hosts is in assignments.
      welcome.set_rank(700);
      welcome.set_incarnation(900);
      welcome.set_job("test");
      welcome.set_job_id(kJob);
      *welcome.mutable_experiment() = experiment_;
      welcome.set_spare(spares.contains(from));
      Answer(from, request, welcome.SerializeAsString());
    });
    rpc_.Handle(pb::REGISTER, [this](NodeId from, Frame request) {
      registered[from] = request.header;
      rpc_.ReplyParked(from, request.header, "everybody");
    });
    rpc_.Handle(pb::HEARTBEAT, [this](NodeId from, Frame request) {
      EXPECT_TRUE(ParseBody(request, &beats[from]).ok());
      Answer(from, request, "");
    });
    rpc_.Handle(pb::REPORT, [this](NodeId from, Frame request) {
      EXPECT_TRUE(ParseBody(request, &reports.emplace_back()).ok());
      Answer(from, request, "");
    });
    rpc_.Handle(pb::FINISHED, [this](NodeId from, Frame request) {
      pb::Finished message;
      EXPECT_TRUE(ParseBody(request, &message).ok());
      const int rank = static_cast<int>(message.rank());
      if (message.incarnation() != current->worker_incarnation(rank)) {
        rpc_.ReplyError(from, request.header, absl::FailedPreconditionError("it was moved"));
        return;
      }
      finished[message.rank()] = message;
      Answer(from, request, "");
    });
    rpc_.Handle(pb::FAILED, [this](NodeId, Frame request) {
      EXPECT_TRUE(ParseBody(request, &failures.emplace_back()).ok());
    });
  }

  void AnswerRegister(NodeId node, const pb::Assignment& assignment) {
    Frame answer;
    answer.header.set_body(assignment.SerializeAsString());
    rpc_.Reply(node, registered.at(node), std::move(answer));
  }
  void Assign(NodeId node, const pb::Assignment& assignment) {
    Frame frame;
    frame.header.set_kind(pb::ASSIGN);
    frame.header.set_body(assignment.SerializeAsString());
    ++asked_;
    rpc_.Call(node, std::move(frame), {.what = "ASSIGN"},
              [this](absl::StatusOr<Frame> answer) { answers.push_back(answer.status()); });
  }
  void Stop(NodeId node) {
    pb::Stop stop;
    stop.set_ok(true);
    Frame frame;
    frame.header.set_kind(pb::STOP);
    frame.header.set_body(stop.SerializeAsString());
    rpc_.Call(node, std::move(frame), {.what = "STOP"}, [](absl::StatusOr<Frame>) {});
  }
  bool all_answered() const { return answers.size() == asked_; }

  const pb::Assignment* current = nullptr;  // whose end counts
  std::set<NodeId> spares;
  std::map<NodeId, pb::FrameHeader> registered;
  std::map<NodeId, pb::Heartbeat> beats;  // the newest
  std::vector<pb::Report> reports;
  std::map<uint32_t, pb::Finished> finished;  // by rank
  std::vector<pb::Stop> failures;
  std::vector<absl::Status> answers;  // to ASSIGN

 private:
  void Answer(NodeId to, const Frame& request, std::string body) {
    Frame answer;
    answer.header.set_body(std::move(body));
    rpc_.Reply(to, request.header, std::move(answer));
  }

  const pb::Experiment experiment_;
  SimEnv env_;
  std::unique_ptr<Transport> transport_;
  Rpc rpc_;
  size_t asked_ = 0;
};

class WorkerNodeTest : public ::testing::Test {
 protected:
  static constexpr NodeId kFirst{200}, kSecond{201}, kSpare{202};

  WorkerNodeTest() {
    EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(kExperiment, &experiment_));
    scheduler_ = std::make_unique<FakeScheduler>(&world_, &network_, experiment_);
    const auto workload = *LoadWorkload(experiment_);
    const pb::TableSpec table = ModelTable(experiment_, *workload->model);
    const DenseLayout layout = *DenseLayout::Create(table);
    optimizer_ = *Optimizer::Create(experiment_.optimizer());
    for (uint32_t i = 0; i < kServers; ++i) {
      logic_.push_back(std::make_unique<BspServer>(table, layout, optimizer_.get(), kWorkers));
      servers_.push_back(std::make_unique<FakeServer>(
          &world_, &network_, i,
          [logic = logic_.back().get()](FakeServer& server, NodeId from, Frame request) {
            logic->Handle(server, from, std::move(request));
          }));
      servers_.back()->rpc().SetIdentity(kJob, 1, 0);
    }
    assignment_ = AssignRoundRobin(table, layout.partitions(), servers_);
    scheduler_->current = &assignment_;
    assignment_.set_workers(kWorkers);
    // Ranks 0 and 2 on one node, 1 on the other.
    for (NodeId node : {kFirst, kSecond, kFirst}) {
      assignment_.add_worker_node(Value(node));
      assignment_.add_worker_incarnation(1);
      assignment_.add_worker_start(0);
      assignment_.add_worker_skip_below(0);
    }
  }

  void StartNodes(const std::vector<NodeId>& ids) {
    for (NodeId id : ids) {
      auto node = std::make_unique<Node>(&world_, &network_, id);
      Node* raw = node.get();
      WorkerNode::Options options;
      options.scheduler = "sim://scheduler";
      options.node_name = absl::StrCat("node", Value(id));
      options.log = [raw](const std::string& line) { raw->log.push_back(line); };
      node->node = std::make_unique<WorkerNode>(
          &node->env, node->transport.get(), std::move(options),
          [raw](absl::Status status) { raw->end = std::move(status); });
      node->node->Start();
      nodes_[id] = std::move(node);
    }
    ASSERT_TRUE(Until([&] { return scheduler_->registered.size() == nodes_.size(); }));
  }

  void Begin(const std::vector<NodeId>& ids) {
    StartNodes(ids);
    for (NodeId id : ids) scheduler_->AnswerRegister(id, assignment_);
  }

  bool Until(const std::function<bool()>& what) { return world_.RunUntil(what, absl::Seconds(30)); }

  // Runs until some partition has been pushed for `tick` by `rank`.
  void UntilStep(uint32_t rank, uint64_t tick) {
    ASSERT_TRUE(Until([&] {
      return logic_[0]->HighestMissing(rank) > tick || logic_[1]->HighestMissing(rank) > tick;
    }));
  }

  // The next assignment: `rank` is `node`'s.
  void Move(uint32_t rank, NodeId node) {
    const int at = static_cast<int>(rank);
    assignment_.mutable_map()->set_epoch(assignment_.map().epoch() + 1);
    assignment_.set_worker_node(at, Value(node));
    assignment_.set_worker_incarnation(at, assignment_.worker_incarnation(at) + 1);
    uint64_t start = ~uint64_t{0};
    for (auto& logic : logic_) {
      logic->Replace(rank, assignment_.worker_incarnation(at));
      start = std::min(start, logic->LowestMissing(rank));
    }
    assignment_.set_worker_start(at, start);
  }

  void AssignAll() {
    for (const auto& [id, node] : nodes_) {
      if (node->env.alive()) scheduler_->Assign(id, assignment_);
    }
    ASSERT_TRUE(Until([&] { return scheduler_->all_answered(); }));
    EXPECT_THAT(scheduler_->answers, ::testing::Each(absl::OkStatus()));
  }

  // Everything was done, to the reference's bits.
  void ExpectGoodEnd() {
    ASSERT_TRUE(Until([&] { return scheduler_->finished.size() == kWorkers; }));
    EXPECT_THAT(scheduler_->failures, IsEmpty());
    const absl::StatusOr<LocalResult> reference = RunLocal(experiment_);
    ASSERT_TRUE(reference.ok()) << reference.status();
    EXPECT_EQ(scheduler_->finished.at(0).weights_sha256(), reference->weights_sha256);
    for (const auto& [rank, finished] : scheduler_->finished) {
      EXPECT_EQ(finished.steps(), reference->steps);
      EXPECT_EQ(finished.incarnation(), assignment_.worker_incarnation(static_cast<int>(rank)));
      EXPECT_EQ(finished.generation(), assignment_.generation());
    }
    for (const auto& [id, node] : nodes_) {
      EXPECT_FALSE(node->end.has_value()) << *node->end;  // until it is told
      if (node->env.alive()) scheduler_->Stop(id);
    }
    ASSERT_TRUE(Until([&] {
      return std::all_of(nodes_.begin(), nodes_.end(), [](const auto& node) {
        return node.second->end.has_value() || !node.second->env.alive();
      });
    }));
    for (const auto& [id, node] : nodes_) {
      if (node->env.alive()) {
        EXPECT_TRUE(node->end->ok()) << *node->end;
      }
    }
  }

  std::vector<uint32_t> RanksOf(NodeId node) {
    // What was said before the last assignment is no news.
    scheduler_->beats.erase(node);
    EXPECT_TRUE(Until([&] { return scheduler_->beats.contains(node); }));
    std::vector<uint32_t> ranks;
    for (const pb::Heartbeat& worker : scheduler_->beats[node].worker()) {
      ranks.push_back(worker.rank());
    }
    return ranks;
  }

  pb::Experiment experiment_;
  SimWorld world_{17};
  SimNetwork network_{&world_, {}};
  std::unique_ptr<FakeScheduler> scheduler_;
  std::unique_ptr<Optimizer> optimizer_;
  std::vector<std::unique_ptr<BspServer>> logic_;
  std::vector<std::unique_ptr<FakeServer>> servers_;
  pb::Assignment assignment_;
  std::map<NodeId, std::unique_ptr<Node>> nodes_;
};

TEST_F(WorkerNodeTest, ANodeHostsSeveralWorkersAndSpeaksForEach) {
  Begin({kFirst, kSecond});
  UntilStep(2, 9);
  EXPECT_THAT(RanksOf(kFirst), ElementsAre(0, 2));
  EXPECT_THAT(RanksOf(kSecond), ElementsAre(1));
  const pb::Heartbeat& beat = scheduler_->beats[kFirst];
  EXPECT_FALSE(beat.has_tick() || beat.has_waiting_for() || beat.has_samples());
  for (const pb::Heartbeat& worker : beat.worker()) {
    EXPECT_GE(worker.tick(), 9u);
    EXPECT_GT(worker.samples(), 0u);
    EXPECT_GT(worker.compute_seconds(), 0.0);
  }
  ExpectGoodEnd();
  std::map<uint32_t, std::vector<uint32_t>> epochs;
  for (const pb::Report& report : scheduler_->reports) {
    epochs[report.rank()].push_back(report.data_epoch());
  }
  for (uint32_t rank = 0; rank < kWorkers; ++rank) {
    std::sort(epochs[rank].begin(), epochs[rank].end());
    EXPECT_THAT(epochs[rank], ElementsAre(0, 1, 2, 3, 4));
  }
  EXPECT_EQ(logic_[0]->again() + logic_[1]->again(), 0u);
}

TEST_F(WorkerNodeTest, ADeadNodesWorkerIsAdoptedInTheMiddle) {
  Begin({kFirst, kSecond});
  UntilStep(1, 6);
  nodes_[kSecond]->env.Kill();
  Move(1, kFirst);
  AssignAll();
  EXPECT_THAT(RanksOf(kFirst), ElementsAre(0, 1, 2));
  ExpectGoodEnd();
  EXPECT_THAT(nodes_[kFirst]->log, Contains(HasSubstr("training part 1 of 3 with 2 shards, from")));
}

TEST_F(WorkerNodeTest, ANodeThatLosesAllItsWorkersWaitsForMore) {
  Begin({kFirst, kSecond});
  UntilStep(1, 5);
  Move(1, kFirst);
  AssignAll();
  EXPECT_THAT(RanksOf(kSecond), IsEmpty());
  EXPECT_EQ(scheduler_->beats[kSecond].waiting_for(), "work");
  UntilStep(1, 10);
  Move(1, kSecond);
  Move(2, kSecond);
  AssignAll();
  EXPECT_THAT(RanksOf(kFirst), ElementsAre(0));
  EXPECT_THAT(RanksOf(kSecond), ElementsAre(1, 2));
  ExpectGoodEnd();
}

// Whatever a worker is about when it goes: it is moved to and fro all the time.
TEST_F(WorkerNodeTest, WorkersMayBeMovedAtAnyMoment) {
  Begin({kFirst, kSecond});
  for (int move = 0; move < 60 && scheduler_->finished.size() < kWorkers; ++move) {
    world_.RunUntil([] { return false; }, absl::Microseconds(1700 + 331 * (move % 9)));
    const uint32_t rank = static_cast<uint32_t>(move) % kWorkers;
    const bool at_first = assignment_.worker_node(static_cast<int>(rank)) == Value(kFirst);
    Move(rank, at_first ? kSecond : kFirst);
    scheduler_->finished.erase(rank);
    for (NodeId id : {kFirst, kSecond}) scheduler_->Assign(id, assignment_);
  }
  ExpectGoodEnd();
  EXPECT_GT(logic_[0]->again() + logic_[1]->again(), 0u);
}

TEST_F(WorkerNodeTest, ASpareRegistersAndIsGivenWorkLater) {
  scheduler_->spares.insert(kSpare);
  Begin({kFirst, kSecond, kSpare});
  UntilStep(0, 3);
  EXPECT_THAT(RanksOf(kSpare), IsEmpty());
  EXPECT_EQ(scheduler_->beats[kSpare].waiting_for(), "work");
  nodes_[kFirst]->env.Kill();
  Move(0, kSpare);
  Move(2, kSpare);
  assignment_.mutable_map()->set_epoch(9);
  AssignAll();
  EXPECT_THAT(RanksOf(kSpare), ElementsAre(0, 2));
  ExpectGoodEnd();
}

TEST_F(WorkerNodeTest, ANewGenerationBeginsAllAnew) {
  Begin({kFirst, kSecond});
  UntilStep(1, 7);
  for (auto& logic : logic_) logic->Forget();
  assignment_.set_generation(1);
  assignment_.mutable_map()->set_epoch(8);
  for (int rank = 0; rank < 3; ++rank) assignment_.set_worker_incarnation(rank, 4);
  for (auto& logic : logic_) {
    for (uint32_t rank = 0; rank < kWorkers; ++rank) logic->Replace(rank, 4);
  }
  scheduler_->reports.clear();
  AssignAll();
  ExpectGoodEnd();
  size_t of_it = 0;
  for (const pb::Report& report : scheduler_->reports) of_it += report.generation() == 1;
  EXPECT_EQ(of_it, 5u * kWorkers);
}

// A generation that began from a checkpoint counts from its step, for those who come later, too.
TEST_F(WorkerNodeTest, AGenerationFromACheckpointBeginsAtItsStep) {
  Begin({kFirst, kSecond});
  UntilStep(1, 7);
  // The servers have the weights of step 5 again.
  PushHistory history = logic_[0]->history();
  history.insert(logic_[1]->history().begin(), logic_[1]->history().end());
  assignment_.set_generation(1);
  assignment_.mutable_map()->set_epoch(8);
  assignment_.mutable_restore()->set_step(5);
  for (uint32_t i = 0; i < kServers; ++i) {
    logic_[i]->Forget();
    std::set<uint32_t> partitions;
    for (int p = static_cast<int>(i); p < assignment_.map().table(0).owner_size(); p += kServers) {
      partitions.insert(static_cast<uint32_t>(p));
    }
    logic_[i]->Replay(history, 5, partitions);
    for (uint32_t rank = 0; rank < kWorkers; ++rank) logic_[i]->Replace(rank, 2);
  }
  for (int rank = 0; rank < 3; ++rank) assignment_.set_worker_incarnation(rank, 2);
  AssignAll();
  EXPECT_THAT(nodes_[kSecond]->log, Contains(HasSubstr("training part 1 of 3 with 2 shards, from "
                                                       "step 5")));
  UntilStep(1, 9);
  nodes_[kSecond]->env.Kill();
  Move(1, kFirst);
  AssignAll();
  ExpectGoodEnd();
}

TEST_F(WorkerNodeTest, TheNewerAssignmentCountsWhateverComesFirst) {
  StartNodes({kFirst, kSecond});
  const pb::Assignment older = assignment_;
  Move(1, kFirst);
  for (auto& logic : logic_) logic->Replace(1, 2);
  scheduler_->AnswerRegister(kSecond, assignment_);
  scheduler_->Assign(kFirst, assignment_);  // overtakes the answer to REGISTER
  ASSERT_TRUE(Until([&] { return scheduler_->all_answered(); }));
  scheduler_->AnswerRegister(kFirst, older);
  scheduler_->Assign(kFirst, older);        // late
  scheduler_->Assign(kFirst, assignment_);  // twice
  ASSERT_TRUE(Until([&] { return scheduler_->all_answered(); }));
  EXPECT_THAT(RanksOf(kFirst), ElementsAre(0, 1, 2));
  EXPECT_THAT(RanksOf(kSecond), IsEmpty());
  ExpectGoodEnd();
}

TEST_F(WorkerNodeTest, AWorkerThatHasFinishedFinishesAgainElsewhere) {
  Begin({kFirst, kSecond});
  ASSERT_TRUE(Until([&] { return scheduler_->finished.size() == kWorkers; }));
  nodes_[kFirst]->env.Kill();
  scheduler_->finished.erase(0);
  scheduler_->finished.erase(2);
  Move(0, kSecond);
  Move(2, kSecond);
  AssignAll();
  ExpectGoodEnd();
}

TEST_F(WorkerNodeTest, TrainingGoesOnWhileTheSchedulerIsAway) {
  Begin({kFirst, kSecond});
  UntilStep(1, 2);
  network_.Isolate(kSchedulerNode);
  ASSERT_TRUE(Until([&] { return logic_[0]->LowestMissing(0) >= 20; }));  // all there is to do
  world_.RunUntil([] { return false; }, absl::Seconds(2));
  EXPECT_THAT(scheduler_->finished, IsEmpty());
  network_.Heal();
  ExpectGoodEnd();
  EXPECT_EQ(scheduler_->reports.size(), 5u * kWorkers);
  EXPECT_THAT(nodes_[kFirst]->log, AllOf(Contains(HasSubstr("going on without it")),
                                         Contains(HasSubstr("the scheduler is back after"))));
}

TEST_F(WorkerNodeTest, AnAssignmentThatDoesNotFitEndsTheNode) {
  StartNodes({kFirst});
  assignment_.mutable_table(0)->mutable_tensor(0)->set_shape(0, 99);
  scheduler_->AnswerRegister(kFirst, assignment_);
  ASSERT_TRUE(Until([&] { return nodes_[kFirst]->end.has_value(); }));
  EXPECT_THAT(std::string(nodes_[kFirst]->end->message()),
              HasSubstr("do all workers read the same data?"));
  EXPECT_EQ(scheduler_->failures.size(), 1u);
}

TEST_F(WorkerNodeTest, AWorkerWithoutAnIncarnationIsAnError) {
  StartNodes({kFirst});
  assignment_.mutable_worker_incarnation()->RemoveLast();
  scheduler_->AnswerRegister(kFirst, assignment_);
  ASSERT_TRUE(Until([&] { return nodes_[kFirst]->end.has_value(); }));
  EXPECT_THAT(std::string(nodes_[kFirst]->end->message()),
              HasSubstr("2 incarnations for 3 workers"));
}

}  // namespace
}  // namespace parley
