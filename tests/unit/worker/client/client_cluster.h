// Clients on real server shards over the simulated network, with a scheduler that only hands out
// the assignment: what travels is what a job's nodes would send each other.
#ifndef PARLEY_TESTS_UNIT_WORKER_CLIENT_CLIENT_CLUSTER_H_
#define PARLEY_TESTS_UNIT_WORKER_CLIENT_CLIENT_CLUSTER_H_

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/cluster.pb.h"
#include "ps/base/sim_env.h"
#include "ps/base/sparse_layout.h"
#include "ps/net/rpc.h"
#include "ps/net/sim_network.h"
#include "ps/server/server_node.h"
#include "worker/client/ps_client.h"

namespace parley {

class ClientCluster {
 public:
  static constexpr uint64_t kJob = 5;

  explicit ClientCluster(pb::Consistency::Mode mode) {
    experiment.mutable_consistency()->set_mode(mode);
  }

  // Before Start: updated by SGD with lr 1, from zero.
  pb::TableSpec* AddTable(uint32_t id) {
    pb::TableSpec& table = tables.emplace_back();
    table.set_id(id);
    table.set_name(absl::StrCat("table", id));
    table.set_seed(3);
    table.mutable_optimizer()->mutable_sgd();
    table.mutable_optimizer()->set_lr(1);
    return &table;
  }
  pb::TableSpec* AddSparse(uint32_t id, uint32_t dim, uint32_t partitions) {
    pb::TableSpec* table = AddTable(id);
    table->mutable_sparse()->set_dim(dim);
    table->mutable_sparse()->set_partitions(partitions);
    table->mutable_sparse()->set_init(pb::TensorSpec::ZERO);
    return table;
  }
  pb::TableSpec* AddDense(uint32_t id, uint32_t elements, uint32_t per_partition) {
    pb::TableSpec* table = AddTable(id);
    table->set_partition_elements(per_partition);
    pb::TensorSpec* tensor = table->add_tensor();
    tensor->set_name("w");
    tensor->add_shape(elements);
    return table;
  }

  void Start(uint32_t servers, uint32_t workers) {
    scheduler_ = std::make_unique<Node>(&world, &network, kSchedulerNode, "sim://scheduler");
    scheduler_->rpc.SetIdentity(kJob, 1, 0);
    scheduler_->rpc.Handle(pb::HELLO, [this](NodeId from, Frame request) {
      pb::Welcome welcome;
      welcome.set_incarnation(1);
      welcome.set_job_id(kJob);
      *welcome.mutable_experiment() = experiment;
      Frame answer;
      answer.header.set_body(welcome.SerializeAsString());
      scheduler_->rpc.Reply(from, request.header, std::move(answer));
    });
    scheduler_->rpc.Handle(pb::HEARTBEAT, [this](NodeId from, Frame request) {
      scheduler_->rpc.Reply(from, request.header, Frame());
    });
    const pb::Assignment assignment = Assign(servers, workers);
    for (uint32_t s = 0; s < servers; ++s) StartServer(s, assignment);
    for (uint32_t w = 0; w < workers; ++w) StartWorker(w, servers, assignment);
  }

  bool Run(const std::function<bool()>& until, absl::Duration limit = absl::Minutes(5)) {
    return world.RunUntil([&] { return until() || !error.ok(); }, limit) && error.ok();
  }
  PsClient& client(uint32_t worker) { return *clients_[worker]; }

  pb::Experiment experiment;
  std::vector<pb::TableSpec> tables;
  uint64_t max_request_bytes = 256;
  size_t key_cache_bytes = KeyCache::kMaxBytes;
  SimWorld world{7};
  SimNetwork network{&world, {}};
  absl::Status error;  // the first of any client

 private:
  struct Node {
    Node(SimWorld* world, SimNetwork* network, NodeId id, const std::string& endpoint)
        : env(world, absl::StrCat("node ", Value(id))),
          transport(network->CreateTransport(&env, id, endpoint)),
          rpc(&env, transport.get()) {}
    SimEnv env;
    std::unique_ptr<Transport> transport;
    Rpc rpc;
  };
  static std::string Endpoint(uint32_t server) { return absl::StrCat("sim://server", server); }

  pb::Assignment Assign(uint32_t servers, uint32_t workers) const {
    pb::Assignment assignment;
    assignment.mutable_map()->set_epoch(1);
    for (uint32_t s = 0; s < servers; ++s) {
      pb::ShardAddress* shard = assignment.mutable_map()->add_shard();
      shard->set_node(100 + s);
      shard->set_server_rank(s);
      shard->set_endpoint(Endpoint(s));
    }
    for (const pb::TableSpec& table : tables) {
      *assignment.add_table() = table;
      pb::TableMap* owners = assignment.mutable_map()->add_table();
      owners->set_table(table.id());
      for (uint32_t p = 0; p < *TablePartitions(table); ++p) owners->add_owner(p % servers);
    }
    for (uint32_t w = 0; w < workers; ++w) {
      assignment.add_worker_incarnation(10 + w);
      assignment.add_worker_node(200 + w);
    }
    return assignment;
  }

  void StartServer(uint32_t index, const pb::Assignment& assignment) {
    servers_.push_back(
        std::make_unique<Node>(&world, &network, NodeId{100 + index}, Endpoint(index)));
    ServerNode::Options options;
    options.scheduler = "sim://scheduler";
    options.node_name = Endpoint(index);
    options.process = 1 + index;
    options.key_cache_bytes = key_cache_bytes;
    server_nodes_.push_back(std::make_unique<ServerNode>(&servers_.back()->env,
                                                         servers_.back()->transport.get(),
                                                         std::move(options), [](absl::Status) {}));
    server_nodes_.back()->Start();
    ASSERT_TRUE(scheduler_->transport->Connect(NodeId{100 + index}, Endpoint(index)).ok());
    Frame assign;
    assign.header.set_kind(pb::ASSIGN);
    assign.header.set_body(assignment.SerializeAsString());
    bool assigned = false;
    scheduler_->rpc.Call(NodeId{100 + index}, std::move(assign), {},
                         [&assigned](absl::StatusOr<Frame> answer) {
                           EXPECT_TRUE(answer.ok()) << answer.status();
                           assigned = true;
                         });
    ASSERT_TRUE(world.RunUntil([&assigned] { return assigned; }, absl::Minutes(2)));
  }

  void StartWorker(uint32_t rank, uint32_t servers, const pb::Assignment& assignment) {
    workers_.push_back(std::make_unique<Node>(&world, &network, NodeId{200 + rank}, ""));
    Node& node = *workers_.back();
    node.rpc.SetIdentity(kJob, 10 + rank, rank);
    for (uint32_t s = 0; s < servers; ++s) {
      ASSERT_TRUE(node.transport->Connect(NodeId{100 + s}, Endpoint(s)).ok());
    }
    PsClient::Options options;
    options.rank = rank;
    options.incarnation = 10 + rank;
    options.max_request_bytes = max_request_bytes;
    options.on_error = [this](const absl::Status& status) { error.Update(status); };
    auto client = PsClient::Create(&node.env, &node.rpc, assignment, std::move(options));
    ASSERT_TRUE(client.ok()) << client.status();
    clients_.push_back(*std::move(client));
  }

  std::unique_ptr<Node> scheduler_;
  std::vector<std::unique_ptr<Node>> servers_, workers_;
  std::vector<std::unique_ptr<ServerNode>> server_nodes_;
  std::vector<std::unique_ptr<PsClient>> clients_;
};

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_WORKER_CLIENT_CLIENT_CLUSTER_H_
