// A client, and servers between which partitions move: a naive model of what servers do. The state
// of a partition lies in one place, whoever owns it, as if it moved without a flaw; so what is seen
// here of sequences, bytes and key lists is what the client makes of a move.
#ifndef PARLEY_TESTS_UNIT_WORKER_CLIENT_MOVING_CLUSTER_H_
#define PARLEY_TESTS_UNIT_WORKER_CLIENT_MOVING_CLUSTER_H_

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "ps/base/dense_layout.h"
#include "ps/base/sparse_layout.h"
#include "ps/wire/payload.h"
#include "tests/unit/worker/fake_server.h"
#include "worker/client/ps_client.h"
#include "worker/client/push_stream.h"

namespace parley {

class MovingCluster {
 public:
  static constexpr uint32_t kDense = 2, kSparse = 4, kDim = 2;
  static constexpr uint32_t kElements = 40, kPerPartition = 8, kDensePartitions = 5;
  static constexpr uint32_t kSparsePartitions = 8;

  using At = std::pair<uint32_t, uint32_t>;  // table, partition
  struct Push {
    std::optional<uint64_t> tick;
    uint64_t acked_below = 0;  // as last said
    std::string keys, values;  // as they travelled
    std::optional<uint64_t> value_bytes;
    int arrivals = 0;  // messages that carried it, resent ones of one call, too
  };
  struct Partition {
    uint32_t owner = 0;               // server
    std::map<uint64_t, Push> pushes;  // by sequence, applied
    std::optional<uint64_t> left;     // LEAVE came while somebody owned it
  };
  // What to do with a request that is in order, before it is: true if that is all.
  using Script = std::function<bool(uint32_t server, NodeId from, const Frame& request)>;

  // What is sent first comes first.
  static SimNetwork::Options EvenDelays() {
    return {.min_delay = absl::Milliseconds(1), .max_delay = absl::Milliseconds(1)};
  }

  explicit MovingCluster(uint64_t seed, SimNetwork::Options network = EvenDelays(),
                         const std::string& push_codec = "none")
      : world(seed), network(&world, network) {
    pb::TableSpec* dense = assignment_.add_table();
    dense->set_id(kDense);
    dense->set_partition_elements(kPerPartition);
    dense->add_tensor()->add_shape(kElements);
    dense->mutable_compression()->set_push(push_codec);
    dense->mutable_compression()->set_block(16);
    pb::TableSpec* sparse = assignment_.add_table();
    sparse->set_id(kSparse);
    sparse->mutable_sparse()->set_dim(kDim);
    sparse->mutable_sparse()->set_partitions(kSparsePartitions);
    for (uint32_t p = 0; p < kDensePartitions; ++p) partitions[{kDense, p}];
    for (uint32_t p = 0; p < kSparsePartitions; ++p) partitions[{kSparse, p}];
    layout = *DenseLayout::Create(*dense);
    weights.resize(kElements);
  }

  // Partition p of each table at server p % count.
  void Start(uint32_t count) {
    for (uint32_t s = 0; s < count; ++s) AddServer();
    for (auto& [at, partition] : partitions) partition.owner = at.second % count;
    *assignment_.mutable_map() = Map();
    PsClient::Options options;
    options.rank = 6;
    options.incarnation = 3;
    options.max_request_bytes = 64;
    options.progress_timeout = absl::Seconds(60);
    options.on_error = [this](const absl::Status& status) { error = status; };
    auto made = PsClient::Create(&node.env, &node.rpc, assignment_, std::move(options));
    ASSERT_TRUE(made.ok()) << made.status();
    client = *std::move(made);
  }
  void AddServer() {
    const uint32_t index = static_cast<uint32_t>(servers.size());
    servers.push_back(std::make_unique<FakeServer>(
        &world, &network, index, [this, index](FakeServer&, NodeId from, Frame request) {
          OnRequest(index, from, std::move(request));
        }));
    live.insert(index);
    known_.emplace_back();
    ASSERT_TRUE(node.transport->Connect(servers[index]->node(), servers[index]->endpoint()).ok());
  }
  // It says nothing any more; its partitions are at `heir`.
  void Kill(uint32_t server, uint32_t heir) {
    network.Isolate(servers[server]->node());
    live.erase(server);
    for (auto& [at, partition] : partitions) {
      if (partition.owner == server) partition.owner = heir;
    }
  }
  // What the scheduler would send now.
  pb::PartitionMap Map() {
    pb::PartitionMap map;
    map.set_epoch(++epoch_);
    std::map<uint32_t, uint32_t> index;
    for (uint32_t server : live) {
      index[server] = static_cast<uint32_t>(map.shard_size());
      pb::ShardAddress* shard = map.add_shard();
      shard->set_node(Value(servers[server]->node()));
      shard->set_server_rank(server);
      shard->set_endpoint(servers[server]->endpoint());
    }
    for (uint32_t table : {kDense, kSparse}) map.add_table()->set_table(table);
    for (const auto& [at, partition] : partitions) {
      map.mutable_table(at.first == kDense ? 0 : 1)->add_owner(index.at(partition.owner));
    }
    return map;
  }
  void TellClient() { ASSERT_TRUE(client->OnMap(Map()).ok()); }

  // No server knows a list of keys any more.
  void ForgetLists() {
    for (auto& lists : known_) lists.clear();
  }

  DenseTable& dense() { return *client->dense(kDense); }
  SparseTable& sparse() { return *client->sparse(kSparse); }

  bool Run(const std::function<bool()>& until, absl::Duration limit = absl::Minutes(5)) {
    return world.RunUntil([&] { return until() || !error.ok(); }, limit) && error.ok();
  }
  void Settle(absl::Duration time = absl::Milliseconds(20)) {
    world.RunUntil([] { return false; }, time);
  }
  bool AllAcknowledged() {
    bool acked = false;
    client->WhenAllAcknowledged([&] { acked = true; });
    return Run([&] { return acked; });
  }

  // Answers as a server that owns all of it does; again where it has done so already.
  void Answer(uint32_t server, NodeId from, const Frame& request) {
    Rpc& rpc = servers[server]->rpc();
    const pb::FrameHeader& header = request.header;
    if (header.kind() == pb::LEAVE) {
      pb::Leave leave;
      ASSERT_TRUE(leave.ParseFromString(header.body()));
      for (auto& [at, partition] : partitions) {
        if (partition.owner == server) partition.left = leave.after_tick();
      }
      rpc.Reply(from, header, Frame());
      return;
    }
    if (!Owns(server, header)) {
      rpc.ReplyError(from, header, absl::FailedPreconditionError("it is not here"));
      return;
    }
    std::vector<std::string> keys;
    if (!Keys(server, request, &keys)) {
      rpc.ReplyError(from, header, absl::NotFoundError("no such list"));
      return;
    }
    if (header.kind() != pb::PULL) Take(request, keys);
    rpc.Reply(from, header, header.kind() == pb::PUSH ? Frame() : Read(header, keys));
  }

  SimWorld world;
  SimNetwork network;
  FakeClientNode node{&world, &network, 6};
  std::vector<std::unique_ptr<FakeServer>> servers;
  std::set<uint32_t> live;
  std::unique_ptr<PsClient> client;
  absl::Status error;
  Script script;  // null: everything is answered at once
  std::map<At, Partition> partitions;
  DenseLayout layout;
  std::vector<float> weights;  // sums of what was pushed as plain floats
  std::map<uint64_t, std::vector<float>> rows;
  uint64_t misses = 0;

 private:
  void OnRequest(uint32_t server, NodeId from, Frame request) {
    EXPECT_EQ(request.header.rank(), 6u);
    EXPECT_EQ(request.header.incarnation(), 3u);
    if (script && script(server, from, request)) return;
    Answer(server, from, request);
  }

  bool Owns(uint32_t server, const pb::FrameHeader& header) const {
    for (const pb::Part& part : header.part()) {
      if (partitions.at({header.table(), part.partition()}).owner != server) return false;
    }
    return true;
  }

  // By part. False: one is named by a digest that the server has not seen.
  bool Keys(uint32_t server, const Frame& request, std::vector<std::string>* keys) {
    const std::vector<PartPayload> payload = SplitPayload(request);
    for (size_t i = 0; i < payload.size(); ++i) {
      const pb::Part& part = request.header.part(static_cast<int>(i));
      std::string list(payload[i].keys.view());
      if (part.keys() > 0 && list.empty()) {
        const auto found = known_[server].find(part.key_digest());
        if (found == known_[server].end()) {
          ++misses;
          return false;
        }
        list = found->second;
      } else if (part.has_key_digest()) {
        known_[server][part.key_digest()] = list;
      }
      EXPECT_EQ(list.size(), part.keys() * sizeof(uint64_t));
      keys->push_back(std::move(list));
    }
    return true;
  }

  void Take(const Frame& request, const std::vector<std::string>& keys) {
    const std::vector<PartPayload> payload = SplitPayload(request);
    for (size_t i = 0; i < payload.size(); ++i) {
      const pb::Part& part = request.header.part(static_cast<int>(i));
      const At at{request.header.table(), part.partition()};
      auto& pushes = partitions[at].pushes;
      const auto [found, is_new] = pushes.try_emplace(part.sequence());
      Push& push = found->second;
      ++push.arrivals;
      const std::string values(payload[i].values.view());
      EXPECT_LE(part.acked_below(), part.sequence());
      if (!is_new) {
        // The same push, whatever way it came: error feedback is not applied twice.
        EXPECT_EQ(push.keys, keys[i]);
        EXPECT_EQ(push.values, values);
        EXPECT_EQ(push.value_bytes.has_value(), part.has_value_bytes());
        continue;
      }
      push.acked_below = part.acked_below();
      for (uint64_t s = 1; s < part.acked_below(); ++s) EXPECT_TRUE(pushes.contains(s)) << s;
      EXPECT_LE(part.sequence() - part.acked_below(), PushStream::kMaxUnacknowledged);
      if (request.header.has_tick()) push.tick = request.header.tick();
      push.keys = keys[i];
      push.values = values;
      if (part.has_value_bytes()) push.value_bytes = part.value_bytes();
      if (!push.value_bytes.has_value()) Add(at, push);
    }
  }

  void Add(const At& at, const Push& push) {
    std::vector<float> values(push.values.size() / sizeof(float));
    if (!values.empty()) std::memcpy(values.data(), push.values.data(), push.values.size());
    if (at.first == kDense) {
      const uint64_t begin = layout.partition(at.second).begin;
      for (size_t i = 0; i < values.size(); ++i) weights[begin + i] += values[i];
      return;
    }
    for (size_t k = 0; k * sizeof(uint64_t) < push.keys.size(); ++k) {
      std::vector<float>& row = RowOf(KeyAt(push.keys, k));
      for (uint32_t d = 0; d < kDim; ++d) row[d] += values[k * kDim + d];
    }
  }

  Frame Read(const pb::FrameHeader& request, const std::vector<std::string>& keys) {
    Frame answer;
    for (int i = 0; i < request.part_size(); ++i) {
      const uint32_t partition = request.part(i).partition();
      pb::Part* part = answer.header.add_part();
      part->set_partition(partition);
      std::vector<float> values;
      if (request.table() == kDense) {
        const Range range = layout.partition(partition);
        values.assign(weights.begin() + static_cast<ptrdiff_t>(range.begin),
                      weights.begin() + static_cast<ptrdiff_t>(range.end));
      } else {
        const std::string& list = keys[static_cast<size_t>(i)];
        for (size_t k = 0; k * sizeof(uint64_t) < list.size(); ++k) {
          const std::vector<float>& row = RowOf(KeyAt(list, k));
          values.insert(values.end(), row.begin(), row.end());
        }
      }
      part->set_count(values.size());
      if (values.empty()) continue;
      Buffer payload = Buffer::Allocate(values.size() * sizeof(float));
      std::memcpy(payload.mutable_floats(), values.data(), payload.size());
      answer.payload.push_back(std::move(payload));
    }
    return answer;
  }

  static uint64_t KeyAt(const std::string& keys, size_t k) {
    uint64_t key;
    std::memcpy(&key, keys.data() + k * sizeof(key), sizeof(key));
    return key;
  }
  std::vector<float>& RowOf(uint64_t key) {
    return rows.try_emplace(key, kDim, 0.0f).first->second;
  }

  pb::Assignment assignment_;
  uint64_t epoch_ = 0;
  std::vector<std::map<std::string, std::string>> known_;  // by server: digest -> keys
};

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_WORKER_CLIENT_MOVING_CLUSTER_H_
