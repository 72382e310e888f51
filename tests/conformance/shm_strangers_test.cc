// ShmTransport among liars: greetings, rings, references and releases that are not what they say.
// Each is refused and counted, loses its connection, and leaves everybody else's alone.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ps/base/shared_arenas.h"
#include "tests/conformance/shm_liar.h"

namespace parley {
namespace {

int UnsealedMemory(size_t size) {
  const int fd = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  EXPECT_EQ(ftruncate(fd, static_cast<off_t>(size)), 0);
  return fd;
}

TEST_F(ShmStrangers, GreetingsThatAreNone) {
  const std::string good = shm::EncodeGreeting(Liar::GoodGreeting());
  ExpectRefused("garbage", [](Liar& liar) { liar.Say("GET / HTTP/1.1", {}); });
  ExpectRefused("cut short", [&](Liar& liar) { liar.Say(good.substr(0, 20), {}); });
  ExpectRefused("too long", [&](Liar& liar) { liar.Say(good + std::string(40, 'x'), {}); });
  ExpectRefused("another version of the handshake", [&](Liar& liar) {
    std::string other = good;
    other[4] = 1;
    liar.Say(other, {liar.segment().fd(), liar.wake_fd()});
  });
  const auto with = [&](const char* what, const std::function<void(shm::Greeting&)>& change) {
    ExpectRefused(what, [&](Liar& liar) {
      shm::Greeting greeting = Liar::GoodGreeting();
      change(greeting);
      liar.Greet(greeting);
    });
  };
  with("another protocol", [](shm::Greeting& g) { g.protocol = kProtocolVersion + 1; });
  with("no node", [](shm::Greeting& g) { g.node = kNoNode; });
  with("the node itself", [](shm::Greeting& g) { g.node = kB; });
  with("the scheduler", [](shm::Greeting& g) { g.node = kSchedulerNode; });
  with("for somebody else", [](shm::Greeting& g) { g.to = kA; });
  with("a ring of no size", [](shm::Greeting& g) { g.ring_bytes = 0; });
  with("a ring of an odd size", [](shm::Greeting& g) { g.ring_bytes = kRingBytes + 8; });
  with("a ring larger than its memory", [](shm::Greeting& g) { g.ring_bytes = 2 * kRingBytes; });
}

TEST_F(ShmStrangers, DescriptorsThatAreNotWhatTheyShould) {
  const std::string good = shm::EncodeGreeting(Liar::GoodGreeting());
  const size_t size = shm::kControlBytes + kRingBytes;
  ExpectRefused("none", [&](Liar& liar) { liar.Say(good, {}); });
  ExpectRefused("one", [&](Liar& liar) { liar.Say(good, {liar.segment().fd()}); });
  ExpectRefused("a segment that could shrink", [&](Liar& liar) {
    const shm::Fd unsealed(UnsealedMemory(size));
    liar.Say(good, {unsealed.get(), liar.wake_fd()});
  });
  ExpectRefused("a file", [&](Liar& liar) {
    const shm::Fd file(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
    liar.Say(good, {file.get(), liar.wake_fd()});
  });
  ExpectRefused("a wake-up that is a pipe", [&](Liar& liar) {
    int pipes[2];
    ASSERT_EQ(pipe2(pipes, O_CLOEXEC | O_NONBLOCK), 0);
    const shm::Fd in(pipes[0]), out(pipes[1]);
    liar.Say(good, {liar.segment().fd(), out.get()});
  });
  ExpectRefused("a wake-up that may block", [&](Liar& liar) {
    const shm::Fd blocking(eventfd(0, EFD_CLOEXEC));
    liar.Say(good, {liar.segment().fd(), blocking.get()});
  });
}

TEST_F(ShmStrangers, RingsThatLie) {
  ExpectRefusedLater("written further than the ring is long",
                     [](Liar& liar) { liar.ShowUpTo(kRingBytes + 8); });
  ExpectRefusedLater("written backwards", [](Liar& liar) { liar.ShowUpTo(~uint64_t{7}); });
  ExpectRefusedLater("a record of no kind", [](Liar& liar) {
    shm::PutU64(uint64_t{77} << 32, liar.ring().data());
    liar.ShowUpTo(8);
  });
  ExpectRefusedLater("a record larger than what is written", [](Liar& liar) {
    shm::PutU64(0xfffffff0 | uint64_t{1} << 32, liar.ring().data());
    liar.ShowUpTo(64);
  });
  ExpectRefusedLater("a part without its size", [](Liar& liar) {
    liar.Put(shm::RecordKind::kBytes, 0, "1234");
    liar.Show();
  });
  ExpectRefusedLater("more bytes than the part has", [](Liar& liar) {
    std::string body(100, '\0');
    body[0] = 50;
    liar.Put(shm::RecordKind::kBytes, 0, body);
    liar.Show();
  });
  ExpectRefusedLater("the rest of a part that never began", [](Liar& liar) {
    liar.Put(shm::RecordKind::kMoreBytes, 0, "abc");
    liar.Show();
  });
  ExpectRefusedLater("another part before the first is whole", [](Liar& liar) {
    std::string body(16, '\0');
    body[0] = 50;
    liar.Put(shm::RecordKind::kBytes, 0, body);
    liar.PutBytes("x", 0);
    liar.Show();
  });
  ExpectRefusedLater("a part over max_part_bytes", [](Liar& liar) {
    liar.PutBytes(EncodedHeader(MakeFrame(1), kC), shm::kMoreParts);
    std::string body(8, '\0');
    shm::PutU64((size_t{1} << 20) + 1, reinterpret_cast<std::byte*>(body.data()));
    liar.Put(shm::RecordKind::kBytes, 0, body);
    liar.Show();
  });
  ExpectRefusedLater("a header of 2^63 bytes", [](Liar& liar) {
    std::string body(8, '\0');
    body[7] = '\x80';
    liar.Put(shm::RecordKind::kBytes, 0, body);
    liar.Show();
  });
  ExpectRefusedLater("a frame of more than max_parts", [](Liar& liar) {
    liar.PutBytes(EncodedHeader(MakeFrame(1), kC), shm::kMoreParts);
    for (int i = 0; i < 9; ++i) liar.PutBytes("data", shm::kMoreParts);
    liar.Show();
  });
}

TEST_F(ShmStrangers, FramesThatAreNoneLoseTheFrameAlone) {
  Liar liar(endpoint_);
  liar.Greet();
  ASSERT_TRUE(liar.AwaitGreeting(rig_.get()));
  const uint64_t before = rig_->Counters(kB).refused;
  liar.PutBytes("no frame at all", 0);
  liar.PutBytes(EncodedHeader(MakeFrame(1), kA), 0);                 // A's name
  liar.PutBytes(EncodedHeader(MakeFrame(1, {Noise(1, 8)}), kC), 0);  // no payload
  liar.PutBytes("", 0);
  liar.Show();
  EXPECT_TRUE(rig_->WaitFor([&] { return rig_->Counters(kB).refused == before + 4; }));
  ExpectBusinessAsUsual();
  // It is still connected, and can be answered.
  EXPECT_TRUE(rig_->Send(kB, kC, MakeFrame(1)).ok());
}

TEST_F(ShmStrangers, ReferencesThatLeadElsewhere) {
  const SharedMemory arena = *SharedMemory::Create("arena", size_t{1} << 20);
  const std::string header = EncodedHeader(MakeFrame(1, {Noise(1, 64)}), kC);
  const auto announced = [&](const char* what, const shm::Reference& reference) {
    ExpectRefusedLater(what, [&](Liar& liar) {
      liar.Say(shm::EncodeArenaNotice({0, arena.size()}), {arena.fd()});
      liar.PutBytes(header, shm::kMoreParts);
      liar.PutReference(reference);
      liar.Show();
    });
  };
  announced("past the end", {0, arena.size() - 63, 64, 1});
  announced("from past the end", {0, arena.size() + 1, 0, 1});
  announced("around the end of numbers", {0, ~uint64_t{0} - 31, 64, 1});
  announced("longer than max_part_bytes", {0, 0, (size_t{1} << 20) + 1, 1});
  announced("an arena never announced", {1, 0, 64, 1});
  announced("an arena that cannot be", {1u << 31, 0, 64, 1});
  const auto notice = [&](const char* what, const shm::ArenaNotice& said, int fd) {
    ExpectRefusedLater(what, [&](Liar& liar) { liar.Say(shm::EncodeArenaNotice(said), {fd}); });
  };
  notice("an arena of another size", {0, arena.size() + 4096}, arena.fd());
  notice("an arena with too high a number", {SharedArenas::kMaxArenas, arena.size()}, arena.fd());
  const auto kDevice = shm::ArenaKind::kDevice;
  notice("a GPU's memory, where none is mapped", {256, arena.size(), kDevice}, arena.fd());
  notice("a GPU's memory by the number of another kind", {255, arena.size(), kDevice}, arena.fd());
  notice("a GPU's memory with too high a number", {512, arena.size(), kDevice}, arena.fd());
  notice("an arena of a kind that there is not", {256, arena.size(), shm::ArenaKind{2}},
         arena.fd());
  const shm::Fd unsealed(UnsealedMemory(4096));
  notice("an arena that could shrink", {0, 4096}, unsealed.get());
  ExpectRefusedLater("an arena twice", [&](Liar& liar) {
    for (int i = 0; i < 2; ++i) liar.Say(shm::EncodeArenaNotice({0, arena.size()}), {arena.fd()});
  });
  ExpectRefusedLater("a header by reference", [&](Liar& liar) {
    liar.Say(shm::EncodeArenaNotice({0, arena.size()}), {arena.fd()});
    liar.PutReference({0, 0, 64, 1});
    liar.Show();
  });
}

TEST_F(ShmStrangers, ReleasesOfWhatIsNotLent) {
  ExpectRefusedLater("never", [](Liar& liar) {
    liar.PutRelease(5);
    liar.Show();
  });
  ExpectRefusedLater("cut short", [](Liar& liar) {
    liar.Put(shm::RecordKind::kRelease, 0, "1234");
    liar.Show();
  });
  ExpectRefusedLater("twice", [&](Liar& liar) {
    // As soon as the node has taken the greeting in.
    ASSERT_TRUE(rig_->WaitFor([&] { return rig_->Send(kB, kC, MakeFrame(0)).ok(); }));
    ASSERT_TRUE(rig_->Send(kB, kC, MakeFrame(1, {Noise(1, 100'000)})).ok());
    shm::RingReader reader(shm::RingOf(liar.node_segment()));
    uint64_t token = 0;
    while (token == 0) {
      const auto record = reader.Next(shm::ControlOf(liar.node_segment())->written.load());
      ASSERT_TRUE(record.ok() && record->has_value());
      if ((*record)->kind == shm::RecordKind::kReference) {
        token = shm::ParseReference((*record)->body)->token;
      }
    }
    liar.PutRelease(token);
    liar.PutRelease(token);
    liar.Show();
  });
}

TEST_F(ShmStrangers, AReaderThatSaysItHasReadMoreThanIsWritten) {
  ExpectRefusedLater("ahead", [&](Liar& liar) {
    ASSERT_TRUE(rig_->WaitFor([&] { return rig_->Send(kB, kC, MakeFrame(0)).ok(); }));
    liar.control()->read.store(uint64_t{1} << 40);
    // Until the node looks, which it does when its ring seems full.
    absl::Status status;
    for (int i = 0; i < 10'000 && !absl::IsUnavailable(status); ++i) {
      status = rig_->Send(kB, kC, MakeFrame(1, {Noise(1, 4096)}));
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  });
}

TEST_F(ShmStrangers, CrowdsThatSayNothingAreBounded) {
  std::vector<std::unique_ptr<Liar>> crowd;
  const uint64_t before = rig_->Counters(kB).refused;
  for (int i = 0; i < 70; ++i) crowd.push_back(std::make_unique<Liar>(endpoint_));
  EXPECT_TRUE(rig_->WaitFor([&] { return rig_->Counters(kB).refused >= before + 6; }));
  ExpectBusinessAsUsual();
  crowd.clear();
  // There is room again.
  rig_->Start(kC, {.listens = false});
  ASSERT_TRUE(rig_->Connect(kC, kB, endpoint_).ok());
  const size_t heard = rig_->ReceivedCount(kB);
  ASSERT_TRUE(rig_->Send(kC, kB, MakeFrame(1)).ok());
  EXPECT_TRUE(rig_->WaitForFrames(kB, heard + 1));
}

TEST_F(ShmStrangers, WhatAPeerSaidBeforeItsEndIsHeard) {
  const size_t heard = rig_->ReceivedCount(kB);
  {
    Liar peer(endpoint_);  // an honest one
    peer.Greet();
    ASSERT_TRUE(peer.AwaitGreeting(rig_.get()));
    const SharedMemory arena = *SharedMemory::Create("arena", 4096);
    std::memcpy(arena.data(), "eight by", 8);
    peer.Say(shm::EncodeArenaNotice({0, arena.size()}), {arena.fd()});
    peer.PutBytes(EncodedHeader(MakeFrame(9, {Noise(1, 8)}), kC), shm::kMoreParts);
    peer.PutReference({0, 0, 8, 1});
    peer.Show();
  }
  ASSERT_TRUE(rig_->WaitForFrames(kB, heard + 1));
  const ReceivedFrame got = rig_->Received(kB).back();
  EXPECT_EQ(got.from, kC);
  EXPECT_EQ(got.frame.payload[0].view(), "eight by");
}

}  // namespace
}  // namespace parley
