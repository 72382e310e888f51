// Connection's way out: frames and releases into the ring, what is lent, wake-ups.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"
#include "ps/base/payload_copy.h"
#include "ps/net/shm/connection.h"

namespace parley::shm {
namespace {

// Large parts travel through the ring in pieces, so that the reader copies out while the writer
// copies in.
constexpr size_t kPieceBytes = size_t{32} << 10;

constexpr size_t kSizeBytes = sizeof(uint64_t);  // of a part, in front of its first piece

}  // namespace

absl::Status Connection::Send(Outgoing frame) {
  if (SendsFrames() && queue_->empty() && releases_.empty()) {
    absl::StatusOr<bool> written = WriteFrame(&frame);
    Publish(/*urgent=*/true);
    if (!written.ok()) return written.status();
    if (*written) return absl::OkStatus();
  }
  if (queue_->size() >= static_cast<size_t>(shared_->limits.queue_frames)) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("%d frames already wait for node %s", queue_->size(), ToString(peer_)));
  }
  queue_->push_back(std::move(frame));
  return Flush();
}

absl::Status Connection::Flush() {
  if (!greeted() || ended_ || !Waits()) return absl::OkStatus();
  // Releases first: they are what lets the peer go on.
  absl::Status status = WriteReleases();
  if (!status.ok() || !releases_.empty()) return status;
  Publish(/*urgent=*/false);
  const uint64_t releases_end = writer_->position();
  while (SendsFrames() && !queue_->empty()) {
    absl::StatusOr<bool> written = WriteFrame(&queue_->front());
    if (!written.ok()) return written.status();
    if (!*written) break;
    queue_->pop_front();
  }
  if (said_bye_ && !bye_written_ && (queue_->empty() || !SendsFrames())) {
    absl::StatusOr<std::byte*> body = Begin(0);
    if (!body.ok()) return body.status();
    if (*body != nullptr) {
      writer_->End(RecordKind::kBye, 0);
      bye_written_ = true;
    }
  }
  // Releases alone wake nobody: mostly a frame follows soon.
  Publish(/*urgent=*/writer_->position() != releases_end);
  return absl::OkStatus();
}

// Where the next record's body goes; null if there is no room.
absl::StatusOr<std::byte*> Connection::Begin(size_t body_bytes) {
  std::byte* body = writer_->Begin(body_bytes, peer_read_);
  if (body != nullptr) return body;
  const uint64_t read = peer_control_->read.load(std::memory_order_acquire);
  if (read - peer_read_ > published_ - peer_read_) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "the peer has read up to %d, allowed is %d..%d", read, peer_read_, published_));
  }
  peer_read_ = read;
  return writer_->Begin(body_bytes, peer_read_);
}

absl::Status Connection::WriteReleases() {
  size_t done = 0;
  while (done < releases_.size()) {
    const size_t count = std::min(releases_.size() - done, writer_->max_body() / sizeof(uint64_t));
    absl::StatusOr<std::byte*> body = Begin(count * sizeof(uint64_t));
    if (!body.ok()) return body.status();
    if (*body == nullptr) break;
    for (size_t i = 0; i < count; ++i) PutU64(releases_[done + i], *body + i * sizeof(uint64_t));
    writer_->End(RecordKind::kRelease, 0);
    done += count;
    borrowed_ -= count;
  }
  releases_.erase(releases_.begin(), releases_.begin() + static_cast<ptrdiff_t>(done));
  if (!releases_.empty()) Publish(/*urgent=*/true);  // of what is there, to make room
  return absl::OkStatus();
}

// False if it has to wait; what is done of it is remembered in the frame.
absl::StatusOr<bool> Connection::WriteFrame(Outgoing* frame) {
  const size_t parts = 1 + frame->payload.size();
  while (frame->parts_done < parts) {
    const size_t at = frame->parts_done;
    const uint16_t flags = at + 1 < parts ? kMoreParts : 0;
    absl::StatusOr<bool> written = true;
    if (at == 0) {
      written = WriteBytes(frame->header, /*payload=*/false, flags, &frame->bytes_done);
    } else {
      Buffer& buffer = frame->payload[at - 1];
      Arenas::Place place{};
      absl::StatusOr<bool> lends = false;
      if (frame->bytes_done == 0) lends = PrepareToLend(&buffer, &place);
      if (!lends.ok()) return lends.status();
      if (*lends) {
        written = WriteReference(buffer, place, flags);
      } else {
        written = WriteBytes(buffer.view(), /*payload=*/true, flags, &frame->bytes_done);
      }
    }
    if (!written.ok() || !*written) return written;
    ++frame->parts_done;
    frame->bytes_done = 0;
  }
  return true;
}

// False if the buffer has to go through the ring.
absl::StatusOr<bool> Connection::PrepareToLend(Buffer* buffer, Arenas::Place* place) {
  if (buffer->on_device()) {
    absl::Status status = PrepareToLendDevice(*buffer, place);
    if (!status.ok()) return status;
    return true;
  }
  const Limits& limits = shared_->limits;
  if (buffer->size() < limits.lend_bytes) return false;
  if (lent_bytes_ + buffer->size() > limits.max_lent_bytes) return false;
  if (!Lends(*buffer, place)) Stage(buffer);
  return Lends(*buffer, place) && AnnounceArena(place->arena).ok();
}

// There is no other way for such a buffer.
absl::Status Connection::PrepareToLendDevice(const Buffer& buffer, Arenas::Place* place) {
  std::optional<Arenas::Place> found;
  if (shared_->device_arenas != nullptr) {
    found = shared_->device_arenas->Find(buffer.data(), buffer.size());
  }
  if (!found.has_value()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "payload of %d bytes lies in a GPU's memory and in no arena of this node", buffer.size()));
  }
  *place = {kFirstDeviceArena + found->arena, found->offset};
  absl::Status status = AnnounceArena(place->arena);
  if (status.ok()) return status;
  return absl::UnavailableError(absl::StrFormat(
      "arena %d in a GPU's memory cannot be announced: %s", place->arena, status.message()));
}

bool Connection::Lends(const Buffer& buffer, Arenas::Place* place) const {
  const auto found = shared_->arenas->Find(buffer.data(), buffer.size());
  if (found) *place = *found;
  return found.has_value();
}

// Moves bytes of other memory into an arena, if there is one with room.
void Connection::Stage(Buffer* buffer) {
  Buffer staged = shared_->staging->Allocate(buffer->size());
  Arenas::Place place{};
  if (!Lends(staged, &place)) return;
  CopyPayload(staged.mutable_data(), buffer->data(), buffer->size());
  *buffer = std::move(staged);
}

// `done` bytes of the part are in the ring already; false if the rest has to wait.
absl::StatusOr<bool> Connection::WriteBytes(std::string_view bytes, bool payload, uint16_t flags,
                                            size_t* done) {
  bool first = *done == 0;
  while (first || *done < bytes.size()) {
    const size_t piece =
        std::min({bytes.size() - *done, kPieceBytes, writer_->max_body() - kSizeBytes});
    const size_t front = first ? kSizeBytes : 0;
    absl::StatusOr<std::byte*> body = Begin(front + piece);
    if (!body.ok()) return body.status();
    if (*body == nullptr) return false;
    if (first) PutU64(bytes.size(), *body);
    if (payload) {
      CopyPayload(*body + front, bytes.data() + *done, piece);
    } else {
      std::memcpy(*body + front, bytes.data() + *done, piece);
    }
    writer_->End(first ? RecordKind::kBytes : RecordKind::kMoreBytes, flags);
    *done += piece;
    // The reader may begin while the rest is copied.
    if (*done < bytes.size()) Publish(/*urgent=*/true);
    first = false;
  }
  return true;
}

absl::StatusOr<bool> Connection::WriteReference(const Buffer& buffer, Arenas::Place place,
                                                uint16_t flags) {
  absl::StatusOr<std::byte*> body = Begin(kReferenceBytes);
  if (!body.ok()) return body.status();
  if (*body == nullptr) return false;
  uint32_t slot = static_cast<uint32_t>(lent_.size());
  if (free_slots_.empty()) {
    lent_.emplace_back();
  } else {
    slot = free_slots_.back();
    free_slots_.pop_back();
  }
  Lent& lent = lent_[slot];
  lent.buffer = buffer;
  ++lent.generation;
  ++lent_count_;
  lent_bytes_ += buffer.size();
  const uint64_t token = uint64_t{lent.generation} << 32 | slot;
  PutReference({place.arena, place.offset, buffer.size(), token}, *body);
  writer_->End(RecordKind::kReference, flags);
  return true;
}

// Nothing if that has been done. An error if the peer cannot be told now: its socket is full, or
// too many descriptors are on their way (unix(7), ETOOMANYREFS). That says nothing against the
// peer, and another time it may work.
absl::Status Connection::AnnounceArena(uint32_t number) {
  if (announced_[number]) return absl::OkStatus();
  const bool device = number >= kFirstDeviceArena;
  const Arenas::Arena& arena = device ? shared_->device_arenas->arena(number - kFirstDeviceArena)
                                      : shared_->arenas->arena(number);
  const ArenaNotice notice{number, arena.size, device ? ArenaKind::kDevice : ArenaKind::kHost};
  // Before the reference is published: who finds an arena unknown looks at its socket, and there
  // it is.
  absl::Status status = SendMessage(*link_->socket, EncodeArenaNotice(notice), {arena.fd});
  announced_[number] = status.ok();
  return status;
}

absl::Status Connection::OnRelease(const Record& record) {
  if (record.body.size() % sizeof(uint64_t) != 0) {
    return absl::InvalidArgumentError("a release that is cut short");
  }
  for (size_t at = 0; at < record.body.size(); at += sizeof(uint64_t)) {
    const uint64_t token = GetU64(record.body, at);
    const auto slot = static_cast<uint32_t>(token);
    if (slot >= lent_.size() || lent_[slot].generation != token >> 32 ||
        lent_[slot].buffer.empty()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("token %016x is released, which is not lent", token));
    }
    lent_bytes_ -= lent_[slot].buffer.size();
    --lent_count_;
    lent_[slot].buffer = Buffer();
    free_slots_.push_back(slot);
  }
  return absl::OkStatus();
}

// Shows the peer what is written. Urgent: wakes it; else that is owed.
void Connection::Publish(bool urgent) {
  if (!greeted()) return;
  if (writer_->position() != published_) {
    published_ = writer_->position();
    // In one order with what the peer does before it sleeps: either it sees the position, or we see
    // that it sleeps.
    own_control_->written.store(published_, std::memory_order_seq_cst);
    const uint32_t sleep = peer_control_->sleeping.load(std::memory_order_seq_cst);
    owes_wake_up_ = (sleep & 1) != 0 && sleep != woken_;
  }
  if (owes_wake_up_ && urgent) WakeUp();
}

}  // namespace parley::shm
