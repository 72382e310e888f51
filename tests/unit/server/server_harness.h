// One server shard on a simulated network, with a scheduler that hands it its tables and workers
// that send it whatever a test says.
#ifndef PARLEY_TESTS_UNIT_SERVER_SERVER_HARNESS_H_
#define PARLEY_TESTS_UNIT_SERVER_SERVER_HARNESS_H_

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/cluster.pb.h"
#include "ps/base/sim_env.h"
#include "ps/base/sparse_layout.h"
#include "ps/net/rpc.h"
#include "ps/net/sim_network.h"
#include "ps/server/server_node.h"
#include "ps/wire/payload.h"

namespace parley {

inline Buffer KeyBuffer(const std::vector<uint64_t>& keys) {
  return Buffer::Copy({reinterpret_cast<const char*>(keys.data()), keys.size() * 8});
}
inline Buffer FloatBuffer(const std::vector<float>& values) {
  return Buffer::Copy({reinterpret_cast<const char*>(values.data()), values.size() * 4});
}
inline std::vector<float> FloatsOf(const Buffer& buffer) {
  std::vector<float> values(buffer.num_floats());
  std::memcpy(values.data(), buffer.data(), values.size() * sizeof(float));
  return values;
}
// The first `count` keys from `from` on whose hash is of this partition of `partitions`.
inline std::vector<uint64_t> KeysOf(uint32_t partition, int bits, size_t count, uint64_t from = 1) {
  std::vector<uint64_t> keys;
  for (uint64_t key = from; keys.size() < count; ++key) {
    const uint64_t hash = KeyHash(key);
    if ((bits == 0 ? 0 : hash >> (64 - bits)) == partition) keys.push_back(key);
  }
  return keys;
}

// A message to the shard, made part by part.
class Request {
 public:
  Request(pb::Kind kind, uint32_t table) {
    frame_.header.set_kind(kind);
    frame_.header.set_table(table);
    frame_.header.set_epoch(1);
  }
  Request& Tick(uint64_t tick) {
    frame_.header.set_tick(tick);
    return *this;
  }
  Request& PullTick(uint64_t tick) {
    frame_.header.set_pull_tick(tick);
    return *this;
  }
  Request& Weight(double weight) {
    frame_.header.set_weight(weight);
    return *this;
  }
  Request& Part(uint32_t partition, uint64_t sequence = 0) {
    pb::Part* part = frame_.header.add_part();
    part->set_partition(partition);
    if (sequence > 0) part->set_sequence(sequence);
    return *this;
  }
  // Of the part added last.
  Request& Keys(const std::vector<uint64_t>& keys) {
    last().set_keys(static_cast<uint32_t>(keys.size()));
    last().set_key_bytes(keys.size() * 8);
    if (!keys.empty()) frame_.payload.push_back(KeyBuffer(keys));
    return *this;
  }
  Request& Digest(const std::vector<uint64_t>& of) {
    const auto digest = KeyDigest(KeyBuffer(of).view());
    last().set_keys(static_cast<uint32_t>(of.size()));
    last().set_key_digest(std::string(digest.data(), digest.size()));
    return *this;
  }
  Request& Values(const std::vector<float>& values) {
    last().set_count(values.size());
    if (!values.empty()) frame_.payload.push_back(FloatBuffer(values));
    return *this;
  }
  Request& Encoded(const std::string& bytes, uint64_t count) {
    last().set_count(count);
    last().set_value_bytes(bytes.size());
    if (!bytes.empty()) frame_.payload.push_back(Buffer::Copy(bytes));
    return *this;
  }
  Request& Base(uint64_t version) {
    last().set_base_version(version);
    return *this;
  }
  pb::Part& last() { return *frame_.header.mutable_part(frame_.header.part_size() - 1); }
  pb::FrameHeader& header() { return frame_.header; }
  Frame& frame() { return frame_; }

 private:
  Frame frame_;
};

class ServerHarness {
 public:
  static constexpr uint64_t kJob = 5;
  static constexpr uint32_t kSparse = 3, kDense = 4;  // tables

  // `memory`: where weights and answers are made.
  explicit ServerHarness(uint32_t workers = 2, std::shared_ptr<MemorySource> memory = nullptr)
      : pool(/*max_cached_bytes=*/0, std::move(memory)), network_(&world_, {}) {
    scheduler_ = std::make_unique<Node>(&world_, &network_, kSchedulerNode, "sim://scheduler");
    scheduler_->rpc.SetIdentity(kJob, 1, 0);
    scheduler_->rpc.Handle(pb::HELLO, [this](NodeId from, Frame request) {
      pb::Welcome welcome;
      welcome.set_incarnation(1);
      welcome.set_job("test");
      welcome.set_job_id(kJob);
      *welcome.mutable_experiment() = experiment;
      Frame answer;
      answer.header.set_body(welcome.SerializeAsString());
      scheduler_->rpc.Reply(from, request.header, std::move(answer));
    });
    scheduler_->rpc.Handle(pb::HEARTBEAT, [this](NodeId from, Frame request) {
      scheduler_->rpc.Reply(from, request.header, Frame());
    });
    for (uint32_t w = 0; w < workers; ++w) {
      workers_.push_back(std::make_unique<Node>(&world_, &network_, NodeId{200 + w}, ""));
      workers_[w]->rpc.SetIdentity(kJob, 10 + w, w);
      EXPECT_TRUE(workers_[w]->transport->Connect(kServer, "sim://server").ok());
    }
  }

  // Before Start: rows of 2 that begin at 0 and are updated by SGD with lr 1.
  pb::TableSpec* AddSparse(uint32_t partitions = 2) {
    pb::TableSpec* table = AddTable(kSparse, "rows");
    table->mutable_sparse()->set_dim(2);
    table->mutable_sparse()->set_partitions(partitions);
    table->mutable_sparse()->set_init(pb::TensorSpec::ZERO);
    return table;
  }
  // `partitions` of 4 weights that begin at 0.
  pb::TableSpec* AddDense(uint32_t partitions = 1) {
    pb::TableSpec* table = AddTable(kDense, "model");
    table->add_tensor()->add_shape(4 * partitions);
    table->set_partition_elements(4);
    return table;
  }

  // Starts the shard and gives it all partitions; how it takes that.
  absl::Status Start() {
    ServerNode::Options options;
    options.scheduler = "sim://scheduler";
    options.node_name = "server";
    options.process = 1;
    options.log = [this](const std::string& line) { log.push_back(line); };
    options.pool = &pool;
    server_ = std::make_unique<Node>(&world_, &network_, kServer, "sim://server");
    node_ =
        std::make_unique<ServerNode>(&server_->env, server_->transport.get(), std::move(options),
                                     [this](absl::Status status) { ended = status; });
    node_->Start();
    pb::Assignment assignment;
    assignment.mutable_map()->set_epoch(1);
    assignment.mutable_map()->add_shard()->set_node(Value(kServer));
    for (const pb::TableSpec& table : tables) {
      *assignment.add_table() = table;
      pb::TableMap* owners = assignment.mutable_map()->add_table();
      owners->set_table(table.id());
      const absl::StatusOr<uint32_t> partitions = TablePartitions(table);
      for (uint32_t p = 0; partitions.ok() && p < *partitions; ++p) owners->add_owner(0);
    }
    for (uint32_t w = 0; w < workers_.size(); ++w) {
      assignment.add_worker_incarnation(10 + w);
      assignment.add_worker_node(200 + w);
    }
    EXPECT_TRUE(scheduler_->transport->Connect(kServer, "sim://server").ok());
    Frame assign;
    assign.header.set_kind(pb::ASSIGN);
    assign.header.set_body(assignment.SerializeAsString());
    return Ask(scheduler_.get(), std::move(assign)).status();
  }

  // The answer, or kDeadlineExceeded after `patience` with what it waits for.
  absl::StatusOr<Frame> Ask(uint32_t worker, Request request,
                            absl::Duration patience = absl::Seconds(5)) {
    return Ask(workers_[worker].get(), std::move(request.frame()), patience);
  }
  // Asks without waiting: the answer appears in *answer.
  void AskLater(uint32_t worker, Request request, std::optional<absl::StatusOr<Frame>>* answer) {
    Start(workers_[worker].get(), std::move(request.frame()), absl::Minutes(10), answer);
  }
  // Lets time pass.
  void Run(absl::Duration time) {
    world_.RunUntil([] { return false; }, time);
  }
  // Puts the same frame on the wire again, as a network or a retry might; its answer is dropped.
  // Needs the request_id that the first one got.
  void SendAgain(uint32_t worker, Request request, uint64_t request_id) {
    request.header().set_request_id(request_id);
    request.header().set_job(kJob);
    request.header().set_incarnation(10 + worker);
    request.header().set_rank(worker);
    EXPECT_TRUE(workers_[worker]->transport->Send(kServer, std::move(request.frame())).ok());
    Run(absl::Seconds(1));
  }
  // Every frame that the shard sends, from now on.
  void Watch(std::vector<pb::FrameHeader>* sent) {
    network_.SetTap([sent](NodeId from, NodeId, const Frame& frame) {
      if (from == kServer) sent->push_back(frame.header);
    });
  }

  pb::ServerCounts Count() {
    Frame count;
    count.header.set_kind(pb::COUNT);
    absl::StatusOr<Frame> answer = Ask(scheduler_.get(), std::move(count));
    pb::ServerCounts counts;
    EXPECT_TRUE(answer.ok() && counts.ParseFromString(answer->header.body())) << answer.status();
    return counts;
  }

  pb::Experiment experiment;
  std::vector<pb::TableSpec> tables;
  std::vector<std::string> log;
  std::optional<absl::Status> ended;  // why the shard did
  BufferPool pool;

 private:
  static constexpr NodeId kServer = NodeId{100};

  struct Node {
    Node(SimWorld* world, SimNetwork* network, NodeId id, const std::string& endpoint)
        : env(world, absl::StrCat("node ", Value(id))),
          transport(network->CreateTransport(&env, id, endpoint)),
          rpc(&env, transport.get()) {}
    SimEnv env;
    std::unique_ptr<Transport> transport;
    Rpc rpc;
  };

  pb::TableSpec* AddTable(uint32_t id, const std::string& name) {
    pb::TableSpec& table = tables.emplace_back();
    table.set_id(id);
    table.set_name(name);
    table.mutable_optimizer()->mutable_sgd();
    table.mutable_optimizer()->set_lr(1);
    table.mutable_optimizer()->mutable_schedule()->mutable_constant();
    return &table;
  }

  void Start(Node* node, Frame frame, absl::Duration patience,
             std::optional<absl::StatusOr<Frame>>* answer) {
    node->rpc.Call(NodeId{kServer}, std::move(frame), {.deadline = patience, .what = "the request"},
                   [answer](absl::StatusOr<Frame> got) { answer->emplace(std::move(got)); });
  }
  absl::StatusOr<Frame> Ask(Node* node, Frame frame, absl::Duration patience = absl::Seconds(5)) {
    std::optional<absl::StatusOr<Frame>> answer;
    Start(node, std::move(frame), patience, &answer);
    world_.RunUntil([&] { return answer.has_value(); }, patience * 2);
    return *std::move(answer);
  }

  SimWorld world_{1};
  SimNetwork network_;
  std::unique_ptr<Node> scheduler_, server_;
  std::vector<std::unique_ptr<Node>> workers_;
  std::unique_ptr<ServerNode> node_;
};

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_SERVER_SERVER_HARNESS_H_
