// Connection's way in: records of the peer's ring into frames. Everything here is a stranger's.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"
#include "ps/base/payload_copy.h"
#include "ps/net/shm/connection.h"
#include "ps/wire/codec.h"

namespace parley::shm {
namespace {

// References that a peer may have outstanding here; an honest one runs into its max_lent_bytes
// first.
constexpr size_t kMaxBorrowed = size_t{1} << 20;

}  // namespace

absl::StatusOr<bool> Connection::Receive(int max_frames, Sink sink) {
  if (!greeted()) return false;
  if (wake_up_blocks_) return absl::InvalidArgumentError("the peer's wake-up may block by now");
  bool worked = false;
  const uint64_t written = peer_control_->written.load(std::memory_order_acquire);
  for (int frames = 0; frames < max_frames;) {
    absl::StatusOr<std::optional<Record>> record = reader_->Next(written);
    if (!record.ok()) return record.status();
    if (!record->has_value()) break;
    worked = true;
    absl::StatusOr<bool> part = OnRecord(**record);
    if (!part.ok()) return part.status();
    // Given back in larger pieces, since each costs the other side a look.
    if (reader_->position() - published_read_ > peer_segment_.size() / 8) PublishRead();
    if (!*part || arriving_.more_parts) continue;
    ++frames;
    Incoming frame = std::exchange(arriving_, Arriving{}).frame;
    // After Close nobody wants to hear any more; what was borrowed goes home by itself.
    if (!said_bye_) sink(std::move(frame));
  }
  PublishRead();
  return worked;
}

absl::StatusOr<bool> Connection::OnRecord(const Record& record) {
  const bool in_a_part = arriving_.missing > 0;
  if (in_a_part != (record.kind == RecordKind::kMoreBytes) && record.kind != RecordKind::kRelease) {
    return Lie("a part's bytes still to come, at a record of another kind or none,",
               arriving_.missing, 0);
  }
  switch (record.kind) {
    case RecordKind::kBytes:
      return OnFirstBytes(record);
    case RecordKind::kMoreBytes:
      return OnMoreBytes(record.body);
    case RecordKind::kReference:
      return OnReference(record);
    case RecordKind::kRelease: {
      absl::Status status = OnRelease(record);
      if (!status.ok()) return status;
      return false;
    }
    case RecordKind::kBye:
      heard_bye_ = true;
      return false;
    case RecordKind::kPad:
      break;
  }
  return Lie("a record's kind", static_cast<uint64_t>(record.kind), kLastRecordKind);
}

absl::StatusOr<bool> Connection::OnFirstBytes(const Record& record) {
  if (record.body.size() < sizeof(uint64_t)) return Lie("a part without its size", 0, 0);
  const uint64_t size = GetU64(record.body, 0);
  const bool header = !arriving_.has_header;
  const uint64_t allowed =
      header ? kEnvelopeBytes + kMaxHeaderBytes : shared_->limits.max_part_bytes;
  if (size > allowed) return Lie("a part's size", size, allowed);
  if (header) {
    arriving_.frame.header.resize(size);
  } else {
    if (arriving_.frame.payload.size() == shared_->limits.max_parts) {
      return Lie("a frame's number of parts", arriving_.frame.payload.size() + 1,
                 shared_->limits.max_parts);
    }
    arriving_.frame.payload.push_back(shared_->received->Allocate(size));
    arriving_.frame.borrowed.push_back(false);
  }
  arriving_.missing = size;
  arriving_.more_parts = (record.flags & kMoreParts) != 0;
  return OnMoreBytes(record.body.subspan(sizeof(uint64_t)));
}

absl::StatusOr<bool> Connection::OnMoreBytes(absl::Span<const std::byte> bytes) {
  if (bytes.size() > arriving_.missing) {
    return Lie("the bytes of a part's piece", bytes.size(), arriving_.missing);
  }
  if (!arriving_.has_header) {
    std::string& header = arriving_.frame.header;
    if (!bytes.empty()) {
      std::memcpy(header.data() + header.size() - arriving_.missing, bytes.data(), bytes.size());
    }
  } else {
    Buffer& part = arriving_.frame.payload.back();
    CopyPayload(part.mutable_data() + part.size() - arriving_.missing, bytes.data(), bytes.size());
  }
  arriving_.missing -= bytes.size();
  if (arriving_.missing > 0) return false;
  arriving_.has_header = true;
  return true;
}

absl::StatusOr<bool> Connection::OnReference(const Record& record) {
  absl::StatusOr<Reference> reference = ParseReference(record.body);
  if (!reference.ok()) return reference.status();
  if (!arriving_.has_header)
    return Lie("a header by reference, of which the size", reference->size, 0);
  if (arriving_.frame.payload.size() == shared_->limits.max_parts) {
    return Lie("a frame's number of parts", arriving_.frame.payload.size() + 1,
               shared_->limits.max_parts);
  }
  if (reference->size > shared_->limits.max_part_bytes) {
    return Lie("a reference's size", reference->size, shared_->limits.max_part_bytes);
  }
  if (borrowed_ == kMaxBorrowed) return Lie("references not released", borrowed_ + 1, kMaxBorrowed);
  const std::vector<PeerArena>& arenas = link_->arenas;
  const uint32_t arena = reference->arena;
  const auto known = [&] { return arena < arenas.size() && !arenas[arena].empty(); };
  if (!known()) {
    // Its notice was sent before the reference was, and waits.
    absl::Status status = OnSocket();
    if (!status.ok()) return status;
    if (!known()) {
      return absl::InvalidArgumentError(absl::StrFormat("arena %d has not been announced", arena));
    }
  }
  const size_t arena_bytes = arenas[arena].size();
  if (reference->offset > arena_bytes || reference->size > arena_bytes - reference->offset) {
    return absl::InvalidArgumentError(
        absl::StrFormat("a reference to %d bytes from %d in arena %d, which has %d",
                        reference->size, reference->offset, arena, arena_bytes));
  }
  ++borrowed_;
  arriving_.frame.payload.push_back(
      Borrow(link_, arena, reference->offset, reference->size, reference->token));
  arriving_.frame.borrowed.push_back(true);
  arriving_.more_parts = (record.flags & kMoreParts) != 0;
  return true;
}

// Gives the peer its ring back as far as it is read.
void Connection::PublishRead() {
  if (reader_->position() == published_read_) return;
  published_read_ = reader_->position();
  // As in Publish: it sees the room before it sleeps, or we see that it sleeps for lack of it.
  own_control_->read.store(published_read_, std::memory_order_seq_cst);
  if (peer_control_->wants_room.load(std::memory_order_seq_cst) != 0) WakeUp();
}

}  // namespace parley::shm
