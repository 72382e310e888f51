// What ShmTransport lends: that it is not copied, that it comes back - also from the dead -, that
// it is bounded, and what happens where there is nothing to lend from. Real processes.
#include <csignal>
#include <latch>
#include <utility>
#include <vector>

#include "ps/base/payload_copy.h"
#include "tests/conformance/shm_nodes.h"

namespace parley {
namespace {

using namespace shm_nodes;  // NOLINT: a test's own

// Answers with the payload itself, and with the bytes of payload that have been copied here so far.
void EchoWithCopies(Transport& transport, NodeId from, Frame frame) {
  Frame answer = MakeFrame(frame.header.tick(), std::move(frame.payload));
  answer.header.set_pull_tick(CountPayloadCopies().bytes);
  transport.Send(from, std::move(answer)).IgnoreError();
}

TEST(ShmLending, WhatLiesInAnArenaIsNeverCopied) {
  ChildProcess child(EchoWithCopies);
  Arena arena;
  Node node({.self = kParent, .arenas = arena.arenas});
  node.Do([&](ShmTransport& t) { ASSERT_TRUE(t.Connect(kChild, child.endpoint()).ok()); });
  uint64_t childs = 0;
  // Sends the payload there and back; the bytes copied here and there meanwhile.
  const auto round = [&](Buffer payload) -> std::pair<uint64_t, uint64_t> {
    const std::string expected(payload.view());
    const uint64_t before = CountPayloadCopies().bytes;
    EXPECT_TRUE(node.Send(kChild, MakeFrame(1, {std::move(payload)})).ok());
    EXPECT_TRUE(WaitFor([&] { return node.received() > 0; }));
    const std::vector<Frame> answer = node.Take();
    if (answer.empty()) return {0, 0};
    EXPECT_TRUE(answer[0].payload[0].view() == expected);
    const uint64_t said = answer[0].header.pull_tick();
    return {CountPayloadCopies().bytes - before, said - std::exchange(childs, said)};
  };
  using Copies = std::pair<uint64_t, uint64_t>;
  // There it is read where it lies. Back it travels from memory that is not the child's own, so the
  // child makes a copy once, in its arena - after it has told its count.
  EXPECT_EQ(round(arena.Noise(1, kMiB)), (Copies{0, 0}));
  EXPECT_EQ(round(arena.Noise(2, 100'000)), (Copies{0, kMiB}));
  // From the heap it is copied into an arena once, here.
  EXPECT_EQ(round(Noise(3, kMiB)), (Copies{kMiB, 100'000}));
  // What is small is copied into the ring and out of it, on each side.
  EXPECT_EQ(round(arena.Noise(4, 1024)), (Copies{2 * 1024, kMiB + 1024}));
}

TEST(ShmLending, TheDeadGiveBackWhatTheyHeld) {
  std::vector<Frame> held;  // in the child
  ChildProcess child([&](Transport& transport, NodeId from, Frame frame) {
    held.push_back(std::move(frame));
    if (held.size() == 20) transport.Send(from, MakeFrame(1)).IgnoreError();
  });
  Arena arena;
  Node node({.self = kParent, .arenas = arena.arenas});
  node.Do([&](ShmTransport& t) { ASSERT_TRUE(t.Connect(kChild, child.endpoint()).ok()); });
  Buffer payload = arena.Noise(1, kMiB);
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(node.Send(kChild, MakeFrame(i, {payload.Slice(0, kMiB / 2)})).ok());
  }
  ASSERT_TRUE(WaitFor([&] { return node.received() == 1; }));
  EXPECT_EQ(node.LentTo(kChild), 10 * kMiB);
  EXPECT_FALSE(payload.unique());
  child.Kill();
  EXPECT_TRUE(WaitFor([&] { return node.LentTo(kChild) == 0; }));
  EXPECT_TRUE(WaitFor([&] { return payload.unique(); }));
}

TEST(ShmLending, WhatTheDeadHaveLentStaysReadable) {
  ChildProcess child([&](Transport& transport, NodeId from, Frame frame) {
    transport.Send(from, MakeFrame(1, {Noise(7, frame.header.tick())})).IgnoreError();
    if (frame.header.tick() == 0) kill(getpid(), SIGKILL);
  });
  Node node({.self = kParent});
  node.Do([&](ShmTransport& t) { ASSERT_TRUE(t.Connect(kChild, child.endpoint()).ok()); });
  ASSERT_TRUE(node.Send(kChild, MakeFrame(3 * kMiB)).ok());
  ASSERT_TRUE(node.Send(kChild, MakeFrame(200'000)).ok());
  ASSERT_TRUE(node.Send(kChild, MakeFrame(0)).ok());
  ASSERT_TRUE(WaitFor([&] { return node.received() >= 2; }));
  child.Kill();
  const std::vector<Frame> frames = node.Take();
  EXPECT_TRUE(frames[0].payload[0].view() == Noise(7, 3 * kMiB).view());
  EXPECT_TRUE(frames[1].payload[0].view() == Noise(7, 200'000).view());
}

// As a server that keeps what is pushed until the step is complete, of which more is to come.
TEST(ShmLending, PastTheBoundPayloadGoesThroughTheRing) {
  constexpr size_t kFrames = 40;
  Arena arena;
  Node sender({.self = kParent, .max_lent_bytes = kMiB, .arenas = arena.arenas});
  Node receiver({.self = kChild, .bind = "shm://"});
  sender.Do([&](ShmTransport& t) { ASSERT_TRUE(t.Connect(kChild, receiver.endpoint()).ok()); });
  const Buffer payload = arena.Noise(1, kMiB / 4), large = arena.Noise(2, 3 * kMiB);
  const auto round = [&] {
    for (size_t i = 0; i < kFrames; ++i) {
      ASSERT_TRUE(sender.Send(kChild, MakeFrame(i, {i == 20 ? large : payload})).ok());
    }
    ASSERT_TRUE(WaitFor([&] { return receiver.received() == kFrames; }));
    EXPECT_EQ(sender.LentTo(kChild), kMiB) << "four are lent";
    EXPECT_LT(sender.CpuOf(absl::Milliseconds(300)), absl::Milliseconds(60)) << "the loop sleeps";
    const std::vector<Frame> frames = receiver.Take();
    for (size_t i = 0; i < kFrames; ++i) {
      EXPECT_EQ(frames[i].header.tick(), i);
      EXPECT_TRUE(frames[i].payload[0].view() == (i == 20 ? large : payload).view());
    }
  };
  round();
  EXPECT_TRUE(WaitFor([&] { return sender.LentTo(kChild) == 0; }));
  round();  // it is lent to again
}

TEST(ShmLending, AReceiverThatDoesNotReadKeepsABoundedPartOfOurMemory) {
  constexpr int kQueue = 50, kFrames = 500;
  Arena arena;
  Node sender(
      {.self = kParent, .queue_frames = kQueue, .max_lent_bytes = kMiB, .arenas = arena.arenas});
  Node receiver({.self = kChild, .bind = "shm://"});
  sender.Do([&](ShmTransport& t) { ASSERT_TRUE(t.Connect(kChild, receiver.endpoint()).ok()); });
  const Buffer payload = arena.Noise(1, kMiB / 4);
  ASSERT_TRUE(sender.Send(kChild, MakeFrame(0, {payload})).ok());
  ASSERT_TRUE(WaitFor([&] { return receiver.received() == 1; }));
  std::latch reads_again(1);
  receiver.Post([&] { reads_again.wait(); });
  int taken = 1;
  absl::Status status;
  for (; taken < kFrames && status.ok(); taken += status.ok() ? 1 : 0) {
    status = sender.Send(kChild, MakeFrame(taken, {payload}));
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  // Four are lent; fewer than four fill the ring.
  EXPECT_GE(taken, 4 + kQueue);
  EXPECT_LE(taken, 8 + kQueue);
  EXPECT_EQ(sender.LentTo(kChild), kMiB);
  EXPECT_LT(sender.CpuOf(absl::Milliseconds(300)), absl::Milliseconds(60)) << "the loop sleeps";
  reads_again.count_down();
  size_t got = 0;
  EXPECT_TRUE(WaitFor([&] {
    for (const Frame& frame : receiver.Take()) {
      EXPECT_EQ(frame.header.tick(), got++);
      EXPECT_TRUE(frame.payload[0].view() == payload.view());
    }
    return got == static_cast<size_t>(taken);
  }));
  EXPECT_TRUE(WaitFor([&] { return sender.LentTo(kChild) == 0; }));
}

TEST(ShmLending, WithoutArenasAllGoesThroughATinyRing) {
  const auto none = [] {
    return std::make_shared<SharedArenas>(SharedArenas::Options{.max_bytes = 0});
  };
  Node a({.self = kParent, .ring_bytes = 4096, .arenas = none()});
  Node b({.self = kChild, .bind = "shm://", .ring_bytes = 4096, .arenas = none()});
  a.Do([&](ShmTransport& t) { ASSERT_TRUE(t.Connect(kChild, b.endpoint()).ok()); });
  ASSERT_TRUE(a.Send(kChild, MakeFrame(0)).ok());
  ASSERT_TRUE(WaitFor([&] { return b.received() == 1; }));
  b.Take();
  std::vector<Buffer> payload;
  for (uint64_t i = 0; i < 40; ++i) payload.push_back(Noise(i, 4 + (i * i * i * 40) / 4 * 4));
  for (const uint64_t round : {1, 2, 3}) {
    ASSERT_TRUE(a.Send(kChild, MakeFrame(round, payload)).ok());
    ASSERT_TRUE(b.Send(kParent, MakeFrame(round, payload)).ok());
  }
  for (Node* node : {&a, &b}) {
    ASSERT_TRUE(WaitFor([&] { return node->received() == 3; }));
    for (const Frame& frame : node->Take()) {
      ASSERT_EQ(frame.payload.size(), payload.size());
      for (size_t i = 0; i < payload.size(); ++i) {
        EXPECT_TRUE(frame.payload[i].view() == payload[i].view()) << i;
      }
    }
  }
}

TEST(ShmLending, KeysAndEncodedValuesArePrivateToTheReader) {
  Arena arena;
  Node sender({.self = kParent, .arenas = arena.arenas});
  Node receiver({.self = kChild, .bind = "shm://"});
  sender.Do([&](ShmTransport& t) { ASSERT_TRUE(t.Connect(kChild, receiver.endpoint()).ok()); });
  // Keys, their values, encoded values: three buffers, all large enough to be lent.
  Buffer keys = arena.Noise(1, 80'000), values = arena.Noise(2, 40'000),
         encoded = arena.Noise(3, 30'000);
  Frame frame;
  frame.header.set_kind(pb::PUSH);
  frame.header.set_job(5);
  pb::Part* part = frame.header.add_part();
  part->set_keys(10'000);
  part->set_key_bytes(80'000);
  part->set_count(10'000);
  part = frame.header.add_part();
  part->set_count(10'000);
  part->set_value_bytes(30'000);
  frame.payload = {keys, values, encoded};
  ASSERT_TRUE(sender.Send(kChild, std::move(frame)).ok());
  ASSERT_TRUE(WaitFor([&] { return receiver.received() == 1; }));
  const std::vector<Frame> got = receiver.Take();
  // The sender, were it a liar, changes its memory under the reader's eyes.
  for (Buffer* buffer : {&keys, &values, &encoded}) {
    std::memset(buffer->mutable_data(), 0, buffer->size());
  }
  EXPECT_TRUE(got[0].payload[0].view() == Noise(1, 80'000).view());
  EXPECT_TRUE(got[0].payload[1].view() == std::string(40'000, '\0')) << "read in place";
  EXPECT_TRUE(got[0].payload[2].view() == Noise(3, 30'000).view());
}

}  // namespace
}  // namespace parley
