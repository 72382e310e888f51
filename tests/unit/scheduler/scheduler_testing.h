// A scheduler among scripted servers and workers, on a virtual clock and network.
#ifndef PARLEY_TESTS_UNIT_SCHEDULER_SCHEDULER_TESTING_H_
#define PARLEY_TESTS_UNIT_SCHEDULER_SCHEDULER_TESTING_H_

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "ps/base/sim_env.h"
#include "ps/base/sim_file_system.h"
#include "ps/net/rpc.h"
#include "ps/net/sim_network.h"
#include "scheduler/scheduler_node.h"

namespace parley {

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
      const bool lacks = Lacks(assignment);
      if (lacks) on_lack();
      Frame answer;
      answer.header.set_body((lacks ? lacking : missing).SerializeAsString());
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
    rpc->Call(kSchedulerNode, std::move(frame), {.deadline = absl::Minutes(5), .what = "a request"},
              std::move(then));
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
  static pb::Register Tables() {
    pb::Register tables;
    tables.set_train_samples(100);
    pb::TableSpec* table = tables.add_table();
    table->set_name("model");
    table->set_partition_elements(4);
    table->add_tensor()->add_shape(16);  // 4 partitions
    return tables;
  }
  void Register() {
    Ask(pb::REGISTER, Tables().SerializeAsString(), [this](absl::StatusOr<Frame> answer) {
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
        Say(table.table(), backup, pb::BackupNews::SYNCED, ++news_number);
      }
    }
  }
  // One thing about one copy; `answer` is how that was answered, once it is.
  void Say(uint32_t table, const pb::Backup& backup, pb::BackupNews::What what, uint64_t number,
           std::optional<absl::Status>* answer = nullptr) {
    pb::BackupNews news;
    news.set_epoch(Last().map().epoch());
    news.set_table(table);
    news.set_partition(backup.partition());
    news.set_node(Last().map().shard(backup.shard()).node());
    news.set_what(what);
    news.set_number(number);
    Ask(pb::BACKUP_NEWS, news.SerializeAsString(), [answer](absl::StatusOr<Frame> got) {
      if (answer != nullptr) *answer = got.status();
    });
  }
  const pb::Assignment& Last() const { return assigned.back(); }
  // Whether it shall be primary of what it has lost. REQUIRES: there is one table.
  bool Lacks(const pb::Assignment& assignment) const {
    if (assignment.generation() > 1) return false;
    const pb::PartitionMap& map = assignment.map();
    for (const pb::Assigned::Lack& lack : lacking.lacks()) {
      const uint32_t owner = map.table(0).owner(static_cast<int>(lack.partition()));
      if (map.shard(static_cast<int>(owner)).node() == Value(node)) return true;
    }
    return false;
  }

  const NodeId node;
  const pb::Role role;
  SimEnv env;
  std::unique_ptr<Transport> transport;
  std::unique_ptr<Rpc> rpc;
  std::vector<pb::Assignment> assigned;
  pb::Assigned missing;
  pb::Assigned lacking;  // copies of the first generation that are lost here: nobody knows it
  std::function<void()> on_lack = [] {};  // before that is said
  pb::ServerCounts counts;
  std::optional<pb::Stop> stop;
  absl::Status refused;
  uint64_t tick = 0;
  uint64_t news_number = 0;
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
  void KillScheduler() {
    scheduler_env_->Kill();
    scheduler_.reset();
    scheduler_transport_.reset();
  }
  Node* Add(pb::Role role) {
    nodes_.push_back(std::make_unique<Node>(&world_, &network_, 100 + nodes_.size(), role));
    nodes_.back()->Join();
    return nodes_.back().get();
  }
  // Servers 0 and 1, workers 2 and 3, training.
  void StartJob() {
    StartScheduler();
    Run(absl::Milliseconds(100));  // it looks into the directory of checkpoints first
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

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_SCHEDULER_SCHEDULER_TESTING_H_
