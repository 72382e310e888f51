// Payload in a GPU's memory over shared memory: it is lent, whatever its size, and no CPU touches
// it. The simulated GPUs are guarded, so who does dies.
#include <gmock/gmock.h>

#include <numeric>

#include "ps/base/payload_copy.h"
#include "ps/gpu/device_arenas.h"
#include "ps/gpu/simulated_gpu.h"
#include "ps/net/path_transport.h"
#include "ps/net/zmq_transport.h"
#include "tests/conformance/shm_liar.h"
#include "tests/conformance/shm_nodes.h"

namespace parley {
namespace {

using namespace shm_nodes;  // NOLINT: a test's own
using ::testing::HasSubstr;

// A guarded GPU with memory to lend.
struct DeviceArena {
  explicit DeviceArena(uint64_t seed)
      : memory(std::make_shared<DeviceArenas>(
            Arenas::Options{.arena_bytes = 2 * kMiB, .max_bytes = 64 * kMiB})) {
    gpu = *memory.Open([&]() -> absl::StatusOr<std::unique_ptr<Gpu>> {
      return CreateSimulatedGpu({.seed = seed, .guard = true});
    });
    stream = *gpu->NewStream();
  }
  ShmTransport::Options Options(NodeId self, const std::string& bind = "") const {
    ShmTransport::Options options;
    options.self = self;
    options.bind = bind;
    options.device_arenas = memory.arenas();
    options.device_mapper = memory.arenas();
    return options;
  }
  Buffer Noise(uint64_t seed, size_t size) {
    const Buffer noise = parley::Noise(seed, size);
    Buffer buffer = memory.pool()->Allocate(size);
    EXPECT_TRUE(stream->CopyIn(buffer.mutable_data(), noise.data(), size).ok());
    EXPECT_TRUE(stream->Sync().ok());
    return buffer;
  }
  std::string Read(const Buffer& buffer) {
    EXPECT_TRUE(buffer.on_device());
    std::string bytes(buffer.size(), '\0');
    EXPECT_TRUE(stream->CopyOut(bytes.data(), buffer.data(), buffer.size()).ok());
    EXPECT_TRUE(stream->Sync().ok());
    return bytes;
  }
  GpuMemory memory;
  std::shared_ptr<Gpu> gpu;
  std::unique_ptr<GpuStream> stream;
};

TEST(ShmDevice, BetweenTwoNodesItIsLentWhateverItsSize) {
  DeviceArena a(1), b(2);
  Node sender(a.Options(kParent)), receiver(b.Options(kChild, "shm://"));
  sender.Do([&](ShmTransport& t) { ASSERT_TRUE(t.Connect(kChild, receiver.endpoint()).ok()); });
  size_t lent = 0;
  const uint64_t before = CountPayloadCopies().bytes;
  for (const size_t size : {size_t{4}, size_t{1000}, 100'000 * sizeof(float), 3 * kMiB}) {
    // Host memory in the same frame.
    Frame frame = MakeFrame(size, {a.Noise(size, size), Noise(7, 16)});
    ASSERT_TRUE(sender.Send(kChild, std::move(frame)).ok());
    lent += size;
  }
  ASSERT_TRUE(WaitFor([&] { return receiver.received() == 4; }));
  EXPECT_EQ(CountPayloadCopies().bytes - before, 4 * 2 * 16);
  EXPECT_EQ(sender.LentTo(kChild), lent);
  for (const Frame& frame : receiver.Take()) {
    const uint64_t size = frame.header.tick();
    EXPECT_EQ(b.Read(frame.payload[0]), parley::Noise(size, size).view());
    EXPECT_FALSE(frame.payload[1].on_device());
    EXPECT_EQ(frame.payload[1].view(), parley::Noise(7, 16).view());
  }
  EXPECT_TRUE(WaitFor([&] { return sender.LentTo(kChild) == 0; }));
}

TEST(ShmDevice, BetweenTwoProcessesAndBackFromMemoryOfItsOwn) {
  // Static: the child's. It answers with each payload twice: a copy in its own memory.
  static std::unique_ptr<DeviceArena> childs;
  ChildProcess child(
      [](Transport& transport, NodeId from, Frame frame) {
        const Buffer& got = frame.payload[0];
        Buffer copy = childs->memory.pool()->Allocate(got.size());
        bool ok = childs->stream->CopyWithin(copy.mutable_data(), got.data(), got.size()).ok();
        ok = ok && childs->stream->Sync().ok();
        if (!ok) _exit(3);
        transport.Send(from, MakeFrame(frame.header.tick(), {copy})).IgnoreError();
      },
      [] {
        childs = std::make_unique<DeviceArena>(4);
        return childs->Options(kChild);
      });
  DeviceArena own(3);
  Node node(own.Options(kParent));
  node.Do([&](ShmTransport& t) { ASSERT_TRUE(t.Connect(kChild, child.endpoint()).ok()); });
  for (uint64_t i = 1; i <= 3; ++i) {
    ASSERT_TRUE(node.Send(kChild, MakeFrame(i, {own.Noise(i, i * 50'000)})).ok());
  }
  ASSERT_TRUE(WaitFor([&] { return node.received() == 3; }));
  std::vector<Frame> frames = node.Take();
  for (uint64_t i = 1; i <= 3; ++i) {
    EXPECT_EQ(own.Read(frames[i - 1].payload[0]), parley::Noise(i, i * 50'000).view());
  }
  // What the dead have lent stays readable.
  child.Kill();
  EXPECT_EQ(own.Read(frames[2].payload[0]), parley::Noise(3, 150'000).view());
}

TEST(ShmDevice, ItIsLentPastTheBoundForOthersAndCounts) {
  DeviceArena a(1), b(2);
  Arena host;
  ShmTransport::Options options = a.Options(kParent);
  options.max_lent_bytes = kMiB;
  options.arenas = host.arenas;
  Node sender(std::move(options)), receiver(b.Options(kChild, "shm://"));
  sender.Do([&](ShmTransport& t) { ASSERT_TRUE(t.Connect(kChild, receiver.endpoint()).ok()); });
  const Buffer device = a.Noise(1, 2 * kMiB), on_host = host.Noise(2, kMiB / 2);
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(sender.Send(kChild, MakeFrame(0, {device, on_host})).ok());
  }
  ASSERT_TRUE(WaitFor([&] { return receiver.received() == 3; }));
  EXPECT_EQ(sender.LentTo(kChild), 6 * kMiB);  // and the host's went through the ring
  for (const Frame& frame : receiver.Take()) {
    EXPECT_EQ(b.Read(frame.payload[0]), parley::Noise(1, 2 * kMiB).view());
    EXPECT_EQ(frame.payload[1].view(), on_host.view());
  }
}

TEST(ShmDevice, WhatCannotBeLentIsNotSent) {
  DeviceArena a(1), b(2);
  Node sender(a.Options(kParent)), receiver(b.Options(kChild, "shm://"));
  sender.Do([&](ShmTransport& t) { ASSERT_TRUE(t.Connect(kChild, receiver.endpoint()).ok()); });
  // Of another's arenas, borrowed or not.
  const absl::Status refused = sender.Send(kChild, MakeFrame(1, {b.Noise(1, 64)}));
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("in a GPU's memory"));
  ASSERT_TRUE(sender.Send(kChild, MakeFrame(2, {a.Noise(1, 64)})).ok());
  ASSERT_TRUE(WaitFor([&] { return receiver.received() == 1; }));
  const std::vector<Frame> got = receiver.Take();
  EXPECT_EQ(receiver.Send(kParent, MakeFrame(3, got[0].payload)).code(),
            absl::StatusCode::kInvalidArgument);
  // By tcp.
  LoopEnv env({.offload_threads = 0});
  auto zmq = ZmqTransport::Create(&env, {.self = kA, .bind = "tcp://127.0.0.1:0"});
  ASSERT_TRUE(zmq.ok()) << zmq.status();
  EXPECT_EQ((*zmq)->Send(kB, MakeFrame(1, {a.Noise(1, 64)})).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(ShmDevice, WhoMapsNoneGivesUpTheConnectionAndSaysWhy) {
  DeviceArena a(1);
  std::mutex mu;
  std::string log;
  Node sender(a.Options(kParent));
  Node receiver({.self = kChild, .bind = "shm://", .log = [&](const std::string& line) {
                   std::lock_guard lock(mu);
                   log += line + "\n";
                 }});
  sender.Do([&](ShmTransport& t) { ASSERT_TRUE(t.Connect(kChild, receiver.endpoint()).ok()); });
  ASSERT_TRUE(sender.Send(kChild, MakeFrame(1, {a.Noise(1, 64)})).ok());
  EXPECT_TRUE(WaitFor([&] {
    std::lock_guard lock(mu);
    return log.find("arena 256 of 2097152 bytes in a GPU's memory: this node maps none") !=
           std::string::npos;
  })) << log;
  EXPECT_EQ(receiver.received(), 0u);
}

// Without a GPU yet, as a server before its first table.
TEST(ShmDevice, WhoUsesNoGpuYetMapsNone) {
  DeviceArena a(1);
  const auto later = std::make_shared<DeviceArenas>();
  EXPECT_EQ(later->Map(0, 4096).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(later->Allocate(64), nullptr);
  BufferPool pool(0, later);
  EXPECT_THROW(pool.Allocate(64), std::bad_alloc);
}

TEST(ShmDevice, LiesAboutAGpusMemoryCostTheConnection) {
  DeviceArena b(2);
  std::atomic<uint64_t> refused{0};
  Node node(b.Options(kB, "shm://"));
  const SharedMemory file = *SharedMemory::Create("arena", kMiB);
  const auto refusals = [&] {
    uint64_t count = 0;
    node.Do([&](ShmTransport& t) { count = t.counters().refused; });
    return count;
  };
  const auto expect_refused = [&](const char* what, const std::function<void(Liar&)>& lie) {
    const uint64_t before = refusals();
    Liar liar(node.endpoint());
    liar.Greet();
    lie(liar);
    EXPECT_TRUE(WaitFor([&] { return refusals() > before; })) << what;
  };
  constexpr auto kDevice = shm::ArenaKind::kDevice;
  const auto notice = [&](const char* what, const shm::ArenaNotice& said) {
    expect_refused(what, [&](Liar& liar) { liar.Say(shm::EncodeArenaNotice(said), {file.fd()}); });
  };
  notice("another size", {256, kMiB + 4096, kDevice});
  notice("none", {256, 0, kDevice});
  notice("too high a number", {512, kMiB, kDevice});
  notice("a host's number", {0, kMiB, kDevice});
  expect_refused("twice", [&](Liar& liar) {
    for (int i = 0; i < 2; ++i) {
      liar.Say(shm::EncodeArenaNotice({256, kMiB, kDevice}), {file.fd()});
    }
  });
}

}  // namespace
}  // namespace parley
