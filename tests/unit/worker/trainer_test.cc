// The trainer against servers that do nothing but what the contract says, compared bit for bit with
// the reference run.
#include "worker/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <optional>

#include "google/protobuf/text_format.h"
#include "tests/unit/worker/bsp_server.h"
#include "tests/unit/worker/fake_server.h"
#include "tools/local/local_run.h"

namespace parley {
namespace {

constexpr char kExperiment[] = R"(
  name: "test" seed: 3
  cluster { workers: 3 partition_kib: 4 max_request_kib: 8 compute_threads: 1 }
  data { synthetic { train_samples: 50 test_samples: 20 width: 24 classes: 4 } }
  model {
    layer { name: "flat" flatten {} }
    layer { name: "fc1" linear { out: 100 } }
    layer { name: "relu1" relu {} }
    layer { name: "drop1" dropout { p: 0.2 } }
    layer { name: "fc2" linear { out: 30 } }
    layer { name: "relu2" relu {} }
    layer { name: "fc3" linear { out: 4 } }
    layer { name: "out" log_softmax {} }
  }
  training { epochs: 2 global_batch: 16 eval_batch: 3 }
  optimizer { sgd { momentum: 0.9 } lr: 0.1 }
  consistency {}
)";

pb::Experiment Experiment(const std::string& more = "") {
  pb::Experiment experiment;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(kExperiment, &experiment));
  EXPECT_TRUE(google::protobuf::TextFormat::MergeFromString(more, &experiment)) << more;
  return experiment;
}

struct WorkerUnderTest {
  WorkerUnderTest(SimWorld* world, SimNetwork* network, uint32_t rank)
      : node(world, network, rank) {}
  FakeClientNode node;
  std::shared_ptr<Workload> workload;
  std::unique_ptr<PsClient> client;
  std::unique_ptr<Trainer> trainer;
  std::vector<pb::Report> reports;
  std::optional<pb::Finished> finished;
};

class TrainerTest : public ::testing::Test {
 protected:
  void Run(const pb::Experiment& experiment, uint32_t servers = 2) {
    auto model = LoadWorkload(experiment);
    ASSERT_TRUE(model.ok()) << model.status();
    const pb::TableSpec table = ModelTable(experiment, *(*model)->model);
    const DenseLayout layout = *DenseLayout::Create(table);
    ASSERT_GE(layout.partitions(), 3u);
    optimizer_ = *Optimizer::Create(experiment.optimizer());
    const uint32_t count = experiment.cluster().workers();
    for (uint32_t i = 0; i < servers; ++i) {
      logic_.push_back(std::make_unique<BspServer>(table, layout, optimizer_.get(), count));
      servers_.push_back(std::make_unique<FakeServer>(
          &world_, &network_, i,
          [logic = logic_.back().get()](FakeServer& server, NodeId from, Frame request) {
            logic->Handle(server, from, std::move(request));
          }));
    }
    const pb::Assignment assignment = AssignRoundRobin(table, layout.partitions(), servers_);
    for (uint32_t rank = 0; rank < count; ++rank) StartWorker(experiment, assignment, rank);
    ASSERT_TRUE(world_.RunUntil(
        [this] {
          return !error_.ok() || std::all_of(workers_.begin(), workers_.end(),
                                             [](const auto& w) { return w->finished.has_value(); });
        },
        absl::Minutes(10)));
    ASSERT_TRUE(error_.ok()) << error_;
  }

  void StartWorker(const pb::Experiment& experiment, const pb::Assignment& assignment,
                   uint32_t rank) {
    workers_.push_back(std::make_unique<WorkerUnderTest>(&world_, &network_, rank));
    WorkerUnderTest* worker = workers_.back().get();
    worker->workload = *LoadWorkload(experiment);
    for (const auto& server : servers_) {
      ASSERT_TRUE(worker->node.transport->Connect(server->node(), server->endpoint()).ok());
    }
    PsClient::Options options;
    options.rank = rank;
    options.incarnation = 10 + rank;
    options.max_request_bytes = uint64_t{experiment.cluster().max_request_kib()} * 1024;
    options.on_error = [this](const absl::Status& status) { error_ = status; };
    worker->client =
        *PsClient::Create(&worker->node.env, &worker->node.rpc, assignment, std::move(options));
    Trainer::Handlers handlers;
    handlers.on_report = [worker](pb::Report report) { worker->reports.push_back(report); };
    handlers.on_finished = [worker](pb::Finished finished) { worker->finished = finished; };
    handlers.on_error = [this](const absl::Status& status) { error_ = status; };
    worker->trainer =
        std::make_unique<Trainer>(&worker->node.env, worker->client.get(), worker->workload,
                                  Trainer::Options{.experiment = experiment,
                                                   .rank = rank,
                                                   .data_part = rank,
                                                   .data_parts = experiment.cluster().workers()},
                                  std::move(handlers));
    worker->trainer->Start();
  }

  // What the scheduler would make of the workers' reports must be what the reference run says.
  void ExpectReference(const pb::Experiment& experiment) {
    absl::StatusOr<LocalResult> reference = RunLocal(experiment);
    ASSERT_TRUE(reference.ok()) << reference.status();
    EXPECT_EQ(workers_[0]->finished->weights_sha256(), reference->weights_sha256);
    uint64_t steps = 0;
    for (const auto& worker : workers_) steps = std::max(steps, worker->finished->steps());
    EXPECT_EQ(steps, reference->steps);
    for (size_t e = 0; e < reference->epochs.size(); ++e) {
      const LocalEpoch& expected = reference->epochs[e];
      pb::Report sum;
      for (const auto& worker : workers_) {
        ASSERT_EQ(worker->reports.size(), reference->epochs.size());
        const pb::Report& report = worker->reports[e];
        EXPECT_EQ(report.data_epoch(), e);
        EXPECT_EQ(report.max_staleness(), 0u);
        sum.set_train_samples(sum.train_samples() + report.train_samples());
        sum.set_train_loss_sum(sum.train_loss_sum() + report.train_loss_sum());
        sum.set_test_samples(sum.test_samples() + report.test_samples());
        sum.set_test_loss_sum(sum.test_loss_sum() + report.test_loss_sum());
      }
      EXPECT_EQ(sum.train_samples(), expected.train_samples);
      EXPECT_NEAR(sum.train_loss_sum() / sum.train_samples(), expected.train_loss, 1e-6);
      if (!expected.evaluated) continue;
      EXPECT_EQ(sum.test_samples(), experiment.data().synthetic().test_samples());
      EXPECT_NEAR(sum.test_loss_sum() / sum.test_samples(), expected.test_loss, 1e-5);
    }
  }

  SimWorld world_{11};
  SimNetwork network_{&world_, {}};
  std::unique_ptr<Optimizer> optimizer_;
  std::vector<std::unique_ptr<BspServer>> logic_;
  std::vector<std::unique_ptr<FakeServer>> servers_;
  std::vector<std::unique_ptr<WorkerUnderTest>> workers_;
  absl::Status error_;
};

TEST_F(TrainerTest, ThreeWorkersGiveTheReferencesBits) {
  const pb::Experiment experiment = Experiment();
  Run(experiment);
  ExpectReference(experiment);
  // Every part of every step, once.
  EXPECT_EQ(workers_[0]->finished->pushes_acked(),
            8u * workers_[0]->client->dense(kModelTable)->layout().partitions());
  EXPECT_TRUE(workers_[1]->finished->weights_sha256().empty());
}

TEST_F(TrainerTest, WithAndWithoutPushPullTheBitsAreTheSame) {
  const pb::Experiment experiment = Experiment("cluster { push_pull: false }");
  Run(experiment);
  ExpectReference(experiment);
  EXPECT_EQ(logic_[0]->fused(), 0u);
}

TEST_F(TrainerTest, PushesBringTheNextWeightsExceptAtAnEpochsEnd) {
  const pb::Experiment experiment = Experiment("cluster { max_request_kib: 4 }");
  Run(experiment);
  ExpectReference(experiment);
  // One partition a message: three of four steps an epoch, two epochs, three workers.
  const uint64_t partitions = workers_[0]->client->dense(kModelTable)->layout().partitions();
  EXPECT_EQ(logic_[0]->fused() + logic_[1]->fused(), partitions * 3 * 2 * 3);
}

TEST_F(TrainerTest, AWorkerWithoutRowsPushesEmptySteps) {
  // The last step of an epoch has 2 samples for 3 workers.
  const pb::Experiment experiment = Experiment("training { global_batch: 24 }");
  Run(experiment, 1);
  ExpectReference(experiment);
  EXPECT_GT(logic_[0]->empty_pushes(), 0u);
}

TEST_F(TrainerTest, MaxStepsEndsInTheMiddleOfAnEpochAndStillReports) {
  const pb::Experiment experiment = Experiment("training { max_steps: 6 }");
  Run(experiment);
  ExpectReference(experiment);
  EXPECT_EQ(workers_[0]->finished->steps(), 6u);
  EXPECT_EQ(workers_[0]->reports.size(), 2u);
  EXPECT_EQ(workers_[0]->reports[1].tick(), 6u);
}

TEST_F(TrainerTest, DealtDataWithUnevenPartsEnds) {
  // 50 samples over 3 workers in batches of 1: two have 17 ticks an epoch, one has 16.
  const pb::Experiment experiment =
      Experiment("data { sharding: BY_WORKER } training { global_batch: 3 evaluate: false }");
  Run(experiment);
  ExpectReference(experiment);
  EXPECT_EQ(workers_[0]->finished->steps(), 34u);
  EXPECT_EQ(workers_[2]->finished->steps(), 32u);
}

TEST_F(TrainerTest, WithoutEvaluationReportsHaveNoTestValues) {
  const pb::Experiment experiment = Experiment("training { evaluate: false }");
  Run(experiment);
  ExpectReference(experiment);
  EXPECT_EQ(workers_[1]->reports[0].test_samples(), 0u);
}

TEST_F(TrainerTest, AFullPassOverTheTrainingSetIfAskedFor) {
  const pb::Experiment experiment = Experiment("training { evaluate_train: true }");
  Run(experiment);
  ExpectReference(experiment);
}

TEST_F(TrainerTest, ReorderedMessagesChangeNoBit) {
  network_.SetOptions({.max_delay = absl::Milliseconds(20)});
  const pb::Experiment experiment = Experiment();
  Run(experiment);
  ExpectReference(experiment);
}

}  // namespace
}  // namespace parley
