#include "tests/conformance/transport_rig.h"

#include <stdlib.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <latch>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_format.h"
#include "gtest/gtest.h"
#include "ps/base/loop_env.h"
#include "ps/base/philox.h"
#include "ps/base/sim_env.h"
#include "ps/net/path_transport.h"
#include "ps/net/shm/shm_transport.h"
#include "ps/net/sim_network.h"
#include "ps/net/zmq_transport.h"

namespace parley {
namespace {

// Nodes with a loop and a thread each.
class RealRig : public TransportRig {
 public:
  explicit RealRig(std::string kind) : kind_(std::move(kind)) {}
  ~RealRig() override {
    while (!nodes_.empty()) End(nodes_.begin()->first);
  }

  std::string Start(NodeId id, Node node) override {
    auto live = std::make_unique<Live>();
    absl::StatusOr<std::unique_ptr<Transport>> transport = Create(&live->env, id, node);
    EXPECT_TRUE(transport.ok()) << transport.status();
    if (!transport.ok()) return "";
    live->transport = *std::move(transport);
    live->transport->SetReceiver([this, id](NodeId from, Frame frame) {
      std::lock_guard lock(mu_);
      received_[id].push_back({from, std::move(frame)});
      arrived_.notify_all();
    });
    const std::string endpoint = live->transport->endpoint();
    live->thread = std::thread([env = &live->env] { env->Run(); });
    nodes_[id] = std::move(live);
    return endpoint;
  }

  void End(NodeId id) override {
    Live& live = *nodes_.at(id);
    live.env.Stop();
    live.thread.join();
    nodes_.erase(id);
  }

  void Do(NodeId id, std::function<void(Transport&)> task) override {
    Live& live = *nodes_.at(id);
    std::latch done(1);
    live.env.Post([&] {
      task(*live.transport);
      done.count_down();
    });
    done.wait();
  }

  bool WaitFor(std::function<bool()> pred) override {
    // Without the lock, since `pred` may ask a node's loop, which takes it for every frame.
    for (int i = 0; i < 10000; ++i) {
      if (pred()) return true;
      // Not everything that a test waits for is a frame: look every few milliseconds as well.
      std::unique_lock lock(mu_);
      arrived_.wait_for(lock, std::chrono::milliseconds(2));
    }
    return false;
  }

  std::vector<ReceivedFrame> Received(NodeId id) override {
    std::lock_guard lock(mu_);
    return received_[id];
  }
  size_t ReceivedCount(NodeId id) override {
    std::lock_guard lock(mu_);
    return received_[id].size();
  }

 private:
  struct Live {
    LoopEnv env{{.offload_threads = 0}};
    std::unique_ptr<Transport> transport;  // goes before the env
    std::thread thread;
  };

  std::string Bind(const Node& node) const {
    if (!node.endpoint.empty() || !node.listens) return node.endpoint;
    if (kind_ == "tcp" || kind_ == "curve") return "tcp://:0";
    if (kind_ == "ipc") return "ipc://" + FreshSocketPath();
    if (kind_ == "path") return "tcp://:0,ipc://" + FreshSocketPath() + ",shm://";
    return "shm://";
  }
  absl::StatusOr<std::unique_ptr<Transport>> Create(LoopEnv* env, NodeId id,
                                                    const Node& node) const {
    if (kind_ == "shm") {
      return ShmTransport::Create(env, {.self = id,
                                        .bind = Bind(node),
                                        .queue_frames = node.queue_frames,
                                        .max_part_bytes = node.max_part_bytes,
                                        .max_parts = node.max_parts,
                                        .reconnect_min = absl::Milliseconds(10)});
    }
    if (kind_ == "path") {
      return PathTransport::Create(env, {.self = id,
                                         .bind = Bind(node),
                                         .queue_frames = node.queue_frames,
                                         .max_part_bytes = node.max_part_bytes,
                                         .max_parts = node.max_parts,
                                         .reconnect_min = absl::Milliseconds(10),
                                         .keys = node.keys,
                                         .log = Log(node)});
    }
    return ZmqTransport::Create(env, {.self = id,
                                      .bind = Bind(node),
                                      .queue_frames = node.queue_frames,
                                      .max_part_bytes = node.max_part_bytes,
                                      .max_parts = node.max_parts,
                                      .max_connections = node.max_connections,
                                      .handshake = node.handshake,
                                      .reconnect_min = absl::Milliseconds(10),
                                      .keys = kind_ == "curve" ? SharedKeys() : node.keys,
                                      .log = Log(node)});
  }
  static absl::AnyInvocable<void(const std::string&)> Log(const Node& node) {
    if (!node.log) return nullptr;
    return node.log;
  }
  // One server's, for all: they differ in nothing that matters below the frames.
  static std::shared_ptr<const NodeKeys> SharedKeys() {
    static const auto keys = [] {
      auto made = std::make_shared<NodeKeys>(MakeNodeKeys(PeerRole::kServer));
      made->authorized[made->public_key] = made->role;
      return made;
    }();
    return keys;
  }

  const std::string kind_;
  std::mutex mu_;  // guards received_
  std::condition_variable arrived_;
  std::map<NodeId, std::vector<ReceivedFrame>> received_;
  std::map<NodeId, std::unique_ptr<Live>> nodes_;
};

class SimRig : public TransportRig {
 public:
  std::string Start(NodeId id, Node node) override {
    std::string endpoint = node.endpoint;
    if (endpoint.empty() && node.listens) endpoint = absl::StrFormat("sim://%d", ++names_);
    Live& live = nodes_[id];
    live.env = std::make_unique<SimEnv>(&world_, ToString(id));
    live.transport = network_.CreateTransport(live.env.get(), id, endpoint);
    live.transport->SetReceiver([this, id](NodeId from, Frame frame) {
      received_[id].push_back({from, std::move(frame)});
    });
    return endpoint;
  }
  void End(NodeId id) override { nodes_.erase(id); }
  void Do(NodeId id, std::function<void(Transport&)> task) override {
    bool done = false;
    nodes_.at(id).env->Post([&] {
      task(*nodes_.at(id).transport);
      done = true;
    });
    world_.RunUntil([&] { return done; }, absl::Seconds(1));
  }
  bool WaitFor(std::function<bool()> pred) override {
    return world_.RunUntil(pred, absl::Seconds(20));
  }
  std::vector<ReceivedFrame> Received(NodeId id) override { return received_[id]; }
  size_t ReceivedCount(NodeId id) override { return received_[id].size(); }

 private:
  struct Live {
    std::unique_ptr<SimEnv> env;
    std::unique_ptr<Transport> transport;
  };

  SimWorld world_{11};
  SimNetwork network_{&world_, {}};
  int names_ = 0;
  std::map<NodeId, std::vector<ReceivedFrame>> received_;
  std::map<NodeId, Live> nodes_;
};

// Made at the first use, removed at the end of the process.
const std::string& SocketDirectory() {
  struct Directory {
    Directory() {
      std::string pattern = ::testing::TempDir() + "parley_XXXXXX";
      path = mkdtemp(pattern.data());
    }
    ~Directory() { rmdir(path.c_str()); }
    std::string path;
  };
  static const Directory directory;
  return directory.path;
}

}  // namespace

absl::Status TransportRig::Connect(NodeId id, NodeId peer, const std::string& endpoint) {
  absl::Status status;
  Do(id, [&](Transport& transport) { status = transport.Connect(peer, endpoint); });
  return status;
}

absl::Status TransportRig::Send(NodeId id, NodeId to, Frame frame) {
  absl::Status status;
  Do(id, [&](Transport& transport) { status = transport.Send(to, std::move(frame)); });
  return status;
}

TransportCounters TransportRig::Counters(NodeId id) {
  TransportCounters counters;
  Do(id, [&](Transport& transport) { counters = transport.counters(); });
  return counters;
}

bool TransportRig::WaitForFrames(NodeId id, size_t count) {
  return WaitFor([&] { return ReceivedCount(id) >= count; });
}

std::unique_ptr<TransportRig> MakeTransportRig(const std::string& kind) {
  if (kind == "sim") return std::make_unique<SimRig>();
  return std::make_unique<RealRig>(kind);
}

NodeKeys MakeNodeKeys(PeerRole role) {
  std::array<char, 41> public_key{}, secret_key{};
  EXPECT_EQ(zmq_curve_keypair(public_key.data(), secret_key.data()), 0);
  NodeKeys keys;
  keys.role = role;
  keys.public_key = public_key.data();
  keys.secret_key = secret_key.data();
  return keys;
}

Frame MakeFrame(uint64_t number, std::vector<Buffer> payload) {
  Frame frame;
  frame.header.set_kind(pb::PUSH);
  frame.header.set_job(5);
  frame.header.set_tick(number);
  for (size_t i = 0; i < payload.size(); ++i) {
    pb::Part* part = frame.header.add_part();
    part->set_partition(static_cast<uint32_t>(i));
    part->set_count(payload[i].size() / sizeof(float));
  }
  frame.payload = std::move(payload);
  return frame;
}

Buffer Noise(uint64_t seed, size_t size) {
  Buffer buffer = Buffer::Allocate(size);
  for (size_t at = 0; at < size; at += 16) {
    const auto block = Philox(seed, 0, at / 16);
    std::memcpy(buffer.mutable_data() + at, block.data(), std::min<size_t>(16, size - at));
  }
  return buffer;
}

std::string FreshSocketPath() {
  static std::atomic<int> next = 0;
  return absl::StrFormat("%s/%d.sock", SocketDirectory(), ++next);
}

}  // namespace parley
