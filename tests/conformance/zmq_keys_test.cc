// ZmqTransport with keys: who gets in and as what, who does not, and what the wire shows.
#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ps/base/loop_env.h"
#include "ps/net/address.h"
#include "ps/net/rpc.h"
#include "tests/conformance/transport_rig.h"

namespace parley {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr NodeId kServer{0x51}, kWorker{0x31}, kOther{0x32};

// A scheduler, a server and a worker that know each other.
struct Cluster {
  NodeKeys scheduler = MakeNodeKeys(PeerRole::kScheduler);
  NodeKeys server = MakeNodeKeys(PeerRole::kServer);
  NodeKeys worker = MakeNodeKeys(PeerRole::kWorker);

  Cluster() {
    for (NodeKeys* keys : {&scheduler, &server, &worker}) Introduce(keys);
  }
  // Who lets in everybody here, though nobody here may know it.
  void Introduce(NodeKeys* keys) const {
    for (const NodeKeys* other : {&scheduler, &server, &worker}) {
      keys->authorized[other->public_key] = other->role;
    }
  }
};

class ZmqKeys : public ::testing::Test {
 protected:
  std::string Start(NodeId id, const NodeKeys* keys, bool listens = true,
                    const std::string& endpoint = "") {
    TransportRig::Node node{.listens = listens, .endpoint = endpoint};
    if (keys != nullptr) node.keys = std::make_shared<NodeKeys>(*keys);
    node.log = [this](const std::string& line) {
      std::lock_guard lock(mu_);
      absl::StrAppend(&log_, line, "\n");
    };
    return rig_->Start(id, std::move(node));
  }
  bool WaitForRefusal(NodeId id) {
    return rig_->WaitFor([&] { return rig_->Counters(id).refused > 0; });
  }
  bool WaitForLog(const std::string& part) {
    return rig_->WaitFor([&] {
      std::lock_guard lock(mu_);
      return log_.find(part) != std::string::npos;
    });
  }
  // By a worker that is let in.
  void ExpectItStillServes(const std::string& endpoint) {
    Start(kOther, &cluster_.worker, /*listens=*/false);
    ASSERT_TRUE(rig_->Connect(kOther, kServer, endpoint).ok());
    ASSERT_TRUE(rig_->Send(kOther, kServer, MakeFrame(99)).ok());
    ASSERT_TRUE(rig_->WaitFor([&] { return !rig_->Received(kServer).empty(); }));
    const std::vector<ReceivedFrame> received = rig_->Received(kServer);
    ASSERT_EQ(received.size(), 1u) << "those that were refused are not heard";
    EXPECT_EQ(received[0].from, kOther);
  }

  const Cluster cluster_;
  std::mutex mu_;  // guards log_
  std::string log_;
  std::unique_ptr<TransportRig> rig_ = MakeTransportRig("tcp");
};

TEST_F(ZmqKeys, FramesSayWhoseKeyTheyCameBy) {
  const std::string scheduler = Start(kSchedulerNode, &cluster_.scheduler);
  const std::string server = Start(kServer, &cluster_.server);
  EXPECT_EQ(ParseEndpoint(scheduler)->key, "");
  EXPECT_EQ(ParseEndpoint(server)->key, cluster_.server.public_key);
  Start(kWorker, &cluster_.worker, /*listens=*/false);
  ASSERT_TRUE(rig_->Connect(kServer, kSchedulerNode, scheduler).ok());
  ASSERT_TRUE(rig_->Connect(kWorker, kSchedulerNode, scheduler).ok());
  ASSERT_TRUE(rig_->Connect(kWorker, kServer, server).ok());
  ASSERT_TRUE(rig_->Send(kServer, kSchedulerNode, MakeFrame(1)).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kSchedulerNode, 1));
  EXPECT_EQ(rig_->Received(kSchedulerNode)[0].frame.peer_role, PeerRole::kServer);
  ASSERT_TRUE(rig_->Send(kWorker, kSchedulerNode, MakeFrame(2)).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kSchedulerNode, 2));
  EXPECT_EQ(rig_->Received(kSchedulerNode)[1].frame.peer_role, PeerRole::kWorker);
  ASSERT_TRUE(rig_->Send(kWorker, kServer, MakeFrame(3, {Noise(3, 4096)})).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kServer, 1));
  EXPECT_EQ(rig_->Received(kServer)[0].frame.peer_role, PeerRole::kWorker);
  // Answers come by connections whose other end has proven the key that was expected.
  ASSERT_TRUE(rig_->Send(kServer, kWorker, MakeFrame(4)).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kWorker, 1));
  EXPECT_EQ(rig_->Received(kWorker)[0].frame.peer_role, PeerRole::kServer);
  ASSERT_TRUE(rig_->Send(kSchedulerNode, kServer, MakeFrame(5)).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kServer, 2));
  EXPECT_EQ(rig_->Received(kServer)[1].frame.peer_role, PeerRole::kScheduler);
  EXPECT_EQ(rig_->Counters(kServer).refused, 0u);
}

TEST_F(ZmqKeys, WhoHasNoKeyIsRefusedAndLogged) {
  const std::string endpoint = Start(kServer, &cluster_.server);
  const std::string bare = endpoint.substr(0, endpoint.find('#'));
  Start(kWorker, nullptr, /*listens=*/false);
  // It is told before it tries; that it tries all the same is what strangers do.
  EXPECT_EQ(rig_->Connect(kWorker, kServer, endpoint).code(),
            absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(rig_->Connect(kWorker, kServer, bare).ok());
  rig_->Send(kWorker, kServer, MakeFrame(1)).IgnoreError();  // it may know already
  EXPECT_TRUE(WaitForRefusal(kServer));
  EXPECT_TRUE(WaitForLog("refused 1 messages so far; the latest: a connection that"));
  ExpectItStillServes(endpoint);
}

TEST_F(ZmqKeys, AKeyThatNobodyKnowsIsRefusedAndLogged) {
  const std::string endpoint = Start(kServer, &cluster_.server);
  NodeKeys stranger = MakeNodeKeys(PeerRole::kWorker);
  cluster_.Introduce(&stranger);
  Start(kWorker, &stranger, /*listens=*/false);
  ASSERT_TRUE(rig_->Connect(kWorker, kServer, endpoint).ok());
  ASSERT_TRUE(rig_->Send(kWorker, kServer, MakeFrame(1)).ok());
  EXPECT_TRUE(WaitForRefusal(kServer));
  EXPECT_TRUE(WaitForLog(stranger.public_key)) << "so that it can be authorized";
  EXPECT_TRUE(WaitForLog("does not let this node's key in"));
  ExpectItStillServes(endpoint);
}

TEST_F(ZmqKeys, WhoPosesAsTheSchedulerIsNotSpokenTo) {
  NodeKeys false_scheduler = MakeNodeKeys(PeerRole::kScheduler);
  cluster_.Introduce(&false_scheduler);
  const std::string endpoint = Start(kSchedulerNode, &false_scheduler);
  Start(kWorker, &cluster_.worker, /*listens=*/false);
  ASSERT_TRUE(rig_->Connect(kWorker, kSchedulerNode, endpoint).ok());
  ASSERT_TRUE(rig_->Send(kWorker, kSchedulerNode, MakeFrame(1)).ok());
  EXPECT_TRUE(WaitForRefusal(kSchedulerNode));
  EXPECT_TRUE(rig_->Received(kSchedulerNode).empty());
}

TEST_F(ZmqKeys, WhoWasRefusedTriesAgain) {
  NodeKeys wary = cluster_.server;
  wary.authorized.erase(cluster_.worker.public_key);
  const std::string endpoint = Start(kServer, &wary);
  Start(kWorker, &cluster_.worker, /*listens=*/false);
  ASSERT_TRUE(rig_->Connect(kWorker, kServer, endpoint).ok());
  ASSERT_TRUE(WaitForRefusal(kWorker));
  absl::Status told;
  EXPECT_TRUE(rig_->WaitFor([&] {
    told = rig_->Send(kWorker, kServer, MakeFrame(1));
    return !told.ok();
  }));
  EXPECT_THAT(std::string(told.message()), HasSubstr("each other's keys"));
  // The next process lets it in.
  rig_->End(kServer);
  ASSERT_EQ(Start(kServer, &cluster_.server, /*listens=*/true, endpoint), endpoint);
  EXPECT_TRUE(rig_->WaitFor([&] {
    rig_->Send(kWorker, kServer, MakeFrame(2)).IgnoreError();
    return rig_->ReceivedCount(kServer) > 0;
  }));
}

TEST_F(ZmqKeys, OnlyKeysOfTheRightRoleAreConnectedTo) {
  Start(kWorker, &cluster_.worker, /*listens=*/false);
  const std::string at = "tcp://127.0.0.1:9";
  for (const std::string& bad :
       {at, at + "#" + cluster_.worker.public_key, at + "#" + cluster_.scheduler.public_key,
        at + "#" + MakeNodeKeys(PeerRole::kServer).public_key}) {
    EXPECT_EQ(rig_->Connect(kWorker, kServer, bad).code(), absl::StatusCode::kFailedPrecondition)
        << bad;
  }
  EXPECT_TRUE(rig_->Connect(kWorker, kServer, at + "#" + cluster_.server.public_key).ok());
  EXPECT_EQ(rig_->Connect(kWorker, kSchedulerNode, at + "#" + cluster_.server.public_key).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(rig_->Connect(kWorker, kSchedulerNode, at).ok());
}

TEST_F(ZmqKeys, UnixSocketsAreThisUsersAndNeedNone) {
  const std::string path = FreshSocketPath();
  const std::string list =
      Start(kServer, &cluster_.server, /*listens=*/true, "tcp://:0,ipc://" + path);
  EXPECT_THAT(list, testing::EndsWith(",ipc://" + path));
  const std::string tcp = list.substr(0, list.rfind(','));
  Start(kWorker, &cluster_.worker, /*listens=*/false);
  ASSERT_TRUE(rig_->Connect(kWorker, kServer, "ipc://" + path).ok());
  ASSERT_TRUE(rig_->Send(kWorker, kServer, MakeFrame(1)).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kServer, 1));
  EXPECT_EQ(rig_->Received(kServer)[0].frame.peer_role, PeerRole::kUnproven);
  // Beside it, on the same socket, tcp asks for keys.
  Start(kOther, nullptr, /*listens=*/false);
  ASSERT_TRUE(rig_->Connect(kOther, kServer, tcp.substr(0, tcp.find('#'))).ok());
  rig_->Send(kOther, kServer, MakeFrame(2)).IgnoreError();  // it may know already
  EXPECT_TRUE(WaitForRefusal(kServer));
  EXPECT_EQ(rig_->ReceivedCount(kServer), 1u);
}

TEST_F(ZmqKeys, WhatAKeyMayNotSayIsAnsweredCountedAndLogged) {
  const std::string endpoint = Start(kServer, &cluster_.server);
  Start(kWorker, &cluster_.worker, /*listens=*/false);
  std::unique_ptr<Rpc> rpc;
  LoopEnv env({.offload_threads = 0});  // nobody runs it: answers need no timers
  std::atomic<int> stops = 0;
  rig_->Do(kServer, [&](Transport& transport) {
    rpc = std::make_unique<Rpc>(&env, &transport);
    for (pb::Kind kind : {pb::STOP, pb::PUSH}) {
      rpc->Handle(kind, [&](NodeId from, Frame frame) {
        if (frame.header.kind() == pb::STOP) ++stops;
        rpc->Reply(from, frame.header, Frame());
      });
    }
  });
  ASSERT_TRUE(rig_->Connect(kWorker, kServer, endpoint).ok());
  for (const pb::Kind kind : {pb::STOP, pb::PUSH}) {
    Frame frame;
    frame.header.set_kind(kind);
    frame.header.set_request_id(kind);
    ASSERT_TRUE(rig_->Send(kWorker, kServer, std::move(frame)).ok());
  }
  ASSERT_TRUE(rig_->WaitForFrames(kWorker, 2));
  for (const ReceivedFrame& answer : rig_->Received(kWorker)) {
    const bool refused = answer.frame.header.request_id() == pb::STOP;
    EXPECT_EQ(answer.frame.header.status_code(),
              refused ? static_cast<uint32_t>(absl::StatusCode::kPermissionDenied) : 0u);
  }
  EXPECT_EQ(stops, 0);
  EXPECT_EQ(rig_->Counters(kServer).refused, 1u);
  EXPECT_TRUE(WaitForLog("STOP"));
  rig_->Do(kServer, [&](Transport&) { rpc.reset(); });
}

// A key proves a role; for a node that has spoken nobody else speaks with another key.
TEST_F(ZmqKeys, AWorkerDoesNotSpeakForOneThatHasAnotherKey) {
  NodeKeys other = MakeNodeKeys(PeerRole::kWorker), server = cluster_.server;
  cluster_.Introduce(&other);
  server.authorized[other.public_key] = other.role;
  const std::string endpoint = Start(kServer, &server);
  Start(kWorker, &cluster_.worker, /*listens=*/false);
  ASSERT_TRUE(rig_->Connect(kWorker, kServer, endpoint).ok());
  ASSERT_TRUE(rig_->Send(kWorker, kServer, MakeFrame(1)).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kServer, 1));
  // On a machine of its own, under the name of the first.
  std::unique_ptr<TransportRig> elsewhere = MakeTransportRig("tcp");
  elsewhere->Start(kWorker, {.listens = false, .keys = std::make_shared<NodeKeys>(other)});
  ASSERT_TRUE(elsewhere->Connect(kWorker, kServer, endpoint).ok());
  ASSERT_TRUE(elsewhere->Send(kWorker, kServer, MakeFrame(2)).ok());
  EXPECT_TRUE(WaitForRefusal(kServer));
  EXPECT_TRUE(WaitForLog(other.public_key));
  EXPECT_EQ(rig_->ReceivedCount(kServer), 1u);
  // As itself it is welcome.
  elsewhere->End(kWorker);
  elsewhere->Start(kOther, {.listens = false, .keys = std::make_shared<NodeKeys>(other)});
  ASSERT_TRUE(elsewhere->Connect(kOther, kServer, endpoint).ok());
  ASSERT_TRUE(elsewhere->Send(kOther, kServer, MakeFrame(3)).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kServer, 2));
  EXPECT_EQ(rig_->Received(kServer)[1].from, kOther);
  // And so is the first, who comes back with its own key.
  rig_->End(kWorker);
  Start(kWorker, &cluster_.worker, /*listens=*/false);
  ASSERT_TRUE(rig_->Connect(kWorker, kServer, endpoint).ok());
  ASSERT_TRUE(rig_->Send(kWorker, kServer, MakeFrame(4)).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kServer, 3));
  EXPECT_EQ(rig_->Received(kServer)[2].from, kWorker);
}

TEST_F(ZmqKeys, ManyWhoSayNothingKeepNobodyOut) {
  const std::string endpoint = Start(kServer, &cluster_.server);
  std::vector<int> silent;
  const Endpoint at = *ParseEndpoint(endpoint);
  for (int i = 0; i < 200; ++i) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(at.port);
    inet_pton(AF_INET, at.host.c_str(), &address.sin_addr);
    silent.push_back(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_EQ(connect(silent.back(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)),
              0);
  }
  ExpectItStillServes(endpoint);
  for (int fd : silent) close(fd);
}

// Passes one connection on to a port of loopback, and keeps what went through, either way.
class Tap {
 public:
  explicit Tap(uint16_t port) : to_(port) {
    sockaddr_in address = Loopback(0);
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(listener_, 8), 0);
    socklen_t size = sizeof(address);
    getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { Run(); });
  }
  ~Tap() {
    shutdown(listener_, SHUT_RDWR);
    thread_.join();
    close(listener_);
  }
  uint16_t port() const { return port_; }
  bool Holds(const std::string& bytes) {
    std::lock_guard lock(mu_);
    return seen_.find(bytes) != std::string::npos;
  }
  size_t size() {
    std::lock_guard lock(mu_);
    return seen_.size();
  }

 private:
  static sockaddr_in Loopback(uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
  }
  void Run() {
    const int here = accept(listener_, nullptr, nullptr);
    if (here < 0) return;
    const int there = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = Loopback(to_);
    EXPECT_EQ(connect(there, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    std::string ways[2];
    while (Pass(here, there, &ways[0]) && Pass(there, here, &ways[1])) {
      std::lock_guard lock(mu_);
      seen_ = ways[0] + ways[1];
    }
    close(here);
    close(there);
  }
  // What is there to be read, if anything; false: the connection is over.
  static bool Pass(int from, int to, std::string* way) {
    pollfd news{.fd = from, .events = POLLIN, .revents = 0};
    if (poll(&news, 1, 1) == 0) return true;
    std::array<char, 65536> bytes;
    const ssize_t n = recv(from, bytes.data(), bytes.size(), 0);
    if (n <= 0) return false;
    way->append(bytes.data(), n);
    for (ssize_t sent = 0; sent < n;) {
      const ssize_t more = send(to, bytes.data() + sent, n - sent, MSG_NOSIGNAL);
      if (more <= 0) return false;
      sent += more;
    }
    return true;
  }

  const uint16_t to_;
  const int listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  uint16_t port_ = 0;
  std::mutex mu_;  // guards seen_
  std::string seen_;
  std::thread thread_;
};

class OnTheWire : public ZmqKeys, public ::testing::WithParamInterface<bool> {};

TEST_P(OnTheWire, TensorsAreReadableOnlyWithoutKeys) {
  const bool secure = GetParam();
  const std::string endpoint = Start(kServer, secure ? &cluster_.server : nullptr);
  Endpoint at = *ParseEndpoint(endpoint);
  Tap tap(at.port);
  at.port = tap.port();
  Start(kWorker, secure ? &cluster_.worker : nullptr, /*listens=*/false);
  ASSERT_TRUE(rig_->Connect(kWorker, kServer, FormatEndpoint(at)).ok());
  const Buffer tensor = Noise(7, 4096), weights = Noise(8, 4096);
  ASSERT_TRUE(rig_->Send(kWorker, kServer, MakeFrame(1, {tensor})).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kServer, 1));
  ASSERT_TRUE(rig_->Send(kServer, kWorker, MakeFrame(2, {weights})).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kWorker, 1));
  const Buffer arrived = rig_->Received(kServer)[0].frame.payload[0];
  ASSERT_EQ(std::memcmp(arrived.data(), tensor.data(), tensor.size()), 0);
  // All of it went through the tap.
  ASSERT_TRUE(rig_->WaitFor([&] { return tap.size() > tensor.size() + weights.size(); }));
  for (const Buffer& buffer : {tensor, weights}) {
    // Any sixteen bytes of it would do.
    for (size_t offset = 0; offset < buffer.size(); offset += 256) {
      EXPECT_EQ(tap.Holds(std::string(reinterpret_cast<const char*>(buffer.data()) + offset, 16)),
                !secure)
          << offset;
    }
  }
  rig_->End(kWorker);
}

INSTANTIATE_TEST_SUITE_P(Tcp, OnTheWire, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Keys" : "NoKeys"; });

}  // namespace
}  // namespace parley
