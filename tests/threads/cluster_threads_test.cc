// The whole cluster in one process, but for real: an event loop and a thread for every node,
// computing off the loop, ZeroMQ between them. What ThreadSanitizer looks at; and the weights must
// be those of the simulation.
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "ps/base/loop_env.h"
#include "ps/net/zmq_transport.h"
#include "ps/server/server_node.h"
#include "scheduler/scheduler_node.h"
#include "tests/sim/cluster.h"
#include "worker/worker_node.h"

namespace parley {
namespace {

class Quiet : public RunObserver {
 public:
  void OnStart(const std::string&, const pb::Experiment&) override {}
  void OnEvent(const std::string&) override {}
  void OnProgress(const RunProgress&) override {}
  void OnEpoch(const EpochMetrics&) override {}
  void OnFinish(const RunSummary& summary) override { summary_ = summary; }
  const RunSummary& summary() const { return summary_; }  // after the scheduler's thread has ended

 private:
  RunSummary summary_;
};

// One node on a loop and a thread of its own.
class Place {
 public:
  Place(NodeId self, const std::string& bind, int offload_threads)
      : env_({.offload_threads = offload_threads}) {
    ZmqTransport::Options options;
    options.self = self;
    options.bind = bind;
    absl::StatusOr<std::unique_ptr<ZmqTransport>> transport =
        ZmqTransport::Create(&env_, std::move(options));
    EXPECT_TRUE(transport.ok()) << transport.status();
    if (transport.ok()) transport_ = *std::move(transport);
  }
  ~Place() { Join(); }

  Env* env() { return &env_; }
  Transport* transport() { return transport_.get(); }
  auto Done() {
    return [this](absl::Status status) {
      status_ = std::move(status);
      env_.Stop();
    };
  }
  template <typename Node>
  void Run(std::shared_ptr<Node> node) {
    thread_ = std::thread([this, node = std::move(node)]() mutable {
      node->Start();
      env_.Run();
      node.reset();
    });
  }
  const absl::Status& Join() {
    if (thread_.joinable()) thread_.join();
    return status_;
  }

 private:
  LoopEnv env_;
  std::unique_ptr<ZmqTransport> transport_;
  absl::Status status_ = absl::UnknownError("it did not end");
  std::thread thread_;
};

void ExpectTheWeightsOfTheSimulation(const std::string& changes) {
  SimRun sim;
  sim.experiment = TinyExperiment(changes);
  const SimOutcome simulated = RunCluster(sim);
  ASSERT_TRUE(simulated.scheduler.ok()) << simulated.scheduler;

  Quiet observer;
  std::vector<std::unique_ptr<Place>> places;
  const auto add = [&](NodeId self, const std::string& bind, int offload_threads) {
    places.push_back(std::make_unique<Place>(self, bind, offload_threads));
    return places.back().get();
  };
  Place* scheduler = add(kSchedulerNode, "tcp://127.0.0.1:0", 0);
  ASSERT_NE(scheduler->transport(), nullptr);
  const std::string endpoint = scheduler->transport()->endpoint();
  SchedulerNode::Options scheduler_options;
  scheduler_options.job = "threads";
  scheduler_options.experiment = sim.experiment;
  scheduler->Run(std::make_shared<SchedulerNode>(scheduler->env(), scheduler->transport(),
                                                 std::move(scheduler_options), &observer,
                                                 scheduler->Done()));
  for (uint32_t shard = 0; shard < 2; ++shard) {
    Place* place = add(NodeId{100 + shard}, "tcp://127.0.0.1:0", 0);
    ServerNode::Options options;
    options.scheduler = endpoint;
    options.node_name = "server";
    options.process = 7;
    options.shard = shard;
    place->Run(std::make_shared<ServerNode>(place->env(), place->transport(), std::move(options),
                                            place->Done()));
  }
  for (uint32_t rank = 0; rank < 2; ++rank) {
    Place* place = add(NodeId{200 + rank}, "", 1);
    WorkerNode::Options options;
    options.scheduler = endpoint;
    options.node_name = "worker";
    options.wanted_rank = rank;
    place->Run(std::make_shared<WorkerNode>(place->env(), place->transport(), std::move(options),
                                            place->Done()));
  }
  for (const auto& place : places) EXPECT_TRUE(place->Join().ok()) << place->Join();
  EXPECT_TRUE(observer.summary().ok) << observer.summary().reason;
  EXPECT_GT(observer.summary().pushes_applied, 0u);
  EXPECT_EQ(observer.summary().weights_sha256, simulated.summary.weights_sha256);
  ASSERT_EQ(observer.summary().tables.size(), simulated.summary.tables.size());
  for (size_t i = 0; i < simulated.summary.tables.size(); ++i) {
    EXPECT_EQ(observer.summary().tables[i].digest, simulated.summary.tables[i].digest);
  }
}

TEST(ClusterOfThreads, TrainsToTheWeightsOfTheSimulation) {
  ExpectTheWeightsOfTheSimulation(
      "cluster { servers: 1 shards_per_server: 2 } training { epochs: 2 }");
}

// Keys are read ahead on one thread while the loop pushes those of the step before.
TEST(ClusterOfThreads, TrainsSparseRowsToThoseOfTheSimulation) {
  ExpectTheWeightsOfTheSimulation(
      "cluster { servers: 1 shards_per_server: 2 } training { epochs: 2 }"
      "data { synthetic_clicks { train_samples: 300 test_samples: 40 fields: 6 } }"
      "model { layer { embedding { dim: 4 partitions: 4 compression { push: 'int8' pull: 'bf16' } "
      "} }"
      "        layer { linear { out: 30 } } layer { relu {} } layer { linear { out: 2 } }"
      "        layer { log_softmax {} } }"
      "compression { push: 'top_k' pull: 'one_bit' }");
}

}  // namespace
}  // namespace parley
