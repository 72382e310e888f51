#include "ps/net/shm/connection.h"

#include <fcntl.h>
#include <sys/eventfd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_format.h"

namespace parley::shm {
absl::Status Lie(const char* what, uint64_t value, uint64_t bound) {
  return absl::InvalidArgumentError(
      absl::StrFormat("%s is %d, allowed is 0..%d", what, value, bound));
}

Connection::Connection(const Shared* shared, uint64_t id, NodeId peer,
                       std::shared_ptr<SendQueue> queue)
    : shared_(shared), id_(id), peer_(peer), queue_(std::move(queue)) {}

absl::StatusOr<std::unique_ptr<Connection>> Connection::Create(const Shared* shared, uint64_t id,
                                                               Fd socket, NodeId peer,
                                                               std::shared_ptr<SendQueue> queue) {
  absl::Status status = CheckSameUser(socket);
  if (!status.ok()) return status;
  std::unique_ptr<Connection> connection(new Connection(shared, id, peer, std::move(queue)));
  absl::StatusOr<SharedMemory> segment =
      SharedMemory::Create("parley-ring", kControlBytes + shared->limits.ring_bytes);
  if (!segment.ok()) return segment.status();
  connection->own_segment_ = *std::move(segment);
  connection->own_control_ = ControlOf(connection->own_segment_);
  connection->writer_ = std::make_unique<RingWriter>(RingOf(connection->own_segment_));
  connection->own_wake_ = Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!connection->own_wake_.ok()) return absl::ErrnoToStatus(errno, "shared memory: eventfd");
  const Greeting greeting{kProtocolVersion, static_cast<uint32_t>(shared->limits.ring_bytes),
                          shared->self, peer};
  status = SendMessage(socket, EncodeGreeting(greeting),
                       {connection->own_segment_.fd(), connection->own_wake_.get()});
  if (!status.ok()) return status;
  connection->link_ = std::make_shared<Link>();
  connection->link_->socket = std::make_shared<Fd>(std::move(socket));
  connection->link_->connection = id;
  connection->link_->inbox = shared->inbox;
  return connection;
}

absl::Status Connection::OnSocket() {
  Message message;
  while (!ended_) {
    absl::StatusOr<Received> received = ReceiveMessage(*link_->socket, &message);
    if (!received.ok()) return received.status();
    if (*received == Received::kNothing) return absl::OkStatus();
    if (*received == Received::kEnd) {
      ended_ = true;
      return absl::OkStatus();
    }
    absl::Status status = greeted() ? OnArena(std::move(message)) : OnGreeting(std::move(message));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Connection::OnGreeting(Message message) {
  absl::StatusOr<Greeting> greeting = DecodeGreeting(message.bytes);
  if (!greeting.ok()) return greeting.status();
  if (greeting->protocol != kProtocolVersion) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "the peer speaks protocol %d, this node %d", greeting->protocol, kProtocolVersion));
  }
  if (greeting->to != kNoNode && greeting->to != shared_->self) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "the peer looks for node %s, this is %s", ToString(greeting->to), ToString(shared_->self)));
  }
  // The scheduler is connected to, never heard from here: whoever says so is a stranger.
  const bool named = greeting->node != kNoNode && greeting->node != kSchedulerNode &&
                     greeting->node != shared_->self;
  if (peer_ != kNoNode ? greeting->node != peer_ : !named) {
    return absl::FailedPreconditionError(
        absl::StrFormat("the peer calls itself node %s", ToString(greeting->node)));
  }
  if (!IsRingSize(greeting->ring_bytes)) {
    return Lie("ring_bytes, which is to be a power of two,", greeting->ring_bytes, kMaxRingBytes);
  }
  if (message.fds.size() != 2) {
    return absl::InvalidArgumentError("a greeting comes with a segment and a wake-up");
  }
  absl::Status status = CheckEventFd(message.fds[1].get());
  if (!status.ok()) return status;
  absl::StatusOr<SharedMemory> segment =
      SharedMemory::MapForeign(message.fds[0].release(), kControlBytes + greeting->ring_bytes);
  if (!segment.ok()) return segment.status();
  peer_ = greeting->node;
  peer_segment_ = *std::move(segment);
  peer_wake_ = std::move(message.fds[1]);
  peer_control_ = ControlOf(peer_segment_);
  reader_ = std::make_unique<RingReader>(RingOf(peer_segment_));
  return absl::OkStatus();
}

absl::Status Connection::OnArena(Message message) {
  absl::StatusOr<ArenaNotice> notice = DecodeArenaNotice(message.bytes);
  if (!notice.ok()) return notice.status();
  const bool device = notice->kind == ArenaKind::kDevice;
  const uint32_t numbers = device ? kArenaNumbers : kFirstDeviceArena;
  if (notice->arena >= numbers) return Lie("an arena's number", notice->arena, numbers - 1);
  if (device && notice->arena < kFirstDeviceArena) {
    return Lie("a device arena's number, which begins after the others',", notice->arena, 0);
  }
  if (message.fds.size() != 1) return absl::InvalidArgumentError("an arena comes with its memory");
  std::vector<PeerArena>& arenas = link_->arenas;
  if (arenas.size() <= notice->arena) arenas.resize(notice->arena + 1);
  // Borrowed bytes may lie in the one that is there.
  if (!arenas[notice->arena].empty()) {
    return absl::InvalidArgumentError(absl::StrFormat("arena %d comes twice", notice->arena));
  }
  if (device) return MapDeviceArena(*notice, message.fds[0]);
  absl::StatusOr<SharedMemory> memory =
      SharedMemory::MapForeign(message.fds[0].release(), notice->size);
  if (!memory.ok()) return memory.status();
  arenas[notice->arena] = PeerArena(*std::move(memory));
  return absl::OkStatus();
}

absl::Status Connection::MapDeviceArena(const ArenaNotice& notice, const Fd& fd) {
  const auto refuse = [&](const absl::Status& why) {
    return absl::Status(why.code(), absl::StrFormat("arena %d of %d bytes in a GPU's memory: %s",
                                                    notice.arena, notice.size, why.message()));
  };
  if (shared_->mapper == nullptr) {
    return refuse(absl::UnavailableError("this node maps none"));
  }
  if (notice.size == 0) return refuse(absl::InvalidArgumentError("allowed are 1 and more bytes"));
  absl::StatusOr<std::byte*> data = shared_->mapper->Map(fd.get(), notice.size);
  if (!data.ok()) return refuse(data.status());
  link_->arenas[notice.arena] = PeerArena(shared_->mapper, *data, notice.size);
  return absl::OkStatus();
}

bool Connection::HasUnread() const {
  return greeted() && peer_control_->written.load(std::memory_order_seq_cst) != reader_->position();
}

bool Connection::Waits() const {
  if (!releases_.empty() || (said_bye_ && !bye_written_)) return true;
  return SendsFrames() && !queue_->empty();
}

bool Connection::HasNews() const {
  if (!greeted()) return false;
  if (HasUnread() || wake_up_blocks_) return true;
  // What waits, waits for room; Begin has looked for it last. What waited for anything else would
  // keep this true, and the loop awake, from the next time the peer reads.
  return !ended_ && Waits() && peer_control_->read.load(std::memory_order_seq_cst) != peer_read_;
}

bool Connection::finished() const {
  if (ended_) return !HasUnread();
  const bool last_word = heard_bye_ || (said_bye_ && bye_written_);
  return last_word && lent_count_ == 0 && borrowed_ == 0 && releases_.empty();
}

void Connection::Close() { said_bye_ = true; }

void Connection::PrepareToSleep() {
  if (!greeted()) return;
  // Sequentially consistent, as are HasNews' look at the peer's words afterwards, and the peer's
  // store of those and its look at these: one of the two sees the other.
  own_control_->wants_room.store(Waits() ? 1 : 0, std::memory_order_seq_cst);
  const uint32_t sleep = own_control_->sleeping.load(std::memory_order_relaxed);
  own_control_->sleeping.store(sleep | 1, std::memory_order_seq_cst);
}

void Connection::Awake() {
  if (!greeted()) return;
  // Each sleep has a number of its own, so that the peer knows whether it has woken this one.
  const uint32_t sleep = own_control_->sleeping.load(std::memory_order_relaxed);
  if ((sleep & 1) != 0) own_control_->sleeping.store(sleep + 1, std::memory_order_release);
}

void Connection::WakeUp() {
  owes_wake_up_ = false;
  const uint32_t sleep = peer_control_->sleeping.load(std::memory_order_seq_cst);
  if ((sleep & 1) == 0 || sleep == woken_) return;
  woken_ = sleep;
  // The peer can clear the flag that CheckEventFd saw, and fill the counter: no honest one does.
  const int flags = fcntl(peer_wake_.get(), F_GETFL);
  wake_up_blocks_ = flags < 0 || (flags & O_NONBLOCK) == 0;
  // Should the counter be full, the peer has been woken often enough, or does not want to be.
  if (!wake_up_blocks_) eventfd_write(peer_wake_.get(), 1);
}

Kept Connection::TakeLent() {
  Kept kept;
  if (ended_ || lent_count_ == 0) return kept;
  kept.socket = link_->socket;
  kept.peer = peer_;
  lent_bytes_ = 0;
  for (Lent& lent : lent_) {
    if (lent.buffer.empty()) continue;
    // A GPU's memory is bounded by its arenas. Past the bound of custody it would be written again
    // at once, under a peer that computes with it.
    if (!lent.buffer.on_device()) kept.bytes += lent.buffer.size();
    kept.buffers.push_back(std::move(lent.buffer));
  }
  lent_.clear();
  free_slots_.clear();
  lent_count_ = 0;
  return kept;
}

}  // namespace parley::shm
