// How often a payload byte is copied between a worker and a server: a client and a real shard, each
// on a loop and a thread of its own, over each path. Holds ARCHITECTURE.md, "Copies of a payload
// byte", to the counters of ps/base/payload_copy.h.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
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
#include "ps/base/shared_arenas.h"
#include "ps/base/sparse_layout.h"
#include "ps/net/path_transport.h"
#include "ps/net/rpc.h"
#include "ps/server/server_node.h"
#include "worker/client/ps_client.h"

namespace parley {
namespace {

constexpr uint64_t kJob = 5;
constexpr NodeId kServer{100}, kWorker{200};
constexpr uint64_t kFloat = sizeof(float), kKey = sizeof(uint64_t);

// A loop with a thread, memory that can be lent, and a transport.
class Seat {
 public:
  Seat(NodeId self, const std::string& bind) {
    PathTransport::Options options;
    options.self = self;
    options.bind = bind;
    options.arenas = arenas_;
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
  LoopEnv* env() { return &env_; }
  Transport* transport() { return transport_.get(); }
  BufferPool* pool() { return &pool_; }

 private:
  LoopEnv env_{{.offload_threads = 0}};
  const std::shared_ptr<SharedArenas> arenas_ = std::make_shared<SharedArenas>();
  BufferPool pool_{size_t{64} << 20, arenas_};
  std::unique_ptr<PathTransport> transport_;  // goes before the env
  std::thread thread_;
};

class PayloadCopiesTest : public ::testing::TestWithParam<const char*> {
 protected:
  using Done = std::function<void()>;

  bool shm() const { return GetParam() == std::string("shm"); }
  // What holds over shared memory alone.
  uint64_t IfShm(uint64_t bytes) const { return shm() ? bytes : 0; }

  pb::TableSpec* AddTable() {
    pb::TableSpec* table = assignment_.add_table();
    table->set_id(static_cast<uint32_t>(assignment_.table_size()));
    table->set_name("table");
    table->mutable_optimizer()->mutable_sgd();
    table->mutable_optimizer()->set_lr(1);
    return table;
  }
  pb::TableSpec* AddDense(uint32_t elements, uint32_t per_partition) {
    pb::TableSpec* table = AddTable();
    table->set_partition_elements(per_partition);
    table->add_tensor()->add_shape(elements);
    table->mutable_tensor(0)->set_name("w");
    return table;
  }
  void AddSparse(uint32_t dim) {
    pb::SparseSpec* sparse = AddTable()->mutable_sparse();
    sparse->set_dim(dim);
    sparse->set_partitions(1);
    sparse->set_init(pb::TensorSpec::ZERO);
  }

  pb::Cluster::WorkerLoss worker_loss_ = pb::Cluster::REPLACE;

  void Start(pb::Consistency::Mode mode) {
    const std::string bind = shm() ? "shm://" : "tcp://127.0.0.1:0";
    scheduler_ = std::make_unique<Seat>(kSchedulerNode, bind);
    server_ = std::make_unique<Seat>(kServer, bind);
    worker_ = std::make_unique<Seat>(kWorker, "");
    const std::string endpoint = server_->transport()->endpoint();
    Assign(endpoint);
    scheduler_->Do([&] { StartScheduler(mode); });
    server_->Do([&] {
      ServerNode::Options options;
      options.scheduler = scheduler_->transport()->endpoint();
      options.node_name = "server";
      options.process = 1;
      options.pool = server_->pool();
      node_ = std::make_unique<ServerNode>(
          server_->env(), server_->transport(), std::move(options),
          [](const absl::Status& status) { EXPECT_TRUE(status.ok()) << status; });
      node_->Start();
    });
    ASSERT_EQ(assigned_.get_future().wait_for(std::chrono::seconds(60)), std::future_status::ready);
    worker_->Do([&] {
      rpc_ = std::make_unique<Rpc>(worker_->env(), worker_->transport());
      rpc_->SetIdentity(kJob, 10, 0);
      EXPECT_TRUE(worker_->transport()->Connect(kServer, endpoint).ok());
      PsClient::Options options;
      options.incarnation = 10;
      options.pool = worker_->pool();
      options.on_error = [](const absl::Status& status) { ADD_FAILURE() << status; };
      auto client = PsClient::Create(worker_->env(), rpc_.get(), assignment_, std::move(options));
      EXPECT_TRUE(client.ok()) << client.status();
      client_ = *std::move(client);
    });
  }

  ~PayloadCopiesTest() override {
    if (worker_ != nullptr) {
      worker_->Do([this] {
        client_.reset();
        rpc_.reset();
      });
    }
    if (server_ != nullptr) server_->Do([this] { node_.reset(); });
    if (scheduler_ != nullptr) scheduler_->Do([this] { scheduler_rpc_.reset(); });
  }

  // The bytes copied, here and there, from the call of `task` on the worker's loop until it says
  // that it is done.
  uint64_t CopiedBy(const std::function<void(Done)>& task) {
    const uint64_t before = CountPayloadCopies().bytes;
    auto done = std::make_shared<std::promise<void>>();
    worker_->Do([&] { task([done] { done->set_value(); }); });
    EXPECT_EQ(done->get_future().wait_for(std::chrono::seconds(60)), std::future_status::ready);
    return CountPayloadCopies().bytes - before;
  }

  uint64_t PushDense(uint32_t table, uint64_t tick) {
    return CopiedBy([=, this](Done done) {
      DenseTable* dense = client_->dense(table);
      dense->Push(tick, 1, AllOf(*dense), Gradients(*dense));
      client_->WhenAllAcknowledged(done);
    });
  }
  uint64_t PullDense(uint32_t table, uint64_t tick) {
    return CopiedBy([=, this](Done done) {
      DenseTable* dense = client_->dense(table);
      parameters_.assign(dense->layout().elements(), 0);
      dense->Pull(
          tick, parameters_.data(), [](auto) {}, [done](const PullResult&) { done(); });
    });
  }
  uint64_t PushPullDense(uint32_t table, uint64_t tick) {
    return CopiedBy([=, this](Done done) {
      DenseTable* dense = client_->dense(table);
      dense->BeginPull(
          tick + 1, parameters_.data(), [](auto) {}, [done](const PullResult&) { done(); });
      dense->PushPull(tick, 1, AllOf(*dense), Gradients(*dense));
    });
  }
  uint64_t PushRows(uint32_t table, uint64_t tick, const std::vector<uint64_t>& keys) {
    return CopiedBy([=, this](Done done) {
      SparseTable* sparse = client_->sparse(table);
      const std::vector<float> gradients(keys.size() * sparse->dim(), 1);
      sparse->Push(tick, 1, keys, gradients.data(), done);
    });
  }
  uint64_t PullRows(uint32_t table, uint64_t tick, const std::vector<uint64_t>& keys) {
    return CopiedBy([&, this](Done done) {
      SparseTable* sparse = client_->sparse(table);
      parameters_.assign(keys.size() * sparse->dim(), 0);
      sparse->Pull(tick, keys, parameters_.data(), [done](const PullResult&) { done(); });
    });
  }

  static std::vector<uint64_t> Keys(uint64_t first, size_t count) {
    std::vector<uint64_t> keys(count);
    std::iota(keys.begin(), keys.end(), first);
    return keys;
  }

  std::unique_ptr<PsClient> client_;
  std::vector<float> parameters_;

 private:
  static std::vector<uint32_t> AllOf(const DenseTable& table) {
    std::vector<uint32_t> all(table.layout().partitions());
    std::iota(all.begin(), all.end(), 0);
    return all;
  }
  Buffer Gradients(const DenseTable& table) {
    Buffer gradients = worker_->pool()->Allocate(table.layout().elements() * sizeof(float));
    std::fill_n(gradients.mutable_floats(), table.layout().elements(), 1.0f);
    return gradients;
  }

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
    assignment_.add_worker_incarnation(10);
    assignment_.add_worker_node(Value(kWorker));
  }

  // Admits whoever asks, and gives the server its tables.
  void StartScheduler(pb::Consistency::Mode mode) {
    scheduler_rpc_ = std::make_unique<Rpc>(scheduler_->env(), scheduler_->transport());
    Rpc* rpc = scheduler_rpc_.get();
    rpc->SetIdentity(kJob, 1, 0);
    rpc->Handle(pb::HELLO, [this, rpc, mode](NodeId from, const Frame& request) {
      pb::Welcome welcome;
      welcome.set_incarnation(1);
      welcome.set_job_id(kJob);
      welcome.mutable_experiment()->mutable_consistency()->set_mode(mode);
      welcome.mutable_experiment()->mutable_cluster()->set_worker_loss(worker_loss_);
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

  pb::Assignment assignment_;
  bool asked_ = false;  // the server, on the scheduler's loop
  std::promise<void> assigned_;
  std::unique_ptr<Seat> scheduler_, server_, worker_;
  std::unique_ptr<Rpc> scheduler_rpc_, rpc_;
  std::unique_ptr<ServerNode> node_;
};

TEST_P(PayloadCopiesTest, ADensePushIsNotCopiedAndAPullOnce) {
  constexpr uint64_t kBytes = (64 << 10) * kFloat;
  AddDense(kBytes / kFloat, kBytes / kFloat / 4);
  Start(pb::Consistency::BSP);
  EXPECT_EQ(PullDense(1, 0), kBytes);
  for (uint64_t tick = 0; tick < 3; ++tick) {
    EXPECT_EQ(PushDense(1, 2 * tick), 0u);
    EXPECT_EQ(PullDense(1, 2 * tick + 1), kBytes);
    EXPECT_EQ(PushPullDense(1, 2 * tick + 1), kBytes);
    const float steps = 2 * static_cast<float>(tick) + 2;
    EXPECT_EQ(parameters_.back(), -steps);
  }
}

TEST_P(PayloadCopiesTest, SmallPayloadTakesTwoMoreWhereTheyAreCheaperThanLending) {
  constexpr uint64_t kTiny = 100 * kFloat, kSmall = 1024 * kFloat;
  AddDense(kTiny / kFloat, kTiny / kFloat);
  AddDense(kSmall / kFloat, kSmall / kFloat);
  Start(pb::Consistency::BSP);
  // Over tcp a message of up to 512 bytes is copied into libzmq's own.
  EXPECT_EQ(PushDense(1, 0), shm() ? 2 * kTiny : kTiny);
  EXPECT_EQ(PullDense(1, 1), shm() ? 3 * kTiny : 2 * kTiny);
  EXPECT_EQ(PushDense(2, 0), IfShm(2 * kSmall));
  EXPECT_EQ(PullDense(2, 1), kSmall + IfShm(2 * kSmall));
}

TEST_P(PayloadCopiesTest, EncodingTakesThePlaceOfACopyAndIsReadFromPrivateMemory) {
  constexpr uint64_t kElements = 64 << 10, kEncoded = kElements * 2;
  pb::TableSpec* table = AddDense(kElements, kElements / 4);
  table->mutable_compression()->set_push("fp16");
  table->mutable_compression()->set_pull("fp16");
  Start(pb::Consistency::BSP);
  EXPECT_EQ(PushDense(1, 0), IfShm(kEncoded));
  EXPECT_EQ(PullDense(1, 1), IfShm(kEncoded));
  EXPECT_EQ(parameters_.back(), -1);
}

TEST_P(PayloadCopiesTest, RowsAreGatheredAndScatteredOnce) {
  constexpr uint64_t kCount = 3000, kDim = 16;
  constexpr uint64_t kKeys = kCount * kKey, kRows = kCount * kDim * kFloat;
  AddSparse(kDim);
  worker_loss_ = pb::Cluster::FAIL;
  Start(pb::Consistency::BSP);
  const std::vector<uint64_t> keys = Keys(0, kCount), others = Keys(kCount, kCount);
  // Gathered behind its keys; the shard remembers these, and makes what holds them its own.
  EXPECT_EQ(PushRows(1, 0, keys), kKeys + kRows + kKeys + IfShm(kKeys + kRows));
  // The list travels as its digest from now on.
  EXPECT_EQ(PullRows(1, 1, keys), kRows);
  EXPECT_EQ(PushRows(1, 1, keys), kKeys + kRows);
  // Keys alone.
  EXPECT_EQ(PullRows(1, 2, others), kKeys + kRows + IfShm(kKeys));
  EXPECT_EQ(PullRows(1, 2, keys), kRows);
  EXPECT_EQ(parameters_.back(), -2);
}

// For a worker that computes the step again: which rows these were.
TEST_P(PayloadCopiesTest, WhatAStepOverwritesIsKeptWithItsKeys) {
  constexpr uint64_t kCount = 3000, kDim = 16;
  constexpr uint64_t kKeys = kCount * kKey, kRows = kCount * kDim * kFloat;
  AddSparse(kDim);
  Start(pb::Consistency::BSP);
  const std::vector<uint64_t> keys = Keys(0, kCount);
  EXPECT_EQ(PushRows(1, 0, keys), kKeys + kRows + kKeys + IfShm(kKeys + kRows) + kKeys);
  EXPECT_EQ(PushRows(1, 1, keys), kKeys + kRows + kKeys);
  EXPECT_EQ(PullRows(1, 2, keys), kRows);
  EXPECT_EQ(parameters_.back(), -2);
}

TEST_P(PayloadCopiesTest, UpdatesAreCopiedIntoTheirBatchAndFromThereIntoAMessage) {
  constexpr uint64_t kCount = 100, kDim = 16, kBytes = kCount * (kKey + kDim * kFloat);
  AddSparse(kDim);
  Start(pb::Consistency::ASP);
  const uint64_t copied = CopiedBy([&](const Done& done) {
    const std::vector<float> gradient(kDim, 1);
    for (uint64_t key = 0; key < kCount; ++key) {
      client_->sparse(1)->Update(absl::MakeConstSpan(&key, 1), gradient.data(), nullptr);
    }
    client_->WhenAllAcknowledged(done);
  });
  EXPECT_EQ(copied, 2 * kBytes + IfShm(2 * kBytes));
}

INSTANTIATE_TEST_SUITE_P(Paths, PayloadCopiesTest, ::testing::Values("tcp", "shm"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace parley
