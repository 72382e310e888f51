// ShmTransport's resources when peers misbehave or the system has no more: lent memory of broken
// connections, wake-ups, descriptors.
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <chrono>

#include "gtest/gtest.h"
#include "ps/net/shm/shm_transport.h"
#include "tests/conformance/shm_liar.h"

namespace parley {
namespace {

using ShmResources = ShmStrangers;

// Bytes that B keeps for the peer's sake.
size_t LentTo(TransportRig* rig, NodeId peer) {
  size_t bytes = 0;
  rig->Do(kB, [&](Transport& b) { bytes = dynamic_cast<ShmTransport&>(b).LentTo(peer); });
  return bytes;
}

// A connection that is given up says nothing of whether the peer still reads.
TEST_F(ShmResources, WhatIsLentIsKeptUntilThePeerHangsUp) {
  Liar liar(endpoint_);
  liar.Greet();
  ASSERT_TRUE(liar.AwaitGreeting(rig_.get()));
  ASSERT_TRUE(rig_->WaitFor([&] { return rig_->Send(kB, kC, MakeFrame(0)).ok(); }));
  ASSERT_TRUE(rig_->Send(kB, kC, MakeFrame(1, {Noise(1, 100'000)})).ok());
  EXPECT_EQ(LentTo(rig_.get(), kC), 100'000);
  liar.PutRelease(5);
  liar.Show();
  EXPECT_TRUE(liar.IsOut(rig_.get()));
  EXPECT_FALSE(rig_->Send(kB, kC, MakeFrame(2)).ok());
  ExpectBusinessAsUsual();
  EXPECT_EQ(LentTo(rig_.get(), kC), 100'000);
  liar.socket() = shm::Fd();
  EXPECT_TRUE(rig_->WaitFor([&] { return LentTo(rig_.get(), kC) == 0; }));
}

TEST_F(ShmResources, AReleaseAloneWakesNobodyAtOnce) {
  Liar peer(endpoint_);  // an honest one, that sleeps
  peer.Greet();
  ASSERT_TRUE(peer.AwaitGreeting(rig_.get()));
  peer.control()->sleeping.store(1);
  const SharedMemory arena = *SharedMemory::Create("arena", 4096);
  peer.Say(shm::EncodeArenaNotice({0, arena.size()}), {arena.fd()});
  peer.PutBytes("no frame, so what is lent with it comes back at once", shm::kMoreParts);
  peer.PutReference({0, 0, 8, 77});
  const auto start = std::chrono::steady_clock::now();
  peer.Show();
  pollfd wake{peer.wake_fd(), POLLIN, 0};
  ASSERT_EQ(poll(&wake, 1, 20'000), 1);
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(2));
  shm::RingReader reader(shm::RingOf(peer.node_segment()));
  const auto record = reader.Next(shm::ControlOf(peer.node_segment())->written.load());
  ASSERT_TRUE(record.ok() && record->has_value());
  EXPECT_EQ((*record)->kind, shm::RecordKind::kRelease);
  EXPECT_EQ(shm::GetU64((*record)->body, 0), 77);
}

TEST_F(ShmResources, WhoFillsItsWakeUpMutesItselfAlone) {
  Liar liar(endpoint_);
  liar.Greet();
  ASSERT_TRUE(liar.AwaitGreeting(rig_.get()));
  eventfd_t value;
  eventfd_read(liar.node_wake_fd(), &value);
  ASSERT_EQ(eventfd_write(liar.node_wake_fd(), ~uint64_t{1}), 0);
  for (int i = 0; i < 5; ++i) ExpectBusinessAsUsual();
}

TEST_F(ShmResources, AWakeUpThatCameToBlockIsNotWritten) {
  ExpectRefusedLater("no longer without blocking, and full", [&](Liar& liar) {
    // B has taken the wake-up while it did not block: its own greeting may come before that.
    ASSERT_TRUE(rig_->WaitFor([&] { return rig_->Send(kB, kC, MakeFrame(0)).ok(); }));
    ASSERT_EQ(fcntl(liar.wake_fd(), F_SETFL, 0), 0);
    ASSERT_EQ(eventfd_write(liar.wake_fd(), ~uint64_t{1}), 0);
    liar.control()->sleeping.store(1);
    ASSERT_TRUE(rig_->Send(kB, kC, MakeFrame(1)).ok());
  });
}

TEST_F(ShmResources, WithoutDescriptorsWhoComesHasToWait) {
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const int lowest = dup(0);
  ASSERT_GE(lowest, 0);
  close(lowest);
  rlimit one_more = before;
  one_more.rlim_cur = static_cast<rlim_t>(lowest) + 1;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &one_more), 0);
  const auto cpu = [&] {
    timespec now{};
    rig_->Do(kB, [&](Transport&) { clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now); });
    return absl::DurationFromTimespec(now);
  };
  const absl::Duration start = cpu();
  const auto socket = shm::ConnectTo(ParseEndpoint(endpoint_)->path);  // takes the last one
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(400);
  rig_->WaitFor([&] { return std::chrono::steady_clock::now() > until; });
  const absl::Duration used = cpu() - start;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  ASSERT_TRUE(socket.ok()) << socket.status();
  EXPECT_LT(used, absl::Milliseconds(60)) << "the loop sleeps";
  EXPECT_GE(rig_->Counters(kB).refused, 1);
  shm::Message message;
  EXPECT_TRUE(rig_->WaitFor([&] {
    const auto received = shm::ReceiveMessage(*socket, &message);
    return received.ok() && *received == shm::Received::kMessage;
  })) << "it is taken in once there are some";
}

}  // namespace
}  // namespace parley
