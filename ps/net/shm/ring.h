// A ring of records in memory that one process writes and another only reads.
//
// The writer appends records and then tells the reader, elsewhere, up to where it has written; the
// reader tells the writer, elsewhere, up to where the ring may be overwritten. Positions count
// bytes since the start; a position's place in the ring is its value modulo the ring's size, a
// power of two. A record is a header of eight bytes, little-endian, and a body, filled up to a
// multiple of eight; it never wraps around: what is left at the end is skipped by a kPad.
//
//   0  4  size of the body, without the filling
//   4  2  kind
//   6  2  flags
//
// Nothing here makes system calls or knows processes: bytes and numbers in, records out. The reader
// takes neither for true. Whatever the ring and the position say, it reads inside the ring only,
// and it reads each header once, since the writer may change it meanwhile. A body is such memory,
// too: copy it out before looking at it twice.
//
// Thread-safety: one writer and one reader may work at the same time, if the positions go between
// them with release and acquire.
#ifndef PARLEY_PS_NET_SHM_RING_H_
#define PARLEY_PS_NET_SHM_RING_H_

#include <cstddef>
#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace parley::shm {

enum class RecordKind : uint16_t {
  kPad = 0,        // nothing, up to the end of the ring
  kBytes = 1,      // a part begins: uint64 with its size, and as much of it as the record holds
  kMoreBytes = 2,  // more of the part that the record before did not complete
  kReference = 3,  // a part that lies in the writer's arenas: Reference
  kRelease = 4,    // uint64 tokens of References that the writer, who was lent them, is done with
  kBye = 5,        // the writer sends no more parts; releases may follow
};
inline constexpr uint16_t kLastRecordKind = 5;

// Flag of a part's first record: another part of the same frame follows.
inline constexpr uint16_t kMoreParts = 1;

inline constexpr size_t kRecordHeaderBytes = 8;
inline constexpr size_t kMinRingBytes = size_t{4} << 10;
inline constexpr size_t kMaxRingBytes = size_t{64} << 20;

struct Record {
  RecordKind kind = RecordKind::kPad;
  uint16_t flags = 0;
  absl::Span<const std::byte> body;  // in the ring; valid until the reader's position is given away
};

// Bytes in an arena of the writer.
struct Reference {
  uint32_t arena = 0;
  uint64_t offset = 0;
  uint64_t size = 0;
  uint64_t token = 0;  // what a kRelease names it by
};
inline constexpr size_t kReferenceBytes = 32;

bool IsRingSize(uint64_t size);

class RingWriter {
 public:
  // REQUIRES: IsRingSize(ring.size()).
  explicit RingWriter(absl::Span<std::byte> ring) : ring_(ring) {}

  // The largest body a record may have; there is room for one at least when the ring is empty.
  size_t max_body() const { return ring_.size() / 4; }

  // Where the body of the next record goes; null if there is no room for it while the reader is at
  // `read`. REQUIRES: body_bytes <= max_body(), and read is between what it was before and
  // position().
  std::byte* Begin(size_t body_bytes, uint64_t read);
  // The record that Begin began is complete.
  void End(RecordKind kind, uint16_t flags);

  // Up to where the ring is written, for the reader.
  uint64_t position() const { return position_; }

 private:
  void PutHeader(uint64_t at, size_t size, RecordKind kind, uint16_t flags);

  absl::Span<std::byte> ring_;
  uint64_t position_ = 0;
  uint64_t begun_ = 0;  // where the record lies that Begin made room for
  size_t body_bytes_ = 0;
};

class RingReader {
 public:
  // REQUIRES: IsRingSize(ring.size()). `position` is a multiple of eight.
  explicit RingReader(absl::Span<const std::byte> ring, uint64_t position = 0)
      : ring_(ring), position_(position) {}

  // The next record before `written`, which is what the writer says; nullopt if there is none.
  // kInvalidArgument: the writer lies, and nothing more can be read.
  absl::StatusOr<std::optional<Record>> Next(uint64_t written);

  // What lies before has been read and may be overwritten.
  uint64_t position() const { return position_; }

 private:
  absl::Span<const std::byte> ring_;
  uint64_t position_;
};

// Between a Reference and the body of its record. kInvalidArgument: the body has another size.
void PutReference(const Reference& reference, std::byte* body /* [kReferenceBytes] */);
absl::StatusOr<Reference> ParseReference(absl::Span<const std::byte> body);

// One value of a body, read once; the body may be unaligned. REQUIRES: at + 8 <= body.size().
uint64_t GetU64(absl::Span<const std::byte> body, size_t at);
void PutU64(uint64_t value, std::byte* at);

}  // namespace parley::shm

#endif  // PARLEY_PS_NET_SHM_RING_H_
