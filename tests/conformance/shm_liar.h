// One end of a shared-memory connection in a test's hands, and two honest nodes beside it.
#ifndef PARLEY_TESTS_CONFORMANCE_SHM_LIAR_H_
#define PARLEY_TESTS_CONFORMANCE_SHM_LIAR_H_

#include <sys/eventfd.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "ps/base/shared_memory.h"
#include "ps/net/address.h"
#include "ps/net/shm/ring.h"
#include "ps/net/shm/segment.h"
#include "ps/net/shm/socket.h"
#include "ps/wire/codec.h"
#include "tests/conformance/transport_rig.h"

namespace parley {

inline constexpr NodeId kA{0xa0a0a0a0a0a0a0a0}, kB{0xb0b0b0b0b0b0b0b0}, kC{0xc0c0c0c0c0c0c0c0};
inline constexpr size_t kRingBytes = size_t{16} << 10;

inline std::string EncodedHeader(const Frame& frame, NodeId sender) {
  pb::FrameHeader header = frame.header;
  header.set_protocol(kProtocolVersion);
  header.set_sender(Value(sender));
  return EncodeHeader(header);
}

// One end of a connection in the test's hands, which can say anything.
class Liar {
 public:
  explicit Liar(const std::string& endpoint) {
    socket_ = *shm::ConnectTo(ParseEndpoint(endpoint)->path);
    segment_ = *SharedMemory::Create("liar", shm::kControlBytes + kRingBytes);
    writer_ = std::make_unique<shm::RingWriter>(shm::RingOf(segment_));
    wake_ = shm::Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  }

  static shm::Greeting GoodGreeting() {
    return {.protocol = kProtocolVersion, .ring_bytes = kRingBytes, .node = kC, .to = kB};
  }
  void Say(const std::string& bytes, const std::vector<int>& fds) {
    EXPECT_TRUE(shm::SendMessage(socket_, bytes, fds).ok());
  }
  void Greet(const shm::Greeting& greeting = GoodGreeting()) {
    Say(shm::EncodeGreeting(greeting), {segment_.fd(), wake_.get()});
  }
  // Takes the node's greeting, without which it cannot be woken.
  bool AwaitGreeting(TransportRig* rig) {
    shm::Message message;
    return rig->WaitFor([&] {
      const auto received = shm::ReceiveMessage(socket_, &message);
      if (!received.ok() || *received != shm::Received::kMessage) return false;
      const auto greeting = shm::DecodeGreeting(message.bytes);
      if (!greeting.ok() || message.fds.size() != 2) return false;
      node_segment_ = *SharedMemory::MapForeign(message.fds[0].release(),
                                                shm::kControlBytes + greeting->ring_bytes);
      node_wake_ = std::move(message.fds[1]);
      return true;
    });
  }
  void Put(shm::RecordKind kind, uint16_t flags, const std::string& body) {
    std::byte* const to = writer_->Begin(body.size(), 0);
    ASSERT_NE(to, nullptr);
    std::memcpy(to, body.data(), body.size());
    writer_->End(kind, flags);
  }
  void PutBytes(const std::string& bytes, uint16_t flags) {
    std::string body(sizeof(uint64_t), '\0');
    shm::PutU64(bytes.size(), reinterpret_cast<std::byte*>(body.data()));
    Put(shm::RecordKind::kBytes, flags, body + bytes);
  }
  void PutReference(const shm::Reference& reference, uint16_t flags = 0) {
    std::string body(shm::kReferenceBytes, '\0');
    shm::PutReference(reference, reinterpret_cast<std::byte*>(body.data()));
    Put(shm::RecordKind::kReference, flags, body);
  }
  void PutRelease(uint64_t token) {
    std::string body(sizeof(token), '\0');
    shm::PutU64(token, reinterpret_cast<std::byte*>(body.data()));
    Put(shm::RecordKind::kRelease, 0, body);
  }
  void Show() { ShowUpTo(writer_->position()); }
  void ShowUpTo(uint64_t position) {
    control()->written.store(position);
    Wake();
  }
  void Wake() { eventfd_write(node_wake_.get(), 1); }
  shm::Control* control() { return shm::ControlOf(segment_); }
  const SharedMemory& node_segment() const { return node_segment_; }
  absl::Span<std::byte> ring() { return shm::RingOf(segment_); }
  const SharedMemory& segment() const { return segment_; }
  int wake_fd() const { return wake_.get(); }
  int node_wake_fd() const { return node_wake_.get(); }
  shm::Fd& socket() { return socket_; }

  // The node has hung up.
  bool IsOut(TransportRig* rig) {
    shm::Message message;
    return rig->WaitFor([&] {
      const auto received = shm::ReceiveMessage(socket_, &message);
      return received.ok() && *received == shm::Received::kEnd;
    });
  }

 private:
  shm::Fd socket_, wake_, node_wake_;
  SharedMemory segment_, node_segment_;
  std::unique_ptr<shm::RingWriter> writer_;
};

class ShmStrangers : public ::testing::Test {
 protected:
  ShmStrangers() {
    endpoint_ = rig_->Start(kB, {.max_part_bytes = size_t{1} << 20, .max_parts = 8});
    rig_->Start(kA, {.listens = false});
    EXPECT_TRUE(rig_->Connect(kA, kB, endpoint_).ok());
    ExpectBusinessAsUsual();
  }

  // B hears A and nobody else, and A hears B.
  void ExpectBusinessAsUsual() {
    const size_t heard = rig_->ReceivedCount(kB);
    ASSERT_TRUE(rig_->Send(kA, kB, MakeFrame(1, {Noise(1, 80'000)})).ok());
    ASSERT_TRUE(rig_->WaitForFrames(kB, heard + 1));
    const std::vector<ReceivedFrame> received = rig_->Received(kB);
    for (const ReceivedFrame& got : received) EXPECT_EQ(got.from, kA);
    EXPECT_TRUE(received.back().frame.payload[0].view() == Noise(1, 80'000).view());
    const size_t answers = rig_->ReceivedCount(kA);
    ASSERT_TRUE(rig_->Send(kB, kA, MakeFrame(2)).ok());
    EXPECT_TRUE(rig_->WaitForFrames(kA, answers + 1));
  }

  // `lie` with a fresh liar costs it its connection and is counted once.
  void ExpectRefused(const char* what, const std::function<void(Liar&)>& lie) {
    SCOPED_TRACE(what);
    const uint64_t before = rig_->Counters(kB).refused;
    Liar liar(endpoint_);
    lie(liar);
    EXPECT_TRUE(liar.IsOut(rig_.get()));
    EXPECT_EQ(rig_->Counters(kB).refused, before + 1);
    ExpectBusinessAsUsual();
  }
  // The same after a greeting that was good.
  void ExpectRefusedLater(const char* what, const std::function<void(Liar&)>& lie) {
    ExpectRefused(what, [&](Liar& liar) {
      liar.Greet();
      ASSERT_TRUE(liar.AwaitGreeting(rig_.get()));
      lie(liar);
    });
  }

  std::unique_ptr<TransportRig> rig_ = MakeTransportRig("shm");
  std::string endpoint_;
};

}  // namespace parley

#endif  // PARLEY_TESTS_CONFORMANCE_SHM_LIAR_H_
