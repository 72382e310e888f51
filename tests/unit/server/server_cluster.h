// Several server shards on a simulated network, with a scheduler that gives them whatever map a
// test makes, and workers that send them whatever it says.
#ifndef PARLEY_TESTS_UNIT_SERVER_SERVER_CLUSTER_H_
#define PARLEY_TESTS_UNIT_SERVER_SERVER_CLUSTER_H_

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "ps/base/sim_file_system.h"
#include "ps/server/partition_places.h"
#include "tests/unit/server/server_harness.h"

namespace parley {

class ServerCluster {
 public:
  static constexpr uint64_t kJob = 5;
  static constexpr uint32_t kTable = 4;
  static constexpr uint64_t kFirstServer = 100, kFirstWorker = 200;

  explicit ServerCluster(uint32_t workers = 2) : files(1), network(&world, {}) {
    scheduler = std::make_unique<Node>(&world, &network, kSchedulerNode, "sim://scheduler");
    scheduler->rpc.SetIdentity(kJob, 1, 0);
    scheduler->rpc.Handle(pb::HELLO, [this](NodeId from, Frame request) {
      pb::Welcome welcome;
      welcome.set_rank(static_cast<uint32_t>(Value(from) - kFirstServer));
      welcome.set_incarnation(1);
      welcome.set_job("test");
      welcome.set_job_id(kJob);
      *welcome.mutable_experiment() = experiment;
      Frame answer;
      answer.header.set_body(welcome.SerializeAsString());
      scheduler->rpc.Reply(from, request.header, std::move(answer));
    });
    scheduler->rpc.Handle(pb::HEARTBEAT, [this](NodeId from, Frame request) {
      scheduler->rpc.Reply(from, request.header, Frame());
    });
    scheduler->rpc.Handle(pb::BACKUP_NEWS, [this](NodeId from, Frame request) {
      if (!takes_news) return;
      EXPECT_TRUE(news.emplace_back().ParseFromString(request.header.body()));
      if (news_answer.ok()) {
        scheduler->rpc.Reply(from, request.header, Frame());
      } else {
        scheduler->rpc.ReplyError(from, request.header, news_answer);
      }
    });
    for (uint32_t rank = 0; rank < workers; ++rank) AddWorker(rank, 10 + rank);
  }

  // A further worker node, for `rank`; the first ones are nodes 200 + rank.
  size_t AddWorker(uint32_t rank, uint32_t incarnation) {
    workers.push_back(
        std::make_unique<Node>(&world, &network, NodeId{kFirstWorker + workers.size()}, ""));
    workers.back()->rpc.SetIdentity(kJob, incarnation, rank);
    for (size_t i = 0; i < servers.size(); ++i) Connect(*workers.back(), i);
    return workers.size() - 1;
  }

  // A dense table of `partitions` of 4 weights that begin at 0, by SGD with lr 1.
  pb::TableSpec* AddDense(uint32_t partitions = 1) {
    pb::TableSpec* table = AddTable("model");
    table->add_tensor()->add_shape(4 * partitions);
    table->set_partition_elements(4);
    return table;
  }
  // Rows of 2 that begin at 0, in one partition.
  pb::TableSpec* AddSparse() {
    pb::TableSpec* table = AddTable("rows");
    table->mutable_sparse()->set_dim(2);
    table->mutable_sparse()->set_partitions(1);
    table->mutable_sparse()->set_init(pb::TensorSpec::ZERO);
    return table;
  }

  size_t AddServer() {
    const size_t index = servers.size();
    auto server =
        std::make_unique<Server>(&world, &network, NodeId{kFirstServer + index}, Endpoint(index));
    ServerNode::Options options;
    options.scheduler = "sim://scheduler";
    options.node_name = absl::StrCat("server ", index);
    options.process = index + 1;
    options.files = &files;
    options.log = [this, index](const std::string& line) {
      log.push_back(absl::StrCat(index, ": ", line));
    };
    server->shard =
        std::make_unique<ServerNode>(&server->env, server->transport.get(), std::move(options),
                                     [this](absl::Status status) { ended = status; });
    server->shard->Start();
    servers.push_back(std::move(server));
    EXPECT_TRUE(scheduler->transport->Connect(NodeId{kFirstServer + index}, Endpoint(index)).ok());
    for (const auto& worker : workers) Connect(*worker, index);
    Run(absl::Milliseconds(100));
    return index;
  }

  // A map: partition p of the only table belongs to owners[p], with workers as they were made.
  pb::Assignment Map(uint64_t epoch, const std::vector<uint32_t>& owners) const {
    pb::Assignment assignment;
    assignment.mutable_map()->set_epoch(epoch);
    for (size_t i = 0; i < servers.size(); ++i) {
      pb::ShardAddress* shard = assignment.mutable_map()->add_shard();
      shard->set_node(kFirstServer + i);
      shard->set_server_rank(static_cast<uint32_t>(i));
      shard->set_endpoint(Endpoint(i));
    }
    *assignment.add_table() = table;
    pb::TableMap* map = assignment.mutable_map()->add_table();
    map->set_table(kTable);
    for (uint32_t owner : owners) map->add_owner(owner);
    for (uint32_t rank = 0; rank < ranks; ++rank) {
      assignment.add_worker_incarnation(10 + rank);
      assignment.add_worker_node(kFirstWorker + rank);
    }
    return assignment;
  }
  static void AddBackup(pb::Assignment* assignment, uint32_t partition, uint32_t server,
                        bool synced) {
    pb::Backup* backup = assignment->mutable_map()->mutable_table(0)->add_backup();
    backup->set_partition(partition);
    backup->set_shard(server);
    backup->set_synced(synced);
  }

  absl::StatusOr<pb::Assigned> Assign(size_t server, const pb::Assignment& assignment) {
    Frame assign;
    assign.header.set_kind(pb::ASSIGN);
    assign.header.set_body(assignment.SerializeAsString());
    absl::StatusOr<Frame> answer = Ask(*scheduler, server, std::move(assign), absl::Seconds(60));
    if (!answer.ok()) return answer.status();
    pb::Assigned assigned;
    EXPECT_TRUE(assigned.ParseFromString(answer->header.body()));
    return assigned;
  }
  void AssignTo(const std::vector<size_t>& to, const pb::Assignment& assignment) {
    for (size_t server : to) {
      const absl::Status status = Assign(server, assignment).status();
      ASSERT_TRUE(status.ok()) << "server " << server << ": " << status;
    }
  }

  absl::StatusOr<Frame> AskAs(size_t worker, size_t server, Request request,
                              absl::Duration patience = absl::Seconds(5)) {
    return Ask(*workers[worker], server, std::move(request.frame()), patience);
  }
  using Later = std::optional<absl::StatusOr<Frame>>;
  void AskLater(size_t worker, size_t server, Request request, Later* answer) {
    Start(*workers[worker], server, std::move(request.frame()), absl::Minutes(10), answer);
  }
  void AskLater(size_t server, Frame frame, Later* answer) {  // the scheduler
    Start(*scheduler, server, std::move(frame), absl::Minutes(10), answer);
  }
  void Run(absl::Duration time) {
    world.RunUntil([] { return false; }, time);
  }
  bool RunUntil(const std::function<bool()>& done) {
    return world.RunUntil(done, absl::Minutes(1));
  }
  void Kill(size_t server) { servers[server]->env.Kill(); }

  pb::ServerCounts Count(size_t server) {
    Frame count;
    count.header.set_kind(pb::COUNT);
    absl::StatusOr<Frame> answer = Ask(*scheduler, server, std::move(count));
    pb::ServerCounts counts;
    EXPECT_TRUE(answer.ok() && counts.ParseFromString(answer->header.body())) << answer.status();
    return counts;
  }
  // Whether so many copies were said to be complete so far.
  bool RunUntilNews(size_t count, pb::BackupNews::What what = pb::BackupNews::SYNCED) {
    return RunUntil([&] {
      size_t seen = 0;
      for (const pb::BackupNews& item : news) seen += item.what() == what;
      return seen >= count;
    });
  }

  struct Node {
    Node(SimWorld* world, SimNetwork* network, NodeId id, const std::string& endpoint)
        : env(world, absl::StrCat("node ", Value(id))),
          transport(network->CreateTransport(&env, id, endpoint)),
          rpc(&env, transport.get()) {}
    SimEnv env;
    std::unique_ptr<Transport> transport;
    Rpc rpc;
  };
  struct Server {
    Server(SimWorld* world, SimNetwork* network, NodeId id, const std::string& endpoint)
        : env(world, absl::StrCat("server ", Value(id))),
          transport(network->CreateTransport(&env, id, endpoint)) {}
    SimEnv env;
    std::unique_ptr<Transport> transport;
    std::unique_ptr<ServerNode> shard;
  };
  static std::string Endpoint(size_t server) { return absl::StrCat("sim://server", server); }

  pb::Experiment experiment;
  pb::TableSpec table;
  uint32_t ranks = 2;
  SimFileSystem files;
  std::vector<std::string> log;
  std::vector<pb::BackupNews> news;
  bool takes_news = true;             // the scheduler is there
  absl::Status news_answer;           // what it says to them
  std::optional<absl::Status> ended;  // why a shard did
  SimWorld world{1};
  SimNetwork network;
  std::unique_ptr<Node> scheduler;
  std::vector<std::unique_ptr<Node>> workers;
  std::vector<std::unique_ptr<Server>> servers;

 private:
  pb::TableSpec* AddTable(const std::string& name) {
    table.set_id(kTable);
    table.set_name(name);
    table.mutable_optimizer()->mutable_sgd();
    table.mutable_optimizer()->set_lr(1);
    table.mutable_optimizer()->mutable_schedule()->mutable_constant();
    return &table;
  }
  static void Connect(Node& node, size_t server) {
    EXPECT_TRUE(node.transport->Connect(NodeId{kFirstServer + server}, Endpoint(server)).ok());
  }
  void Start(Node& node, size_t server, Frame frame, absl::Duration patience, Later* answer) {
    node.rpc.Call(NodeId{kFirstServer + server}, std::move(frame),
                  {.deadline = patience, .what = "the request"},
                  [answer](absl::StatusOr<Frame> got) { answer->emplace(std::move(got)); });
  }
  absl::StatusOr<Frame> Ask(Node& node, size_t server, Frame frame,
                            absl::Duration patience = absl::Seconds(5)) {
    Later answer;
    Start(node, server, std::move(frame), patience, &answer);
    world.RunUntil([&] { return answer.has_value(); }, patience * 2);
    return *std::move(answer);
  }
};

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_SERVER_SERVER_CLUSTER_H_
