// What others can make a ZmqTransport hold: connections, files, and memory for those who do not
// read. Real sockets; each with keys and without.
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <deque>
#include <latch>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ps/net/address.h"
#include "ps/net/node_owners.h"
#include "tests/conformance/transport_rig.h"

namespace parley {
namespace {

using ::testing::HasSubstr;

constexpr NodeId kA{0xa0a0a0a0a0a0a0a0}, kB{0xb0b0b0b0b0b0b0b0}, kC{0xc0c0c0c0c0c0c0c0};

// Somebody who connects, and says nothing unless it is told to. Never waits.
class Caller {
 public:
  explicit Caller(const std::string& endpoint) {
    const Endpoint at = *ParseEndpoint(endpoint);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(at.port);
    inet_pton(AF_INET, at.host.c_str(), &address.sin_addr);
    const int rc = connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
    EXPECT_TRUE(rc == 0 || errno == EINPROGRESS);
  }
  ~Caller() { close(fd_); }
  Caller(const Caller&) = delete;
  Caller& operator=(const Caller&) = delete;

  // The kernel there has answered.
  bool Connected() const {
    pollfd news{.fd = fd_, .events = POLLOUT, .revents = 0};
    return poll(&news, 1, 0) == 1;
  }
  // The node there has taken the connection: it speaks first.
  bool Greeted() {
    Read();
    return greeted_;
  }
  bool HungUpOn() {
    Read();
    return ended_;
  }
  void Say(const std::string& bytes) { send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL); }

 private:
  void Read() {
    std::array<char, 256> bytes;
    const ssize_t n = recv(fd_, bytes.data(), bytes.size(), 0);
    greeted_ |= n > 0;
    ended_ |= n == 0 || (n < 0 && errno == ECONNRESET);
  }

  const int fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  bool greeted_ = false, ended_ = false;
};

class Limits : public ::testing::TestWithParam<std::string> {
 protected:
  // B listens, A is its peer.
  void Start(TransportRig::Node server) {
    server.log = [this](const std::string& line) {
      std::lock_guard lock(mu_);
      absl::StrAppend(&log_, line, "\n");
    };
    endpoint_ = rig_->Start(kB, std::move(server));
    rig_->Start(kA, {.listens = false});
    ASSERT_TRUE(rig_->Connect(kA, kB, endpoint_).ok());
    ExpectAToBeServed();
  }
  void ExpectAToBeServed() {
    const size_t heard = rig_->ReceivedCount(kB), answered = rig_->ReceivedCount(kA);
    ASSERT_TRUE(rig_->Send(kA, kB, MakeFrame(1, {Noise(1, 8000)})).ok());
    ASSERT_TRUE(rig_->WaitForFrames(kB, heard + 1));
    ASSERT_TRUE(rig_->Send(kB, kA, MakeFrame(2, {Noise(2, 8000)})).ok());
    ASSERT_TRUE(rig_->WaitForFrames(kA, answered + 1));
  }
  bool Logged(const std::string& part) {
    std::lock_guard lock(mu_);
    return log_.find(part) != std::string::npos;
  }
  std::string Bare() const { return endpoint_.substr(0, endpoint_.find('#')); }

  std::mutex mu_;  // guards log_
  std::string log_;
  std::unique_ptr<TransportRig> rig_ = MakeTransportRig(GetParam());
  std::string endpoint_;
};

INSTANTIATE_TEST_SUITE_P(, Limits, ::testing::Values("tcp", "curve"),
                         [](const auto& info) { return info.param; });

TEST_P(Limits, PastTheLimitNobodyIsLetInAndMembersAreServed) {
  Start({.max_connections = 8, .handshake = absl::Hours(1)});
  std::deque<Caller> in, out;
  for (int i = 1; i < 8; ++i) {
    in.emplace_back(Bare());
    ASSERT_TRUE(rig_->WaitFor([&] { return in.back().Greeted(); })) << i;
  }
  ASSERT_TRUE(rig_->WaitFor([&] { return Logged("nobody else is let in"); }));
  EXPECT_TRUE(Logged("8 connections are open, allowed are 8 (--max-connections)")) << log_;
  for (int i = 0; i < 300; ++i) out.emplace_back(Bare());
  rig_->Start(kC, {.listens = false});
  ASSERT_TRUE(rig_->Connect(kC, kB, endpoint_).ok());
  ASSERT_TRUE(rig_->Send(kC, kB, MakeFrame(3)).ok());
  for (int i = 0; i < 100; ++i) ExpectAToBeServed();
  for (const Caller& caller : out) EXPECT_FALSE(caller.Connected());
  for (const ReceivedFrame& got : rig_->Received(kB)) EXPECT_EQ(got.from, kA);
  // Where one goes, there is room for another: C, who has waited.
  out.clear();
  const size_t heard = rig_->ReceivedCount(kB);
  in.pop_front();
  ASSERT_TRUE(rig_->WaitForFrames(kB, heard + 1));
  EXPECT_EQ(rig_->Received(kB).back().from, kC);
  ExpectAToBeServed();
}

TEST_P(Limits, WhoDoesNotFinishItsGreetingMakesRoomForOthers) {
  Start({.max_connections = 3, .handshake = absl::Milliseconds(100)});
  std::deque<Caller> callers;
  for (int round = 0; round < 3; ++round) {
    for (const std::string& words : {std::string(), std::string("\xff\0\0\0\0", 5)}) {
      callers.emplace_back(Bare());
      callers.back().Say(words);
    }
    for (Caller& caller : callers) {
      EXPECT_TRUE(rig_->WaitFor([&] { return caller.HungUpOn(); })) << round;
    }
    callers.clear();
    ExpectAToBeServed();
  }
}

TEST_P(Limits, SomeFilesAreLeftForWhatIsNoConnection) {
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  Start({.handshake = absl::Hours(1)});
  const rlimit few = {.rlim_cur = 200, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  std::deque<Caller> callers;
  for (int i = 0; i < 80 && !Logged("ulimit -n"); ++i) {  // 160 files, in one process
    callers.emplace_back(Bare());
    ASSERT_TRUE(
        rig_->WaitFor([&] { return callers.back().Greeted() || Logged("files from 150 on"); }));
  }
  EXPECT_TRUE(Logged("files from 150 on are kept for others (ulimit -n)")) << log_;
  for (int i = 0; i < 10; ++i) callers.emplace_back(Bare());
  ExpectAToBeServed();
  std::vector<int> files;
  for (int i = 0; i < 20; ++i) files.push_back(open("/dev/null", O_RDONLY | O_CLOEXEC));
  for (const int fd : files) {
    EXPECT_GE(fd, 0);
    close(fd);
  }
  // It notices when there are some again.
  callers.clear();
  callers.emplace_back(Bare());
  EXPECT_TRUE(rig_->WaitFor([&] { return callers.back().Greeted(); }));
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
}

// A peer that does not read, at either end: frames for it are held up to the bound and then refused
// to the sender, and are gone when it goes.
class Slow : public Limits {
 protected:
  static constexpr int kQueue = 16;
  static constexpr size_t kBytes = size_t{256} << 10;

  void Flood(NodeId reader, NodeId writer) {
    Start({.queue_frames = kQueue});
    rig_->End(kA);
    rig_->Start(kA, {.listens = false, .queue_frames = kQueue});
    ASSERT_TRUE(rig_->Connect(kA, kB, endpoint_).ok());
    ExpectAToBeServed();
    std::latch stalled(1), go(1);
    std::thread stall([&] {
      rig_->Do(reader, [&](Transport&) {
        stalled.count_down();
        go.wait();
      });
    });
    stalled.wait();
    std::vector<char> bytes(kBytes, 'x');
    std::atomic<int> held = 0;
    int sent = 0;
    absl::Status status;
    // Once the queue has been full for a while nothing moves any more.
    for (int full = 0; full < 50 && sent < 4096;) {
      ++held;
      Buffer buffer = Buffer::Wrap(bytes.data(), bytes.size(), [&] { --held; });
      status = rig_->Send(writer, reader, MakeFrame(sent, {std::move(buffer)}));
      if (status.ok()) {
        ++sent;
      } else {
        ++full;
        rig_->WaitFor([looks = 0]() mutable { return ++looks > 2; });
      }
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
    EXPECT_LE(held, kQueue + 2);
    // The reader's queue, the writer's, and what the kernel keeps.
    EXPECT_LT(sent, 2 * kQueue + (64 << 20) / static_cast<int>(kBytes));
    EXPECT_GT(rig_->Counters(writer).dropped, 0u);
    go.count_down();
    stall.join();
    EXPECT_TRUE(rig_->WaitFor([&] { return held == 0; }));
  }
};

INSTANTIATE_TEST_SUITE_P(, Slow, ::testing::Values("tcp", "curve"),
                         [](const auto& info) { return info.param; });

TEST_P(Slow, AServerHoldsABoundedPartOfItsAnswers) { Flood(/*reader=*/kA, /*writer=*/kB); }

TEST_P(Slow, AWorkerHoldsABoundedPartOfItsRequests) { Flood(/*reader=*/kB, /*writer=*/kA); }

TEST(NodeOwners, ANodeIsOfTheKeyThatSpokeForItFirst) {
  NodeOwners owners;
  EXPECT_TRUE(owners.MaySpeak(kA, "one"));
  EXPECT_TRUE(owners.MaySpeak(kB, "one")) << "a key may be several nodes'";
  EXPECT_TRUE(owners.MaySpeak(kC, "two"));
  EXPECT_FALSE(owners.MaySpeak(kA, "two"));
  EXPECT_FALSE(owners.MaySpeak(kC, "one"));
  EXPECT_TRUE(owners.MaySpeak(kA, "one"));
}

TEST(NodeOwners, WhoInventsNodesPushesOutItsOwnAlone) {
  NodeOwners owners(/*nodes_per_key=*/3);
  EXPECT_TRUE(owners.MaySpeak(kA, "one"));
  for (uint64_t i = 1; i <= 100; ++i) EXPECT_TRUE(owners.MaySpeak(NodeId{i}, "two"));
  EXPECT_FALSE(owners.MaySpeak(kA, "two"));
  EXPECT_FALSE(owners.MaySpeak(NodeId{98}, "one"));
  EXPECT_TRUE(owners.MaySpeak(NodeId{97}, "one")) << "it was forgotten";
}

}  // namespace
}  // namespace parley
