// One end of a shared-memory connection whose other end does as it likes: socket, segment, records,
// positions, releases, arenas.
//
//   u8 greeting   0: as it is; else the input's next 32 bytes are added to it
//   then steps, each a u8 with what the peer or the node does (Step) and what that takes
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ps/base/loop_env.h"
#include "ps/base/shared_arenas.h"
#include "ps/net/shm/connection.h"
#include "ps/net/shm/private_parts.h"
#include "ps/wire/codec.h"
#include "tests/fuzz/fuzz_input.h"

namespace parley::shm {
namespace {

constexpr NodeId kSelf{1}, kPeer{2};
constexpr size_t kRingBytes = kMinRingBytes, kArenaBytes = size_t{64} << 10;
constexpr int kMaxSteps = 200;

enum Step : uint8_t {
  // The peer.
  kRaw,         // u16 at, u8 size, bytes: into its ring, as they are
  kRecord,      // u8 kind, u8 flags, u8 size, body: a record behind the last
  kHeader,      // u8 parts; of each u16 key bytes, u16 values: the first part of a frame
  kReference,   // u8 arena, u8 flags, u16 offset, u16 size, u8 token
  kShow,        // written becomes what the writer has
  kShowOther,   // u64: or that
  kRead,        // read becomes all that the node has written
  kReadOther,   // u64: or that
  kReleaseOne,  // u8: the token of the reference of this number that the node has lent
  kAnnounce,    // u8 arena, u8 0: as it is, else another size
  kWords,       // u8: bit 0 sleeping, bit 1 wants_room
  kSay,         // u8 size, bytes: on the socket
  kHangUp,
  // The node.
  kSend,  // u8 parts; of each u16 size, modulo 20000
  kServe,
  kSleep,
  kClose,
  kSteps
};

// What lives as long as the process.
struct World {
  World() {
    shared.self = kSelf;
    shared.limits = {.ring_bytes = kRingBytes,
                     .queue_frames = 4,
                     .max_part_bytes = 32768,
                     .max_parts = 8,
                     .max_lent_bytes = 40000,
                     .lend_bytes = 64};
    const auto arenas = std::make_shared<SharedArenas>(
        SharedArenas::Options{.arena_bytes = size_t{2} << 20, .max_bytes = size_t{2} << 20});
    shared.arenas = arenas;
    staging = std::make_unique<BufferPool>(size_t{1} << 20, arenas);
    received = std::make_unique<BufferPool>(size_t{1} << 20);
    shared.staging = staging.get();
    shared.received = received.get();
    shared.inbox = std::make_shared<ReturnInbox>(&env);
    arena = *SharedMemory::Create("fuzz-arena", kArenaBytes);
  }
  LoopEnv env{{.offload_threads = 0}};
  std::unique_ptr<BufferPool> staging, received;
  Shared shared;
  SharedMemory arena;  // the peer's
};

class Pair {
 public:
  Pair(World* world, FuzzInput input) : world_(world), input_(input) {}

  void Run() {
    int ends[2];
    Check(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0,
          "there are sockets");
    socket_ = Fd(ends[1]);
    auto made =
        Connection::Create(&world_->shared, 1, Fd(ends[0]), kNoNode, std::make_shared<SendQueue>());
    Check(made.ok(), "there is memory");
    connection_ = *std::move(made);
    absl::Status status = Greet();
    for (int i = 0; i < kMaxSteps && status.ok() && input_.left() > 0; ++i) {
      status = Take(static_cast<Step>(input_.Take<uint8_t>() % kSteps));
      Check(connection_->lent_bytes() <= world_->shared.limits.max_lent_bytes,
            "lending is bounded");
    }
    Check(status.ok() || !status.message().empty(), "a refusal says why");
    const size_t lent = connection_->lent_bytes();
    const Kept kept = connection_->TakeLent();
    Check(kept.socket == nullptr || kept.bytes == lent, "what is lent can be kept");
  }

 private:
  absl::Status Greet() {
    segment_ = *SharedMemory::Create("fuzz-segment", kControlBytes + kRingBytes);
    writer_ = std::make_unique<RingWriter>(RingOf(segment_));
    wake_ = Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    std::string bytes = EncodeGreeting(
        {.protocol = kProtocolVersion, .ring_bytes = kRingBytes, .node = kPeer, .to = kSelf});
    if (input_.Take<uint8_t>() != 0) {
      for (char& byte : bytes) byte = static_cast<char>(byte + input_.Take<char>());
    }
    Message message;
    const auto received = ReceiveMessage(socket_, &message);
    Check(received.ok() && *received == Received::kMessage, "the node greets first");
    node_segment_ = *SharedMemory::MapForeign(message.fds[0].release(), kControlBytes + kRingBytes);
    Check(SendMessage(socket_, bytes, {segment_.fd(), wake_.get()}).ok(), "the greeting is sent");
    return connection_->OnSocket();
  }

  absl::Status Take(Step step) {
    switch (step) {
      case kSend:
        return Send();
      case kServe:
        return Serve();
      case kSleep:
        connection_->PrepareToSleep();
        connection_->HasNews();
        connection_->Awake();
        return absl::OkStatus();
      case kClose:
        connection_->Close();
        return connection_->Flush();
      default:
        Peer(step);
        return absl::OkStatus();
    }
  }

  void Peer(Step step) {
    Control* const control = ControlOf(segment_);
    const Control* const node = ControlOf(node_segment_);
    switch (step) {
      case kRaw: {
        const size_t at = input_.Take<uint16_t>() % kRingBytes;
        const std::string_view bytes = input_.TakeBytes(input_.Take<uint8_t>());
        std::memcpy(RingOf(segment_).data() + at, bytes.data(),
                    std::min(bytes.size(), kRingBytes - at));
        return;
      }
      case kRecord: {
        const auto kind = input_.Take<uint8_t>() % (kLastRecordKind + 2);
        const auto flags = input_.Take<uint8_t>();
        return Put(static_cast<RecordKind>(kind), flags,
                   std::string(input_.TakeBytes(input_.Take<uint8_t>())));
      }
      case kHeader:
        return PutHeader();
      case kReference: {
        Reference reference;
        reference.arena = input_.Take<uint8_t>() % 4;
        const auto flags = input_.Take<uint8_t>();
        reference.offset = input_.Take<uint16_t>();
        reference.size = input_.Take<uint16_t>();
        reference.token = input_.Take<uint8_t>();
        std::string body(kReferenceBytes, '\0');
        PutReference(reference, reinterpret_cast<std::byte*>(body.data()));
        return Put(RecordKind::kReference, flags, body);
      }
      case kShow:
        return control->written.store(writer_->position());
      case kShowOther:
        return control->written.store(input_.Take<uint64_t>());
      case kRead:
        return control->read.store(node->written.load());
      case kReadOther:
        return control->read.store(input_.Take<uint64_t>());
      case kReleaseOne:
        return ReleaseOne(input_.Take<uint8_t>());
      case kAnnounce: {
        const ArenaNotice notice{input_.Take<uint8_t>(), kArenaBytes + input_.Take<uint8_t>()};
        return Say(EncodeArenaNotice(notice), {world_->arena.fd()});
      }
      case kWords: {
        const auto words = input_.Take<uint8_t>();
        control->sleeping.store(words & 1);
        return control->wants_room.store(words & 2);
      }
      case kSay:
        return Say(std::string(input_.TakeBytes(input_.Take<uint8_t>() % 80)), {});
      default:
        socket_ = Fd();
    }
  }

  void Say(const std::string& bytes, const std::vector<int>& fds) {
    if (socket_.ok()) SendMessage(socket_, bytes, fds).IgnoreError();  // may be full
  }
  void Put(RecordKind kind, uint16_t flags, const std::string& body) {
    const uint64_t read = ControlOf(node_segment_)->read.load();
    std::byte* const to = writer_->Begin(body.size(), read);
    if (to == nullptr) return;
    std::memcpy(to, body.data(), body.size());
    writer_->End(kind, flags);
  }
  void PutHeader() {
    pb::FrameHeader header;
    header.set_protocol(kProtocolVersion);
    header.set_kind(pb::PUSH);
    header.set_job(5);
    header.set_sender(Value(kPeer));
    const int parts = input_.Take<uint8_t>() % 9;
    for (int i = 0; i < parts; ++i) {
      pb::Part* part = header.add_part();
      const uint64_t keys = input_.Take<uint16_t>() / 8;
      part->set_keys(keys);
      part->set_key_bytes(8 * keys);
      const auto values = input_.Take<uint16_t>();
      part->set_count(values / 4);
      if (values % 4 == 1) part->set_value_bytes(values);
    }
    const std::string bytes = EncodeHeader(header);
    std::string body(sizeof(uint64_t), '\0');
    PutU64(bytes.size(), reinterpret_cast<std::byte*>(body.data()));
    body += bytes;
    if (body.size() <= writer_->max_body()) {
      Put(RecordKind::kBytes, parts > 0 ? kMoreParts : 0, body);
    }
  }
  // Reads the node's ring as far as it is written now.
  void ReleaseOne(size_t number) {
    if (!reader_) reader_.emplace(RingOf(node_segment_));
    while (true) {
      const auto record = reader_->Next(ControlOf(node_segment_)->written.load());
      // The peer may have given the ring back unread.
      if (!record.ok() || !record->has_value()) break;
      if ((*record)->kind != RecordKind::kReference) continue;
      const auto reference = ParseReference((*record)->body);
      if (reference.ok()) tokens_.push_back(reference->token);
    }
    std::string body(sizeof(uint64_t), '\0');
    const uint64_t token = tokens_.empty() ? number : tokens_[number % tokens_.size()];
    PutU64(token, reinterpret_cast<std::byte*>(body.data()));
    Put(RecordKind::kRelease, 0, body);
  }

  absl::Status Send() {
    if (!connection_->open()) return absl::OkStatus();
    Outgoing frame{"header of some bytes", {}, 0, 0};
    const int parts = input_.Take<uint8_t>() % 5;
    for (int i = 0; i < parts; ++i) {
      const size_t size = input_.Take<uint16_t>() % 20000;
      Buffer part = (i % 2 == 0 ? world_->staging : world_->received)->Allocate(size);
      if (size > 0) std::memset(part.mutable_data(), i, size);
      frame.payload.push_back(std::move(part));
    }
    const absl::Status status = connection_->Send(std::move(frame));
    return absl::IsResourceExhausted(status) ? absl::OkStatus() : status;
  }

  absl::Status Serve() {
    absl::Status status = connection_->OnSocket();
    if (status.ok()) {
      status =
          connection_->Receive(16, [&](Incoming frame) { OnFrame(std::move(frame)); }).status();
    }
    std::vector<Returned> returned;
    world_->shared.inbox->Take(&returned);
    if (status.ok()) {
      for (const Returned& loan : returned) connection_->Release(loan.token);
      status = connection_->Flush();
    }
    connection_->finished();
    return status;
  }

  void OnFrame(Incoming incoming) {
    const Limits& limits = world_->shared.limits;
    Check(incoming.payload.size() <= limits.max_parts, "parts are bounded");
    Check(incoming.borrowed.size() == incoming.payload.size(), "each part is known to be whose");
    for (const Buffer& part : incoming.payload) {
      Check(part.size() <= limits.max_part_bytes, "a part is bounded");
      ReadAll(part.data(), part.size());
    }
    absl::StatusOr<Frame> frame = DecodeFrame(incoming.header, std::move(incoming.payload));
    if (!frame.ok()) return;
    if (!CopyDecidingParts(incoming.borrowed, world_->received.get(), &*frame).ok()) return;
    for (const Buffer& part : frame->payload) ReadAll(part.data(), part.size());
    if (held_.size() < 4) held_.push_back(*std::move(frame));
  }

  World* const world_;
  FuzzInput input_;
  Fd socket_, wake_;
  SharedMemory segment_, node_segment_;
  std::unique_ptr<RingWriter> writer_;
  std::optional<RingReader> reader_;
  std::vector<uint64_t> tokens_;
  std::unique_ptr<Connection> connection_;
  std::vector<Frame> held_;  // as a receiver keeps some of them
};

}  // namespace
}  // namespace parley::shm

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static parley::shm::World world;
  std::vector<parley::shm::Returned> late;
  parley::shm::Pair(&world, parley::FuzzInput(data, size)).Run();
  world.shared.inbox->Take(&late);  // what was held until now
  return 0;
}
