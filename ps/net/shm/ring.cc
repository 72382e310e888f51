#include "ps/net/shm/ring.h"

#include <atomic>
#include <bit>
#include <cstring>

#include "absl/strings/str_format.h"
#include "ps/base/round_up.h"

namespace parley::shm {
namespace {

static_assert(std::endian::native == std::endian::little, "records are written as they are");

constexpr size_t kAlign = 8;

// One load, whatever the compiler thinks: the other process may write while we decide.
uint64_t LoadOnce(const std::byte* at) {
  uint64_t value;
  __atomic_load(reinterpret_cast<const uint64_t*>(at), &value, __ATOMIC_RELAXED);
  return value;
}

absl::Status Lie(const char* what, uint64_t value, const char* allowed, uint64_t bound) {
  return absl::InvalidArgumentError(
      absl::StrFormat("ring: %s is %d, allowed is %s%d", what, value, allowed, bound));
}

}  // namespace

bool IsRingSize(uint64_t size) {
  return std::has_single_bit(size) && size >= kMinRingBytes && size <= kMaxRingBytes;
}

std::byte* RingWriter::Begin(size_t body_bytes, uint64_t read) {
  const size_t size = ring_.size(), total = kRecordHeaderBytes + RoundUp(body_bytes, kAlign);
  const size_t offset = position_ & (size - 1);
  const size_t pad = offset + total > size ? size - offset : 0;
  if (position_ + pad + total - read > size) return nullptr;
  if (pad > 0) {
    PutHeader(position_, pad - kRecordHeaderBytes, RecordKind::kPad, 0);
    position_ += pad;
  }
  begun_ = position_;
  body_bytes_ = body_bytes;
  return ring_.data() + (begun_ & (size - 1)) + kRecordHeaderBytes;
}

void RingWriter::End(RecordKind kind, uint16_t flags) {
  PutHeader(begun_, body_bytes_, kind, flags);
  position_ = begun_ + kRecordHeaderBytes + RoundUp(body_bytes_, kAlign);
}

void RingWriter::PutHeader(uint64_t at, size_t size, RecordKind kind, uint16_t flags) {
  PutU64(uint64_t{size} | uint64_t{static_cast<uint16_t>(kind)} << 32 | uint64_t{flags} << 48,
         ring_.data() + (at & (ring_.size() - 1)));
}

absl::StatusOr<std::optional<Record>> RingReader::Next(uint64_t written) {
  const size_t size = ring_.size();
  while (position_ != written) {
    const uint64_t ahead = written - position_;  // wraps around if it is behind: too much, too
    if (ahead > size || ahead % kAlign != 0) {
      return Lie("what is written ahead of the reader", ahead, "a multiple of 8 up to ", size);
    }
    const size_t offset = position_ & (size - 1);
    const uint64_t header = LoadOnce(ring_.data() + offset);
    const uint64_t body_bytes = header & 0xffffffff;
    const auto kind = static_cast<uint16_t>(header >> 32);
    const size_t room = std::min<uint64_t>(ahead, size - offset) - kRecordHeaderBytes;
    if (body_bytes > room) return Lie("a record's size", body_bytes, "0..", room);
    if (kind > kLastRecordKind) return Lie("a record's kind", kind, "0..", kLastRecordKind);
    position_ += kRecordHeaderBytes + RoundUp(body_bytes, kAlign);
    if (kind == static_cast<uint16_t>(RecordKind::kPad)) {
      if ((position_ & (size - 1)) == 0) continue;
      return Lie("a pad's size", body_bytes,
                 "up to the end of the ring: ", size - offset - kRecordHeaderBytes);
    }
    return Record{static_cast<RecordKind>(kind), static_cast<uint16_t>(header >> 48),
                  ring_.subspan(offset + kRecordHeaderBytes, body_bytes)};
  }
  return std::nullopt;
}

void PutReference(const Reference& reference, std::byte* body) {
  PutU64(reference.arena, body);
  PutU64(reference.offset, body + 8);
  PutU64(reference.size, body + 16);
  PutU64(reference.token, body + 24);
}

absl::StatusOr<Reference> ParseReference(absl::Span<const std::byte> body) {
  if (body.size() != kReferenceBytes) {
    return Lie("a reference's size", body.size(), "", kReferenceBytes);
  }
  const uint64_t arena = GetU64(body, 0);
  if (arena > UINT32_MAX) return Lie("a reference's arena", arena, "0..", UINT32_MAX);
  return Reference{static_cast<uint32_t>(arena), GetU64(body, 8), GetU64(body, 16),
                   GetU64(body, 24)};
}

uint64_t GetU64(absl::Span<const std::byte> body, size_t at) {
  uint64_t value;
  std::memcpy(&value, body.data() + at, sizeof(value));
  // From here on it is this value, also if the memory behind `body` changes.
  std::atomic_signal_fence(std::memory_order_seq_cst);
  return value;
}

void PutU64(uint64_t value, std::byte* at) { std::memcpy(at, &value, sizeof(value)); }

}  // namespace parley::shm
