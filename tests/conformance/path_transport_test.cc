// PathTransport: which path a pair takes, what it says about it, and that it falls back with the
// frames that waited.
#include <functional>
#include <latch>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ps/base/loop_env.h"
#include "ps/net/path_transport.h"
#include "ps/net/shm/socket.h"
#include "tests/conformance/transport_rig.h"

namespace parley {
namespace {

using ::testing::HasSubstr;

constexpr NodeId kA{0xa0a0a0a0a0a0a0a0}, kB{0xb0b0b0b0b0b0b0b0};

class Node {
 public:
  Node(NodeId self, const std::string& bind) {
    PathTransport::Options options;
    options.self = self;
    options.bind = bind;
    options.log = [this](const std::string& line) {
      std::lock_guard lock(mu_);
      absl::StrAppend(&log_, line, "\n");
    };
    auto made = PathTransport::Create(&env_, std::move(options));
    EXPECT_TRUE(made.ok()) << made.status();
    transport_ = *std::move(made);
    transport_->SetReceiver([this](NodeId, Frame frame) {
      std::lock_guard lock(mu_);
      ticks_.push_back(frame.header.tick());
    });
    thread_ = std::thread([this] { env_.Run(); });
  }
  ~Node() {
    env_.Stop();
    thread_.join();
  }
  void Do(std::function<void(PathTransport&)> task) {
    std::latch done(1);
    env_.Post([&] {
      task(*transport_);
      done.count_down();
    });
    done.wait();
  }
  // Connects and sends at once, before any greeting can have come.
  absl::Status ConnectAndSend(NodeId peer, const std::string& endpoint, int frames) {
    absl::Status status;
    Do([&](PathTransport& transport) {
      status = transport.Connect(peer, endpoint);
      for (int i = 0; i < frames && status.ok(); ++i) status = transport.Send(peer, MakeFrame(i));
    });
    return status;
  }
  bool AwaitTicks(size_t count) {
    for (int i = 0; i < 20'000; ++i) {
      if (ticks().size() >= count) return true;
      Rest();
    }
    return false;
  }
  // For a millisecond.
  void Rest() {
    std::latch turn(1);
    env_.Post([&] { env_.After(absl::Milliseconds(1), [&] { turn.count_down(); }); });
    turn.wait();
  }
  std::vector<uint64_t> ticks() {
    std::lock_guard lock(mu_);
    return ticks_;
  }
  std::string log() {
    std::lock_guard lock(mu_);
    return log_;
  }
  std::string endpoint() const { return transport_->endpoint(); }
  // The endpoint of one kind out of the list.
  std::string endpoint(const std::string& scheme) const {
    const std::string list = transport_->endpoint();
    const size_t at = list.find(scheme + "://");
    EXPECT_NE(at, std::string::npos) << list;
    return list.substr(at, list.find(',', at) - at);
  }

 private:
  LoopEnv env_{{.offload_threads = 0}};
  std::unique_ptr<PathTransport> transport_;  // goes before the env
  std::thread thread_;
  std::mutex mu_;  // guards the two below
  std::vector<uint64_t> ticks_;
  std::string log_;
};

TEST(PathTransport, TakesSharedMemoryThenUnixSocketsThenTcp) {
  const std::string socket = "ipc://" + FreshSocketPath();
  Node b(kB, absl::StrCat("tcp://:0,", socket, ",shm://"));
  const std::string tcp = b.endpoint("tcp");
  const std::string gone = "ipc://" + FreshSocketPath();
  const std::vector<std::pair<std::string, std::string>> cases = {
      {b.endpoint(), "over shared memory"},
      {absl::StrCat(tcp, ",", socket), absl::StrCat("over ", socket)},
      {absl::StrCat(gone, ",", tcp), absl::StrCat("over ", tcp)},
      {absl::StrCat("shm://ffffffffffffffff.0/name,", tcp), "on another machine"},
  };
  size_t frames = 0;
  for (const auto& [endpoint, said] : cases) {
    SCOPED_TRACE(endpoint);
    Node a(kA, "");
    ASSERT_TRUE(a.ConnectAndSend(kB, endpoint, 3).ok());
    ASSERT_TRUE(b.AwaitTicks(frames += 3));
    EXPECT_THAT(a.log(), HasSubstr(said));
    // The answer takes the path of the request.
    b.Do([](PathTransport& transport) { EXPECT_TRUE(transport.Send(kA, MakeFrame(7)).ok()); });
    EXPECT_TRUE(a.AwaitTicks(1));
  }
}

TEST(PathTransport, FallsBackWithTheFramesThatWaited) {
  Node b(kB, "tcp://:0");
  // Somebody listens under the name who hangs up on every greeting.
  const std::string name = absl::StrCat("hangs-up-", Value(kB));
  const shm::Fd listener = *shm::ListenAt(name);
  const std::string shm = absl::StrCat("shm://", *shm::ThisMachine(), "/", name);
  Node a(kA, "");
  ASSERT_TRUE(a.ConnectAndSend(kB, absl::StrCat(shm, ",", b.endpoint()), 20).ok());
  EXPECT_TRUE(b.ticks().empty());
  ASSERT_TRUE(shm::Accept(listener)->ok());  // and closed
  ASSERT_TRUE(b.AwaitTicks(20));
  for (uint64_t i = 0; i < 20; ++i) EXPECT_EQ(b.ticks()[i], i);
  EXPECT_THAT(a.log(), HasSubstr("hung up"));
}

TEST(PathTransport, WaitsForAListenerWhoseBacklogIsFull) {
  Node b(kB, "tcp://:0");
  const std::string name = absl::StrCat("crowded-", Value(kB));
  const shm::Fd listener = *shm::ListenAt(name);
  std::vector<shm::Fd> crowd;
  absl::Status status;
  while (status.ok() && crowd.size() < 10'000) {
    auto one = shm::ConnectTo(name);
    status = one.status();
    if (one.ok()) crowd.push_back(*std::move(one));
  }
  ASSERT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  const std::string shm = absl::StrCat("shm://", *shm::ThisMachine(), "/", name);
  Node a(kA, "");
  ASSERT_TRUE(a.ConnectAndSend(kB, absl::StrCat(shm, ",", b.endpoint()), 20).ok());
  // The crowd is let in, and then comes one that greets.
  shm::Message greeting;
  const auto greets = [&] {
    const shm::Fd next = *shm::Accept(listener);
    if (!next.ok()) return false;
    // Its greeting was sent right after it connected; the crowd says nothing.
    const auto received = shm::ReceiveMessage(next, &greeting);
    return received.ok() && *received == shm::Received::kMessage;
  };
  bool greeted = false;
  for (int i = 0; i < 20'000 && !greeted; ++i) {
    a.Rest();
    greeted = greets();
  }
  EXPECT_TRUE(greeted) << a.log();
  // Hung up on now, it falls back with all that waited.
  ASSERT_TRUE(b.AwaitTicks(20));
}

TEST(PathTransport, ListsThatCannotBeAreRefused) {
  Node a(kA, "");
  for (const char* bad : {"", ",", "tcp://127.0.0.1:1,", "shm://x", "tcp://127.0.0.1:1 ,shm://a/b",
                          "shm://a/b/c", "shm://"}) {
    EXPECT_EQ(a.ConnectAndSend(kB, bad, 0).code(), absl::StatusCode::kInvalidArgument) << bad;
  }
  EXPECT_EQ(a.ConnectAndSend(kB, "shm://ffffffffffffffff.0/name", 0).code(),
            absl::StatusCode::kUnavailable);
  LoopEnv env({.offload_threads = 0});
  for (const char* bad : {"shm://,shm://", "tcp://:0,nonsense", "shm://ffff.0/elsewhere"}) {
    EXPECT_FALSE(PathTransport::Create(&env, {.self = kA, .bind = bad}).ok()) << bad;
  }
}

}  // namespace
}  // namespace parley
