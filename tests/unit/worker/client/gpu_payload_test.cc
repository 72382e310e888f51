// Tables in a GPU's memory, end to end: workers push gradients from their GPU's memory and pull
// weights into it, over shared memory, from a real shard that updates there. Each on a loop and a
// thread of its own, with a guarded simulated GPU: whoever touches payload on the CPU dies.
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <future>
#include <latch>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "proto/cluster.pb.h"
#include "ps/base/loop_env.h"
#include "ps/base/payload_copy.h"
#include "ps/base/sparse_layout.h"
#include "ps/gpu/gpu_mover.h"
#include "ps/gpu/simulated_gpu.h"
#include "ps/net/path_transport.h"
#include "ps/net/rpc.h"
#include "ps/server/server_node.h"
#include "tests/unit/table/table_testing.h"
#include "worker/client/ps_client.h"

namespace parley {
namespace {

constexpr uint64_t kJob = 5;
constexpr NodeId kServer{100};
constexpr NodeId kWorkers[] = {NodeId{200}, NodeId{201}};
constexpr size_t kMiB = size_t{1} << 20;
constexpr char kOptimizer[] = "lr: 0.1 clip_norm: 0.5 sgd { momentum: 0.9 }";

// A loop with a thread, a GPU, and a transport that lends its memory.
class Seat {
 public:
  Seat(NodeId self, const std::string& bind, uint64_t seed) {
    auto gpu = memory_.Open([seed]() -> absl::StatusOr<std::unique_ptr<Gpu>> {
      return CreateSimulatedGpu({.seed = seed, .guard = true});
    });
    EXPECT_TRUE(gpu.ok()) << gpu.status();
    gpu_ = *gpu;
    stream_ = *gpu_->NewStream();
    PathTransport::Options options;
    options.self = self;
    options.bind = bind;
    options.device_arenas = memory_.arenas();
    options.device_mapper = memory_.arenas();
    auto made = PathTransport::Create(&env_, std::move(options));
    EXPECT_TRUE(made.ok()) << made.status();
    transport_ = *std::move(made);
    thread_ = std::thread([this] { env_.Run(); });
  }
  ~Seat() {
    env_.Stop();
    thread_.join();
  }

  // On the loop, waited for.
  void Do(const std::function<void()>& task) {
    std::latch done(1);
    env_.Post([&] {
      task();
      done.count_down();
    });
    done.wait();
  }
  Buffer OnDevice(const std::vector<float>& values) {
    Buffer buffer = memory_.pool()->Allocate(values.size() * sizeof(float));
    EXPECT_TRUE(stream_->CopyIn(buffer.mutable_data(), values.data(), buffer.size()).ok());
    EXPECT_TRUE(stream_->Sync().ok());
    return buffer;
  }
  std::vector<float> Read(const Buffer& buffer) {
    std::vector<float> values(buffer.num_floats());
    EXPECT_TRUE(stream_->CopyOut(values.data(), buffer.data(), buffer.size()).ok());
    EXPECT_TRUE(stream_->Sync().ok());
    return values;
  }
  LoopEnv* env() { return &env_; }
  Transport* transport() { return transport_.get(); }
  GpuMemory* memory() { return &memory_; }
  std::shared_ptr<Gpu> gpu() { return gpu_; }

 private:
  GpuMemory memory_{std::make_shared<DeviceArenas>(
      Arenas::Options{.arena_bytes = 2 * kMiB, .max_bytes = 64 * kMiB})};
  std::shared_ptr<Gpu> gpu_;
  std::unique_ptr<GpuStream> stream_;  // the test's
  LoopEnv env_{{.offload_threads = 0}};
  std::unique_ptr<PathTransport> transport_;  // goes before the env
  std::thread thread_;
};

class GpuPayloadTest : public ::testing::Test {
 protected:
  struct Worker {
    std::unique_ptr<Seat> seat;
    std::unique_ptr<GpuMover> mover;
    std::unique_ptr<Rpc> rpc;
    std::unique_ptr<PsClient> client;
    std::promise<absl::Status> error;
  };

  void AddTable(uint32_t elements, uint32_t per_partition) {
    pb::TableSpec* table = assignment_.add_table();
    table->set_id(static_cast<uint32_t>(assignment_.table_size()));
    table->set_name("table");
    *table->mutable_optimizer() = ParseOptimizer(kOptimizer);
    table->set_partition_elements(per_partition);
    table->add_tensor()->add_shape(elements);
    table->mutable_tensor(0)->set_name("w");
    table->mutable_compute()->set_placement(pb::Compute::GPU);
    table->mutable_compute()->set_device(pb::Compute::CUDA_SIMULATED);
  }

  void Start(bool movers = true) {
    scheduler_ = std::make_unique<Seat>(kSchedulerNode, "shm://", 1);
    server_ = std::make_unique<Seat>(kServer, "shm://", 2);
    const std::string endpoint = server_->transport()->endpoint();
    Assign(endpoint);
    scheduler_->Do([&] { StartScheduler(); });
    server_->Do([&] {
      ServerNode::Options options;
      options.scheduler = scheduler_->transport()->endpoint();
      options.node_name = "server";
      options.process = 1;
      options.make_gpu_place = [this](pb::Compute::Device device) {
        return MakeGpuPlace(server_->memory(), device);
      };
      node_ = std::make_unique<ServerNode>(
          server_->env(), server_->transport(), std::move(options),
          [](const absl::Status& status) { EXPECT_TRUE(status.ok()) << status; });
      node_->Start();
    });
    ASSERT_EQ(assigned_.get_future().wait_for(std::chrono::seconds(60)), std::future_status::ready);
    for (uint32_t rank = 0; rank < 2; ++rank) StartWorker(rank, endpoint, movers);
  }

  void StartWorker(uint32_t rank, const std::string& endpoint, bool mover) {
    Worker& worker = workers_[rank];
    worker.seat = std::make_unique<Seat>(kWorkers[rank], "", 3 + rank);
    worker.seat->Do([&] {
      Seat& seat = *worker.seat;
      worker.rpc = std::make_unique<Rpc>(seat.env(), seat.transport());
      worker.rpc->SetIdentity(kJob, 10, rank);
      EXPECT_TRUE(seat.transport()->Connect(kServer, endpoint).ok());
      worker.mover = std::make_unique<GpuMover>(seat.memory()->arenas(), *seat.gpu()->NewStream());
      PsClient::Options options;
      options.rank = rank;
      options.incarnation = 10;
      if (mover) options.mover = worker.mover.get();
      options.on_error = [&worker](const absl::Status& status) { worker.error.set_value(status); };
      auto client = PsClient::Create(seat.env(), worker.rpc.get(), assignment_, std::move(options));
      EXPECT_TRUE(client.ok()) << client.status();
      worker.client = *std::move(client);
    });
  }

  ~GpuPayloadTest() override {
    for (Worker& worker : workers_) {
      if (worker.seat == nullptr) continue;
      worker.seat->Do([&] {
        worker.client.reset();
        worker.rpc.reset();
        worker.mover.reset();
      });
    }
    if (server_ != nullptr) server_->Do([this] { node_.reset(); });
    if (scheduler_ != nullptr) scheduler_->Do([this] { scheduler_rpc_.reset(); });
  }

  // Starts a pull of `tick` on the worker's loop; `before` comes first, there.
  std::future<void> Pull(Worker& worker, uint32_t table, uint64_t tick, float* parameters) {
    auto done = std::make_shared<std::promise<void>>();
    worker.seat->Do([&] {
      worker.client->dense(table)->Pull(
          tick, parameters, [](auto) {}, [done](const PullResult&) { done->set_value(); });
    });
    return done->get_future();
  }
  std::future<void> PushPull(Worker& worker, uint32_t table, uint64_t tick, const Buffer& gradients,
                             float* parameters) {
    auto done = std::make_shared<std::promise<void>>();
    worker.seat->Do([&] {
      DenseTable* dense = worker.client->dense(table);
      std::vector<uint32_t> all(dense->layout().partitions());
      std::iota(all.begin(), all.end(), 0);
      dense->BeginPull(
          tick + 1, parameters, [](auto) {}, [done](const PullResult&) { done->set_value(); });
      dense->PushPull(tick, 1 + tick, all, gradients);
    });
    return done->get_future();
  }
  static void Await(const std::future<void>& done) {
    ASSERT_EQ(done.wait_for(std::chrono::seconds(60)), std::future_status::ready);
  }

  Worker workers_[2];

 private:
  void Assign(const std::string& endpoint) {
    assignment_.mutable_map()->set_epoch(1);
    pb::ShardAddress* shard = assignment_.mutable_map()->add_shard();
    shard->set_node(Value(kServer));
    shard->set_endpoint(endpoint);
    for (const pb::TableSpec& table : assignment_.table()) {
      pb::TableMap* owners = assignment_.mutable_map()->add_table();
      owners->set_table(table.id());
      for (uint32_t p = 0; p < *TablePartitions(table); ++p) owners->add_owner(0);
    }
    for (const NodeId worker : kWorkers) {
      assignment_.add_worker_incarnation(10);
      assignment_.add_worker_node(Value(worker));
    }
  }

  // Admits whoever asks, and gives the server its tables.
  void StartScheduler() {
    scheduler_rpc_ = std::make_unique<Rpc>(scheduler_->env(), scheduler_->transport());
    Rpc* rpc = scheduler_rpc_.get();
    rpc->SetIdentity(kJob, 1, 0);
    rpc->Handle(pb::HELLO, [this, rpc](NodeId from, const Frame& request) {
      pb::Welcome welcome;
      welcome.set_incarnation(1);
      welcome.set_job_id(kJob);
      welcome.mutable_experiment()->mutable_consistency()->set_mode(pb::Consistency::BSP);
      Frame answer;
      answer.header.set_body(welcome.SerializeAsString());
      rpc->Reply(from, request.header, std::move(answer));
      if (std::exchange(asked_, true)) return;  // it is on its way
      Frame assign;
      assign.header.set_kind(pb::ASSIGN);
      assign.header.set_body(assignment_.SerializeAsString());
      rpc->Call(from, std::move(assign), {}, [this](const absl::StatusOr<Frame>& given) {
        EXPECT_TRUE(given.ok()) << given.status();
        assigned_.set_value();
      });
    });
    rpc->Handle(pb::HEARTBEAT, [rpc](NodeId from, const Frame& request) {
      rpc->Reply(from, request.header, Frame());
    });
  }

  std::unique_ptr<Seat> scheduler_, server_;
  std::unique_ptr<Rpc> scheduler_rpc_;
  std::unique_ptr<ServerNode> node_;
  pb::Assignment assignment_;
  std::promise<void> assigned_;
  bool asked_ = false;
};

// What the CPU makes of the same gradients; one partition after the other does not show, but for
// the norm, which is of all: so this is one partition's.
struct Model {
  explicit Model(size_t n) : optimizer(MakeOptimizer(kOptimizer)), state(*optimizer, Zeros(n)) {}
  static std::vector<float> Zeros(size_t n) { return std::vector<float>(n, 0.0f); }
  void Step(uint64_t tick, const std::vector<std::vector<float>>& gradients) {
    const std::vector<const float*> pointers = {gradients[0].data(), gradients[1].data()};
    StepInfo info;
    info.step = tick;
    info.update = tick + 1;
    info.inverse_weight = 1.0 / static_cast<double>(2 * (1 + tick));
    const double squares =
        Optimizer::SumOfSquares(state.weights.size(), pointers, info.inverse_weight);
    info.norm_scale = optimizer->NormScale(squares);
    state.Apply(*optimizer, pointers, info);
  }
  std::unique_ptr<Optimizer> optimizer;
  TrainedState state;
};

TEST_F(GpuPayloadTest, StepsNeverTouchTheHostAndGiveTheBitsOfTheCpu) {
  // The second is smaller than what would be lent of host memory.
  const size_t kElements[] = {100'000, 100};
  for (const size_t n : kElements) AddTable(static_cast<uint32_t>(n), static_cast<uint32_t>(n));
  Start();
  for (uint32_t table = 1; table <= 2; ++table) {
    const size_t n = kElements[table - 1];
    Model model(n);
    std::vector<Buffer> parameters;
    for (Worker& worker : workers_) {
      parameters.push_back(worker.seat->OnDevice(std::vector<float>(n, 7)));
      Await(Pull(worker, table, 0, parameters.back().mutable_floats()));
      ASSERT_TRUE(SameBits(worker.seat->Read(parameters.back()), model.state.weights));
    }
    for (uint64_t tick = 0; tick < 4; ++tick) {
      const std::vector<std::vector<float>> values = {RandomVector(10 * table + 2 * tick, n),
                                                      RandomVector(10 * table + 2 * tick + 1, n)};
      const uint64_t before = CountPayloadCopies().bytes;
      std::vector<std::future<void>> done;
      for (int w = 0; w < 2; ++w) {
        done.push_back(PushPull(workers_[w], table, tick, workers_[w].seat->OnDevice(values[w]),
                                parameters[w].mutable_floats()));
      }
      for (const std::future<void>& one : done) Await(one);
      EXPECT_EQ(CountPayloadCopies().bytes, before);
      model.Step(tick, values);
      for (int w = 0; w < 2; ++w) {
        ASSERT_TRUE(SameBits(workers_[w].seat->Read(parameters[w]), model.state.weights)) << tick;
      }
    }
    // Into host memory, as for the end of a run.
    std::vector<float> on_host(n, 7);
    Await(Pull(workers_[0], table, 4, on_host.data()));
    EXPECT_TRUE(SameBits(on_host, model.state.weights));
  }
}

TEST_F(GpuPayloadTest, GradientsMayLieInHostMemory) {
  constexpr size_t kElements = 5000;
  AddTable(kElements, kElements);
  Start();
  Model model(kElements);
  const std::vector<std::vector<float>> values = {RandomVector(1, kElements),
                                                  RandomVector(2, kElements)};
  std::vector<Buffer> parameters;
  std::vector<std::future<void>> done;
  for (int w = 0; w < 2; ++w) {
    parameters.push_back(workers_[w].seat->OnDevice(std::vector<float>(kElements, 7)));
    const std::string_view bytes(reinterpret_cast<const char*>(values[w].data()),
                                 kElements * sizeof(float));
    done.push_back(PushPull(workers_[w], 1, 0,
                            w == 0 ? Buffer::Copy(bytes) : workers_[w].seat->OnDevice(values[w]),
                            parameters[w].mutable_floats()));
  }
  for (const std::future<void>& one : done) Await(one);
  model.Step(0, values);
  for (int w = 0; w < 2; ++w) {
    EXPECT_TRUE(SameBits(workers_[w].seat->Read(parameters[w]), model.state.weights));
  }
}

TEST_F(GpuPayloadTest, AWorkerWithoutAMoverIsToldSo) {
  AddTable(5000, 5000);
  Start(/*movers=*/false);
  std::vector<float> on_host(5000);
  Pull(workers_[0], 1, 0, on_host.data());
  std::future<absl::Status> error = workers_[0].error.get_future();
  ASSERT_EQ(error.wait_for(std::chrono::seconds(60)), std::future_status::ready);
  EXPECT_NE(error.get().message().find("lie in a GPU's memory, allowed is host memory"),
            std::string::npos);
}

}  // namespace
}  // namespace parley
