// Nodes of shared memory for the tests of what they lend: one with a thread, one in a process of
// its own, and memory to lend from.
#ifndef PARLEY_TESTS_CONFORMANCE_SHM_NODES_H_
#define PARLEY_TESTS_CONFORMANCE_SHM_NODES_H_

#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <functional>
#include <latch>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "ps/base/loop_env.h"
#include "ps/base/shared_arenas.h"
#include "ps/net/shm/shm_transport.h"
#include "tests/conformance/transport_rig.h"

namespace parley::shm_nodes {

inline constexpr NodeId kParent{0xa0a0a0a0a0a0a0a0}, kChild{0xb0b0b0b0b0b0b0b0};
inline constexpr size_t kMiB = size_t{1} << 20;

inline absl::Duration ThreadCpu() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return absl::DurationFromTimespec(now);
}

// A node with a thread.
class Node {
 public:
  explicit Node(ShmTransport::Options options) {
    absl::StatusOr<std::unique_ptr<ShmTransport>> made =
        ShmTransport::Create(&env_, std::move(options));
    EXPECT_TRUE(made.ok()) << made.status();
    transport_ = *std::move(made);
    transport_->SetReceiver([this](NodeId, Frame frame) {
      std::lock_guard lock(mu_);
      frames_.push_back(std::move(frame));
    });
    thread_ = std::thread([this] { env_.Run(); });
  }
  ~Node() {
    env_.Stop();
    thread_.join();
  }

  void Do(std::function<void(ShmTransport&)> task) {
    std::latch done(1);
    env_.Post([&] {
      task(*transport_);
      done.count_down();
    });
    done.wait();
  }
  absl::Status Send(NodeId to, Frame frame) {
    absl::Status status;
    Do([&](ShmTransport& transport) { status = transport.Send(to, std::move(frame)); });
    return status;
  }
  size_t LentTo(NodeId peer) {
    size_t bytes = 0;
    Do([&](ShmTransport& transport) { bytes = transport.LentTo(peer); });
    return bytes;
  }
  void Post(std::function<void()> task) { env_.Post(std::move(task)); }
  // What the loop's thread computes within `span`.
  absl::Duration CpuOf(absl::Duration span) {
    absl::Duration before, after;
    std::latch done(1);
    env_.Post([&] {
      before = ThreadCpu();
      env_.After(span, [&] {
        after = ThreadCpu();
        done.count_down();
      });
    });
    done.wait();
    return after - before;
  }
  std::string endpoint() const { return transport_->endpoint(); }
  size_t received() {
    std::lock_guard lock(mu_);
    return frames_.size();
  }
  std::vector<Frame> Take() {
    std::lock_guard lock(mu_);
    return std::exchange(frames_, {});
  }

 private:
  LoopEnv env_{{.offload_threads = 0}};
  std::unique_ptr<ShmTransport> transport_;  // goes before the env
  std::thread thread_;
  std::mutex mu_;  // guards frames_
  std::vector<Frame> frames_;
};

inline bool WaitFor(const std::function<bool()>& pred) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (std::chrono::steady_clock::now() < until) {
    if (pred()) return true;
    std::this_thread::yield();
  }
  return pred();
}

// Another process with a node that listens. Made before this one has threads.
class ChildProcess {
 public:
  // Told of each frame, in the child. What it keeps is held.
  using Behaviour = std::function<void(Transport&, NodeId from, Frame frame)>;

  // What its node has beside its name and endpoint is made in the child.
  using MakeOptions = std::function<ShmTransport::Options()>;

  explicit ChildProcess(Behaviour behaviour, const MakeOptions& options = nullptr) {
    int pipes[2];
    EXPECT_EQ(pipe(pipes), 0);
    const pid_t parent = getpid();
    pid_ = fork();
    if (pid_ == 0) Run(parent, pipes[1], behaviour, options);
    close(pipes[1]);
    char text[256];
    const ssize_t size = read(pipes[0], text, sizeof(text));
    close(pipes[0]);
    endpoint_.assign(text, size > 0 ? static_cast<size_t>(size) : 0);
    EXPECT_NE(endpoint_, "");
  }
  ~ChildProcess() { Kill(); }
  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(std::exchange(pid_, -1), nullptr, 0);
  }
  const std::string& endpoint() const { return endpoint_; }

 private:
  [[noreturn]] static void Run(pid_t parent, int fd, const Behaviour& behaviour,
                               const MakeOptions& make_options) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    LoopEnv env({.offload_threads = 0});
    ShmTransport::Options options;
    if (make_options) options = make_options();
    options.self = kChild;
    options.bind = "shm://";
    auto transport = ShmTransport::Create(&env, std::move(options));
    if (!transport.ok()) _exit(1);
    (*transport)->SetReceiver([&](NodeId from, Frame frame) {
      behaviour(**transport, from, std::move(frame));
    });
    const std::string endpoint = (*transport)->endpoint();
    if (write(fd, endpoint.data(), endpoint.size()) < 0) _exit(1);
    env.Run();
    _exit(0);
  }

  pid_t pid_ = -1;
  std::string endpoint_;
};

struct Arena {
  Buffer Noise(uint64_t seed, size_t size) {
    Buffer buffer = pool.Allocate(size);
    std::memcpy(buffer.mutable_data(), parley::Noise(seed, size).data(), size);
    return buffer;
  }
  std::shared_ptr<SharedArenas> arenas = std::make_shared<SharedArenas>();
  BufferPool pool{64 * kMiB, arenas};
};

}  // namespace parley::shm_nodes

#endif  // PARLEY_TESTS_CONFORMANCE_SHM_NODES_H_
