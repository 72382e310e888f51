// A trainer that takes the place of another: nobody can tell from the weights, nor from any push.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "google/protobuf/text_format.h"
#include "tests/unit/worker/bsp_server.h"
#include "tests/unit/worker/fake_server.h"
#include "tools/local/local_run.h"
#include "worker/trainer.h"

namespace parley {
namespace {

using ::testing::ElementsAre;

// 4 steps an epoch, 12 in all; the last of an epoch has 2 samples for 3 workers.
constexpr char kExperiment[] = R"(
  name: "test" seed: 3
  cluster { workers: 3 partition_kib: 4 max_request_kib: 8 compute_threads: 1 }
  data { synthetic { train_samples: 50 test_samples: 20 width: 24 classes: 4 } }
  model {
    layer { name: "fc1" linear { out: 100 } }
    layer { name: "relu1" relu {} }
    layer { name: "drop1" dropout { p: 0.2 } }
    layer { name: "fc2" linear { out: 30 } }
    layer { name: "fc3" linear { out: 4 } }
    layer { name: "out" log_softmax {} }
  }
  training { epochs: 3 global_batch: 16 eval_batch: 3 }
  optimizer { sgd { momentum: 0.9 } lr: 0.1 }
  consistency {}
)";
constexpr uint64_t kSteps = 12;
constexpr uint32_t kWorkers = 3, kServers = 2;

pb::Experiment Experiment(const std::string& more = "") {
  pb::Experiment experiment;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(kExperiment, &experiment));
  EXPECT_TRUE(google::protobuf::TextFormat::MergeFromString(more, &experiment)) << more;
  return experiment;
}

struct Places {
  uint64_t first = 0, start = 0, skip_below = 0;
};

class Cluster {
 public:
  explicit Cluster(const pb::Experiment& experiment, uint64_t seed = 11)
      : experiment_(experiment), world_(seed) {
    loaded_ = *LoadWorkload(experiment);
    const pb::TableSpec table = ModelTable(experiment, *loaded_->model);
    const DenseLayout layout = *DenseLayout::Create(table);
    optimizer_ = *Optimizer::Create(experiment.optimizer());
    for (uint32_t i = 0; i < kServers; ++i) {
      logic_.push_back(std::make_unique<BspServer>(table, layout, optimizer_.get(), kWorkers));
      servers_.push_back(std::make_unique<FakeServer>(
          &world_, &network_, i,
          [logic = logic_.back().get()](FakeServer& server, NodeId from, Frame request) {
            logic->Handle(server, from, std::move(request));
          }));
    }
    partitions_ = layout.partitions();
    assignment_ = AssignRoundRobin(table, partitions_, servers_);
  }

  void StartAll() {
    for (uint32_t rank = 0; rank < kWorkers; ++rank) Start(rank, 1, {});
  }

  void Start(uint32_t rank, uint32_t incarnation, const Places& places) {
    auto worker = std::make_unique<Worker>(&world_, &network_, next_node_++);
    worker->node.rpc.SetIdentity(1, incarnation, rank);
    for (const auto& server : servers_) {
      ASSERT_TRUE(worker->node.transport->Connect(server->node(), server->endpoint()).ok());
    }
    PsClient::Options options;
    options.rank = rank;
    options.incarnation = incarnation;
    options.max_request_bytes = uint64_t{experiment_.cluster().max_request_kib()} * 1024;
    options.on_error = [this](const absl::Status& status) { error_ = status; };
    worker->client =
        *PsClient::Create(&worker->node.env, &worker->node.rpc, assignment_, std::move(options));
    Trainer::Handlers handlers;
    handlers.on_report = [this](pb::Report report) { reports_.push_back(report); };
    handlers.on_finished = [this, rank](pb::Finished finished) { finished_[rank] = finished; };
    handlers.on_error = [this](const absl::Status& status) { error_ = status; };
    worker->trainer = std::make_unique<Trainer>(&worker->node.env, worker->client.get(),
                                                *BuildWorkload(experiment_, loaded_->data),
                                                Trainer::Options{.experiment = experiment_,
                                                                 .rank = rank,
                                                                 .data_part = rank,
                                                                 .data_parts = kWorkers,
                                                                 .first_tick = places.first,
                                                                 .start_tick = places.start,
                                                                 .skip_below = places.skip_below},
                                                std::move(handlers));
    worker->trainer->Start();
    workers_[rank] = std::move(worker);
  }

  // Its trainer and client go in the middle of whatever they are about. Its node lives on, so that
  // what is off the loop comes back to nobody.
  void Drop(uint32_t rank) {
    workers_[rank]->trainer.reset();
    workers_[rank]->client.reset();
    dropped_.push_back(std::move(workers_[rank]));
    ++incarnations_[rank];
    for (auto& logic : logic_) logic->Replace(rank, incarnation(rank));
  }
  uint32_t incarnation(uint32_t rank) const { return incarnations_.at(rank) + 1; }
  uint64_t LowestMissing(uint32_t rank) const {
    return std::min(logic_[0]->LowestMissing(rank), logic_[1]->LowestMissing(rank));
  }
  uint64_t HighestMissing(uint32_t rank) const {
    return std::max(logic_[0]->HighestMissing(rank), logic_[1]->HighestMissing(rank));
  }

  void Run(absl::Duration time) {
    world_.RunUntil([] { return false; }, time);
  }
  void Finish() {
    ASSERT_TRUE(world_.RunUntil([this] { return !error_.ok() || finished_.size() == kWorkers; },
                                absl::Minutes(10)));
    ASSERT_TRUE(error_.ok()) << error_;
  }
  void Replay(const PushHistory& history, uint64_t tick) {
    for (uint32_t i = 0; i < kServers; ++i) {
      std::set<uint32_t> partitions;
      for (uint32_t p = i; p < partitions_; p += kServers) partitions.insert(p);
      logic_[i]->Replay(history, tick, partitions);
    }
  }

  PushHistory History() const {
    PushHistory history = logic_[0]->history();
    history.insert(logic_[1]->history().begin(), logic_[1]->history().end());
    return history;
  }
  // By epoch: the ranks that have reported it.
  std::map<uint32_t, std::set<uint32_t>> Reported() const {
    std::map<uint32_t, std::set<uint32_t>> reported;
    for (const pb::Report& report : reports_) reported[report.data_epoch()].insert(report.rank());
    return reported;
  }

  struct Worker {
    Worker(SimWorld* world, SimNetwork* network, uint32_t number) : node(world, network, number) {}
    FakeClientNode node;
    std::unique_ptr<PsClient> client;
    std::unique_ptr<Trainer> trainer;
  };

  const pb::Experiment experiment_;
  SimWorld world_;
  SimNetwork network_{&world_, {}};
  std::unique_ptr<Workload> loaded_;
  std::unique_ptr<Optimizer> optimizer_;
  uint32_t partitions_ = 0;
  std::vector<std::unique_ptr<BspServer>> logic_;
  std::vector<std::unique_ptr<FakeServer>> servers_;
  pb::Assignment assignment_;
  uint32_t next_node_ = 0;
  std::map<uint32_t, std::unique_ptr<Worker>> workers_;
  std::vector<std::unique_ptr<Worker>> dropped_;
  std::map<uint32_t, uint32_t> incarnations_;
  std::vector<pb::Report> reports_;
  std::map<uint32_t, pb::Finished> finished_;
  absl::Status error_;
};

struct CleanRun {
  explicit CleanRun(const pb::Experiment& experiment) : cluster(experiment) {
    cluster.StartAll();
    cluster.Finish();
    history = cluster.History();
    took = cluster.world_.Now();
  }
  std::string Hash() const { return cluster.finished_.at(0).weights_sha256(); }
  Cluster cluster;
  PushHistory history;
  absl::Duration took;
};

// Every moment of a run is some worker's last, in one of these.
void ReplaceAtManyMoments(const std::string& more) {
  const pb::Experiment experiment = Experiment(more);
  const CleanRun clean(experiment);
  EXPECT_EQ(clean.Hash(), RunLocal(experiment)->weights_sha256);
  uint64_t again = 0, mid_epoch = 0;
  constexpr int kMoments = 60;
  for (int moment = 0; moment < kMoments; ++moment) {
    SCOPED_TRACE(moment);
    Cluster cluster(experiment);
    cluster.StartAll();
    cluster.Run(clean.took * moment / kMoments);
    const uint32_t rank = static_cast<uint32_t>(moment) % kWorkers;
    cluster.Drop(rank);
    cluster.finished_.erase(rank);
    cluster.Run(absl::Milliseconds(moment % 7));
    const uint64_t start = cluster.LowestMissing(rank);
    EXPECT_LE(cluster.HighestMissing(rank), start + 1);
    if (start % 4 != 0) ++mid_epoch;
    cluster.Start(rank, cluster.incarnation(rank), {.start = start});
    cluster.Finish();
    EXPECT_EQ(cluster.finished_.at(0).weights_sha256(), clean.Hash());
    EXPECT_TRUE(cluster.History() == clean.history);
    for (const auto& [worker, finished] : cluster.finished_) EXPECT_EQ(finished.steps(), kSteps);
    // No epoch goes without a report of the worker, whenever it was replaced.
    const std::map<uint32_t, std::set<uint32_t>> reported = cluster.Reported();
    for (uint32_t epoch = 0; epoch < 3; ++epoch) {
      EXPECT_THAT(reported.at(epoch), ElementsAre(0, 1, 2)) << "epoch " << epoch;
    }
    again += cluster.logic_[0]->again() + cluster.logic_[1]->again();
  }
  EXPECT_GT(again, 0u);
  EXPECT_GT(mid_epoch, 20u);
}

TEST(ReplacedWorkerTest, AtAnyMomentTheBitsAreThoseOfACleanRun) { ReplaceAtManyMoments(""); }

TEST(ReplacedWorkerTest, AndWithoutPushPull) {
  ReplaceAtManyMoments("cluster { push_pull: false }");
}

TEST(ReplacedWorkerTest, AndWithoutEvaluation) {
  ReplaceAtManyMoments("training { evaluate: false }");
}

// All workers begin in the middle of an epoch, at one's end, and before and behind the last step,
// as if they came from a checkpoint.
TEST(ReplacedWorkerTest, AGenerationBeginsAnywhereWithTheSamePushes) {
  const pb::Experiment experiment = Experiment();
  const CleanRun clean(experiment);
  for (uint64_t first : {1, 3, 4, 6, 8, 11, 12}) {
    SCOPED_TRACE(first);
    Cluster cluster(experiment);
    cluster.Replay(clean.history, first);
    for (uint32_t rank = 0; rank < kWorkers; ++rank) {
      cluster.Start(rank, 1, {.first = first, .start = first});
    }
    cluster.Finish();
    PushHistory expected = clean.history;
    std::erase_if(expected, [&](const auto& push) { return std::get<1>(push.first) < first; });
    EXPECT_TRUE(cluster.History() == expected);
    EXPECT_EQ(cluster.finished_.at(0).weights_sha256(), clean.Hash());
    // Of the epoch in which it begins it reports what it has; of those before, nothing.
    uint64_t samples = 0;
    for (const pb::Report& report : cluster.reports_) {
      EXPECT_GE(report.data_epoch(), first / 4);
      EXPECT_EQ(report.test_samples() > 0, true);
      samples += report.train_samples();
    }
    const uint64_t begun[4] = {0, 16, 32, 48};
    EXPECT_EQ(samples, 50 * (3 - first / 4) - begun[first % 4]);
    EXPECT_EQ(cluster.Reported().size(), 3 - first / 4);
  }
}

TEST(ReplacedWorkerTest, WhatIsSkippedIsPushedEmptyAndNotRead) {
  const pb::Experiment experiment = Experiment();
  for (uint64_t skip_below : {3, 4, 6, 12, 20}) {
    SCOPED_TRACE(skip_below);
    Cluster cluster(experiment);
    // What is skipped leaves all at once, and the scripted servers want it in order.
    cluster.network_.SetOptions(
        {.min_delay = absl::Milliseconds(1), .max_delay = absl::Milliseconds(1)});
    cluster.StartAll();
    // The others stand still at its first step.
    cluster.network_.Isolate(NodeId{201});
    cluster.Run(absl::Milliseconds(100));
    cluster.network_.Heal();
    const uint32_t rank = 1;
    cluster.Drop(rank);
    ASSERT_EQ(cluster.LowestMissing(rank), 0u);
    cluster.Start(rank, cluster.incarnation(rank), {.start = 0, .skip_below = skip_below});
    cluster.Finish();
    for (const auto& [key, push] : cluster.History()) {
      const auto [worker, tick, partition] = key;
      const bool no_rows = tick % 4 == 3 && worker == 2;  // 2 samples for 3 workers
      EXPECT_EQ(push.first == 0, no_rows || (worker == rank && tick < skip_below))
          << "worker " << worker << ", step " << tick;
    }
    EXPECT_EQ(cluster.History().size(), kSteps * kWorkers * cluster.partitions_);
    for (const auto& server : cluster.servers_) {
      for (const pb::FrameHeader& header : server->requests) {
        if (header.rank() != rank || header.incarnation() != cluster.incarnation(rank)) continue;
        if (header.kind() == pb::PUSH_PULL) {
          EXPECT_GE(header.tick(), skip_below);
        }
        // But where an epoch ends it is evaluated.
        if (header.kind() == pb::PULL && header.tick() < skip_below) {
          EXPECT_EQ(header.tick() % 4, 0u);
          EXPECT_GT(header.tick(), 0u);
        }
      }
    }
    EXPECT_EQ(cluster.finished_.at(rank).steps(), kSteps);
  }
}

// Its node died when all was done: the new one finds nothing to do, and says so again.
TEST(ReplacedWorkerTest, AFinishedWorkerFinishesAgain) {
  const pb::Experiment experiment = Experiment();
  for (uint64_t start : {kSteps, kSteps + 5}) {
    Cluster cluster(experiment);
    cluster.StartAll();
    cluster.Finish();
    const pb::Finished before = cluster.finished_.at(0);
    const size_t reports = cluster.reports_.size(), pushes = cluster.History().size();
    cluster.Drop(0);
    cluster.finished_.erase(0);
    cluster.Start(0, cluster.incarnation(0), {.start = start});
    cluster.Finish();
    EXPECT_EQ(cluster.finished_.at(0).weights_sha256(), before.weights_sha256());
    EXPECT_EQ(cluster.finished_.at(0).steps(), kSteps);
    EXPECT_EQ(cluster.finished_.at(0).pushes_acked(), 0u);
    EXPECT_EQ(cluster.History().size(), pushes);
    // The last epoch, which its predecessor may have died in.
    ASSERT_EQ(cluster.reports_.size(), reports + 1);
    EXPECT_EQ(cluster.reports_.back().data_epoch(), 2u);
    EXPECT_EQ(cluster.reports_.back().train_samples(), 0u);
    EXPECT_EQ(cluster.reports_.back().test_samples(), 7u);
  }
}

// With a part of the data for each, workers have numbers of steps of their own.
TEST(ReplacedWorkerTest, DealtDataEndsAtTheWorkersOwnLastStep) {
  const pb::Experiment experiment = Experiment(
      "data { sharding: BY_WORKER } training { global_batch: 3 epochs: 2 evaluate: false }");
  const CleanRun clean(experiment);
  ASSERT_EQ(clean.cluster.finished_.at(2).steps(), 32u);
  for (uint64_t milliseconds : {5, 40, 90, 140, 1000}) {
    SCOPED_TRACE(milliseconds);
    Cluster cluster(experiment);
    cluster.StartAll();
    cluster.Run(absl::Milliseconds(milliseconds));
    cluster.Drop(2);
    cluster.finished_.erase(2);
    cluster.Start(2, cluster.incarnation(2), {.start = cluster.LowestMissing(2)});
    cluster.Finish();
    EXPECT_EQ(cluster.finished_.at(2).steps(), 32u);
    EXPECT_TRUE(cluster.History() == clean.history);
    EXPECT_EQ(cluster.finished_.at(0).weights_sha256(), clean.Hash());
  }
}

}  // namespace
}  // namespace parley
