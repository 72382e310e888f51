// ZmqTransport among strangers and in a machine where things are taken: garbage on its port, frames
// that lie, ports and paths that are in use. Real sockets, real libzmq peers.
#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <zmq.h>

#include <array>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ps/net/address.h"
#include "ps/net/zmq_transport.h"
#include "ps/wire/codec.h"
#include "tests/conformance/transport_rig.h"

namespace parley {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr NodeId kA{0xa0a0a0a0a0a0a0a0}, kB{0xb0b0b0b0b0b0b0b0}, kC{0xc0c0c0c0c0c0c0c0};

std::string RoutingId(NodeId node) {
  const uint64_t value = Value(node);  // little-endian, as this machine is
  std::string id(1 + sizeof(value), 'P');
  std::memcpy(id.data() + 1, &value, sizeof(value));
  return id;
}

std::string EncodedHeader(const Frame& frame, NodeId sender) {
  pb::FrameHeader header = frame.header;
  header.set_protocol(kProtocolVersion);
  header.set_sender(Value(sender));
  return EncodeHeader(header);
}

// A libzmq socket in the test's hands, which can say anything to anybody.
class RawZmq {
 public:
  RawZmq(int type, const std::string& routing_id) : socket_(zmq_socket(context_, type)) {
    const int linger_ms = 1000;
    zmq_setsockopt(socket_, ZMQ_LINGER, &linger_ms, sizeof(linger_ms));
    if (!routing_id.empty()) {
      zmq_setsockopt(socket_, ZMQ_ROUTING_ID, routing_id.data(), routing_id.size());
    }
  }
  ~RawZmq() {
    zmq_close(socket_);
    zmq_ctx_term(context_);
  }
  void Connect(const std::string& endpoint) {
    ASSERT_EQ(zmq_connect(socket_, endpoint.c_str()), 0);
  }
  void Send(const std::vector<std::string>& parts) {
    for (size_t i = 0; i < parts.size(); ++i) {
      const int flags = i + 1 < parts.size() ? ZMQ_SNDMORE : 0;
      ASSERT_GE(zmq_send(socket_, parts[i].data(), parts[i].size(), flags), 0);
    }
  }

 private:
  void* const context_ = zmq_ctx_new();
  void* const socket_;
};

// A plain connection to a node's endpoint.
class RawConnection {
 public:
  explicit RawConnection(const std::string& endpoint) {
    const Endpoint at = *ParseEndpoint(endpoint);
    if (at.scheme == Endpoint::Scheme::kTcp) {
      sockaddr_in address{};
      address.sin_family = AF_INET;
      address.sin_port = htons(at.port);
      inet_pton(AF_INET, at.host.c_str(), &address.sin_addr);
      Open(address);
    } else {
      sockaddr_un address{};
      address.sun_family = AF_UNIX;
      std::memcpy(address.sun_path, at.path.data(), at.path.size());
      Open(address);
    }
  }
  ~RawConnection() { close(fd_); }

  void Write(const std::string& bytes) {
    for (size_t sent = 0; sent < bytes.size();) {
      const ssize_t n = send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) return;  // the node has hung up already, as it may
      sent += n;
    }
  }
  void AwaitBytes(size_t count) {
    while (received_ < count && Read()) {
    }
    EXPECT_GE(received_, count);
  }
  // Until the node hangs up, so that everything was surely looked at.
  void Finish() {
    shutdown(fd_, SHUT_WR);
    while (Read()) {
    }
  }

 private:
  template <typename Address>
  void Open(const Address& address) {
    fd_ =
        socket(reinterpret_cast<const sockaddr&>(address).sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const timeval timeout{.tv_sec = 5, .tv_usec = 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
    EXPECT_EQ(connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  }
  bool Read() {
    std::array<char, 4096> bytes;
    const ssize_t n = recv(fd_, bytes.data(), bytes.size(), 0);
    if (n > 0) received_ += n;
    return n > 0;
  }

  int fd_ = -1;
  size_t received_ = 0;
};

void Throw(const std::string& endpoint, const std::string& bytes) {
  RawConnection connection(endpoint);
  connection.Write(bytes);
  connection.Finish();
}

std::string Text(const Buffer& bytes) { return std::string(bytes.view()); }

// ZMTP 3.0 as a peer without security speaks it: the greeting, and the READY command of a DEALER
// that completes the handshake.
constexpr size_t kGreetingBytes = 64;
std::string Greeting() {
  std::string greeting("\xff\0\0\0\0\0\0\0\x01\x7f\x03\0", 12);
  greeting += "NULL";
  greeting.resize(kGreetingBytes, '\0');
  return greeting;
}
std::string Ready() {
  return std::string(
      "\x04\x1c\x05READY\x0bSocket-Type\0\0\0\x06"
      "DEALER",
      30);
}

// Shakes hands like a ZeroMQ peer and says `bytes`.
void ShakeHandsAndThrow(const std::string& endpoint, const std::string& bytes) {
  RawConnection connection(endpoint);
  connection.Write(Greeting());
  connection.AwaitBytes(kGreetingBytes);
  connection.Write(Ready());
  connection.AwaitBytes(kGreetingBytes + 1);
  connection.Write(bytes);
  connection.Finish();
}

class Strangers : public ::testing::TestWithParam<std::string> {
 protected:
  Strangers() {
    endpoint_ = rig_->Start(kB, {.max_part_bytes = size_t{1} << 20, .max_parts = 8});
    rig_->Start(kA, {.listens = false});
    EXPECT_TRUE(rig_->Connect(kA, kB, endpoint_).ok());
  }

  // After whatever has been done to it, B hears A and nobody else, and A hears B.
  void ExpectBusinessAsUsual() {
    const size_t heard = rig_->ReceivedCount(kB);
    ASSERT_TRUE(rig_->Send(kA, kB, MakeFrame(1, {Noise(1, 8000)})).ok());
    ASSERT_TRUE(rig_->WaitForFrames(kB, heard + 1));
    for (const ReceivedFrame& got : rig_->Received(kB)) EXPECT_EQ(got.from, kA);
    EXPECT_EQ(rig_->Received(kB).back().frame.payload[0].view(), Noise(1, 8000).view());
    const size_t answers = rig_->ReceivedCount(kA);
    ASSERT_TRUE(rig_->Send(kB, kA, MakeFrame(2)).ok());
    EXPECT_TRUE(rig_->WaitForFrames(kA, answers + 1));
  }

  bool WaitForRefusals(NodeId node, uint64_t count) {
    return rig_->WaitFor([&] { return rig_->Counters(node).refused >= count; });
  }

  std::unique_ptr<TransportRig> rig_ = MakeTransportRig(GetParam());
  std::string endpoint_;
};

INSTANTIATE_TEST_SUITE_P(, Strangers, ::testing::Values("tcp", "ipc"),
                         [](const auto& info) { return info.param; });

TEST_P(Strangers, RandomBytesChangeNothing) {
  for (uint64_t seed = 0; seed < 8; ++seed) Throw(endpoint_, Text(Noise(seed, 64 << 10)));
  ExpectBusinessAsUsual();
}

TEST_P(Strangers, AGreetingAndThenGarbageChangesNothing) {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    Throw(endpoint_, Greeting() + Text(Noise(seed, 64 << 10)));
  }
  ShakeHandsAndThrow(endpoint_, Text(Noise(9, 64 << 10)));
  ShakeHandsAndThrow(endpoint_, std::string("\0\x05hello", 7));
  ExpectBusinessAsUsual();
  EXPECT_TRUE(WaitForRefusals(kB, 1));  // the last one is a message, though no frame
}

TEST_P(Strangers, BytesThatLookLikeZmtp1ChangeNothing) {
  // ZMTP 1.0 has no greeting: length, flags, body. ZeroMQ still speaks it, so that nearly any bytes
  // are a peer with a routing id and messages.
  const std::string id = RoutingId(kC);
  std::string bytes("\x0a\0", 2);  // the routing id of a node nobody has heard of
  bytes += id;
  for (int i = 0; i < 50; ++i) bytes += std::string("\x06\0hello", 7);
  Throw(endpoint_, bytes);
  Throw(endpoint_, std::string("\x01\0", 2) + Text(Noise(3, 64 << 10)));
  Throw(endpoint_, std::string("\xff\xff\xff\xff\xff\xff\xff\xff\xff\0", 10));  // a huge length
  EXPECT_TRUE(WaitForRefusals(kB, 50));
  ExpectBusinessAsUsual();
  EXPECT_EQ(rig_->Send(kB, kC, MakeFrame(1)).code(), absl::StatusCode::kUnavailable);
}

TEST_P(Strangers, MessagesThatAreNoFramesAreCountedAndReachNobody) {
  RawZmq raw(ZMQ_DEALER, RoutingId(kC));
  raw.Connect(endpoint_);
  const Frame frame = MakeFrame(1, {Noise(1, 64)});
  const std::string good = EncodedHeader(frame, kC);
  const std::string payload = Text(frame.payload[0]);
  const std::vector<std::vector<std::string>> bad = {
      {""},
      {"garbage"},
      {Text(Noise(1, 64 << 10))},
      {good.substr(0, good.size() - 1), payload},           // cut short
      {good},                                               // payload missing
      {good, payload, payload},                             // payload too many
      {good, payload.substr(0, 60)},                        // payload too short
      {good, ""},                                           // payload empty
      {EncodedHeader(frame, kA), payload},                  // speaks for another
      {EncodedHeader(frame, kNoNode), payload},             // speaks for nobody
      {good, "1", "2", "3", "4", "5", "6", "7", "8", "9"},  // more parts than allowed
  };
  for (const auto& parts : bad) raw.Send(parts);
  EXPECT_TRUE(WaitForRefusals(kB, bad.size()));
  EXPECT_EQ(rig_->Counters(kB).frames_in, 0);
  ExpectBusinessAsUsual();
  // The connection itself is in order: the next frame that is one arrives.
  raw.Send({good, payload});
  ASSERT_TRUE(rig_->WaitForFrames(kB, 2));
  EXPECT_EQ(rig_->Received(kB)[1].from, kC);
  EXPECT_EQ(rig_->Counters(kB).refused, bad.size());
}

TEST_P(Strangers, APartOverTheLimitNeverArrives) {
  {
    RawZmq raw(ZMQ_DEALER, RoutingId(kC));
    raw.Connect(endpoint_);
    raw.Send({EncodedHeader(MakeFrame(1), kC), std::string((size_t{1} << 20) + 1, 'x')});
    ExpectBusinessAsUsual();
  }
  ExpectBusinessAsUsual();
}

TEST_P(Strangers, PeersWithoutANodesRoutingIdAreRefused) {
  const Frame frame = MakeFrame(1);
  for (const std::string& id : {std::string(), std::string("P"), std::string("Q12345678"),
                                std::string("P123456789"), RoutingId(kNoNode), RoutingId(kB)}) {
    const uint64_t before = rig_->Counters(kB).refused;
    RawZmq raw(ZMQ_DEALER, id);
    raw.Connect(endpoint_);
    raw.Send({EncodedHeader(frame, kC)});
    EXPECT_TRUE(WaitForRefusals(kB, before + 1));
  }
  ExpectBusinessAsUsual();
}

// The scheduler's NodeId is known to all, and a STOP in its name would end a job.
TEST_P(Strangers, NobodySpeaksForTheSchedulerOnAPortOfOurs) {
  const uint64_t before = rig_->Counters(kB).refused;
  RawZmq raw(ZMQ_DEALER, RoutingId(kSchedulerNode));
  raw.Connect(endpoint_);
  Frame stop = MakeFrame(1);
  raw.Send({EncodedHeader(stop, kSchedulerNode)});
  EXPECT_TRUE(WaitForRefusals(kB, before + 1));
  ExpectBusinessAsUsual();
}

TEST_P(Strangers, AnotherNodeAtAPeersEndpointIsNotTakenForThePeer) {
  // C is gone and B sits where C was: what B says to A as B is fine, on C's connection it is not.
  rig_->Start(kC, {.listens = false});
  rig_->End(kC);
  ASSERT_TRUE(rig_->Connect(kA, kC, endpoint_).ok());
  rig_->Do(kA, [](Transport& transport) { transport.Disconnect(kB); });
  ASSERT_TRUE(rig_->Send(kA, kC, MakeFrame(1)).ok());
  ASSERT_TRUE(rig_->WaitForFrames(kB, 1));
  ASSERT_TRUE(rig_->Send(kB, kA, MakeFrame(2)).ok());
  EXPECT_TRUE(WaitForRefusals(kA, 1));
  EXPECT_TRUE(rig_->Received(kA).empty());
}

// What Create says and does; nobody runs the loop here.
class Binding : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<ZmqTransport>> Create(const std::string& bind,
                                                       bool insecure = false) {
    return ZmqTransport::Create(&env_, {.self = kA,
                                        .bind = bind,
                                        .insecure = insecure,
                                        .log = [this](const std::string& l) { log_ += l + "\n"; }});
  }
  std::string ErrorOf(const std::string& bind) {
    const auto transport = Create(bind);
    EXPECT_FALSE(transport.ok()) << bind;
    const std::string message(transport.status().message());
    EXPECT_THAT(message, Not(HasSubstr("\n")));
    return message;
  }

  LoopEnv env_{{.offload_threads = 0}};
  std::string log_;
};

TEST_F(Binding, LogsWhereItListens) {
  auto transport = Create("tcp://127.0.0.1:*");
  ASSERT_TRUE(transport.ok()) << transport.status();
  EXPECT_THAT(log_, HasSubstr((*transport)->endpoint()));
}

TEST_F(Binding, APortInUseSaysSoAndWhatToDo) {
  auto first = Create("tcp://127.0.0.1:0");
  ASSERT_TRUE(first.ok());
  const std::string port = absl::StrCat(ParseEndpoint((*first)->endpoint())->port);
  EXPECT_THAT(ErrorOf((*first)->endpoint()),
              HasSubstr(absl::StrCat("port ", port,
                                     " on 127.0.0.1 is in use; choose another with --bind, or port "
                                     "0 for any free one")));
}

TEST_F(Binding, AnAddressOfAnotherMachineListsTheInterfaces) {
  EXPECT_THAT(
      ErrorOf("tcp://203.0.113.7:0"),
      AllOf(HasSubstr("203.0.113.7"), HasSubstr("interfaces here: "), HasSubstr("lo 127.0.0.1")));
}

TEST_F(Binding, AnUnknownInterfaceListsTheOthers) {
  EXPECT_THAT(ErrorOf("tcp://nosuchif0.invalid:0"),
              AllOf(HasSubstr("nosuchif0"), HasSubstr("lo 127.0.0.1")));
}

TEST_F(Binding, AnInterfaceOrABlockStandsForItsAddress) {
  for (const std::string bind : {"tcp://lo:0", "tcp://127.0.0.0/8:0", "tcp://localhost:0"}) {
    auto transport = Create(bind);
    ASSERT_TRUE(transport.ok()) << transport.status();
    const Endpoint at = *ParseRemoteEndpoint((*transport)->endpoint());
    EXPECT_TRUE(at.host == "127.0.0.1" || at.host == "::1") << at.host;
    EXPECT_GT(at.port, 0);
  }
}

TEST_F(Binding, AWildcardIsAdvertisedAsAnAddressOneCanConnectTo) {
  auto transport = Create("tcp://0.0.0.0:0", /*insecure=*/true);
  ASSERT_TRUE(transport.ok()) << transport.status();
  EXPECT_TRUE(ParseRemoteEndpoint((*transport)->endpoint()).ok()) << (*transport)->endpoint();
}

TEST_F(Binding, WithoutKeysOthersReachItOnlyIfItIsSaid) {
  EXPECT_THAT(ErrorOf("tcp://0.0.0.0:0"),
              AllOf(HasSubstr("0.0.0.0"), HasSubstr("--keys"), HasSubstr("--insecure")));
  EXPECT_EQ(log_, "");
  ASSERT_TRUE(Create("tcp://0.0.0.0:0", /*insecure=*/true).ok());
  EXPECT_THAT(log_, HasSubstr("warning: tcp://"));
  log_.clear();
  ASSERT_TRUE(Create("tcp://127.0.0.1:0", /*insecure=*/true).ok());
  EXPECT_THAT(log_, Not(HasSubstr("warning")));
}

TEST_F(Binding, APathInUseIsNotTakenOver) {
  const std::string endpoint = "ipc://" + FreshSocketPath();
  auto first = Create(endpoint);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_THAT(ErrorOf(endpoint), HasSubstr("is in use"));
  first->reset();
  EXPECT_TRUE(Create(endpoint).ok());
}

TEST_F(Binding, APathLeftByADeadProcessIsReplacedAndRemovedAtTheEnd) {
  const std::string path = FreshSocketPath();
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  ASSERT_EQ(bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  close(fd);  // the file stays, as after a kill
  struct stat status;
  ASSERT_EQ(stat(path.c_str(), &status), 0);
  auto transport = Create("ipc://" + path);
  ASSERT_TRUE(transport.ok()) << transport.status();
  transport->reset();
  EXPECT_NE(stat(path.c_str(), &status), 0);
}

TEST_F(Binding, AFileThatIsNoSocketIsLeftAlone) {
  const std::string path = FreshSocketPath();
  std::ofstream(path) << "dear diary";
  EXPECT_THAT(ErrorOf("ipc://" + path), HasSubstr("no socket"));
  std::string content;
  std::getline(std::ifstream(path), content);
  EXPECT_EQ(content, "dear diary");
  unlink(path.c_str());
}

TEST_F(Binding, PathsThatCannotBeBoundSayWhy) {
  EXPECT_THAT(ErrorOf("ipc:///" + std::string(150, 'x')),
              AllOf(HasSubstr("151 bytes"), HasSubstr("107")));
  EXPECT_THAT(ErrorOf("ipc:///nonexistent-directory/a.sock"), HasSubstr("no such directory"));
}

TEST_F(Binding, OptionsOutOfBoundsAreRefused) {
  EXPECT_EQ(ZmqTransport::Create(&env_, {.self = kNoNode}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ZmqTransport::Create(&env_, {.self = kA, .queue_frames = 0}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(Binding, TooLargeAFrameIsRefusedBeforeItIsSent) {
  auto transport =
      ZmqTransport::Create(&env_, {.self = kA, .max_part_bytes = 1000, .max_parts = 2});
  ASSERT_TRUE(transport.ok());
  ASSERT_TRUE((*transport)->Connect(kB, "tcp://127.0.0.1:9").ok());
  const absl::Status large = (*transport)->Send(kB, MakeFrame(1, {Noise(1, 1004)}));
  EXPECT_EQ(large.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(large.message()), AllOf(HasSubstr("1004"), HasSubstr("1000")));
  const Buffer small = Noise(1, 4);
  EXPECT_EQ((*transport)->Send(kB, MakeFrame(1, {small, small, small})).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(SharedContext, TransportsOfOneProcessMayShareOne) {
  auto context = ZmqContext::Create();
  ASSERT_TRUE(context.ok());
  LoopEnv env({.offload_threads = 0});
  auto a = ZmqTransport::Create(&env, {.self = kA, .context = *context});
  auto b = ZmqTransport::Create(&env, {.self = kB, .bind = "tcp://:0", .context = *context});
  ASSERT_TRUE(a.ok() && b.ok());
  ASSERT_TRUE((*a)->Connect(kB, (*b)->endpoint()).ok());
  (*b)->SetReceiver([&](NodeId from, Frame) {
    EXPECT_EQ(from, kA);
    env.Stop();
  });
  ASSERT_TRUE((*a)->Send(kB, MakeFrame(1)).ok());
  env.Run();
}

}  // namespace
}  // namespace parley
