// A segment: the memory that one side of a connection writes and the other only reads. A page of
// control words, then the ring with the records it sends.
//
// Each side has one, so that neither ever writes the other's memory: also how far it has read in
// the peer's ring is written into its own segment. Words on different cache lines are written at
// different times.
//
//   0    8  written   this side's ring is written up to here (ring.h)
//   64   8  read      the peer's ring is read up to here
//   128  4  sleeping  odd: this side sleeps, and must be woken when one of the peer's words changes
//   132  4  wants_room  not 0: ... also when the peer has only read
//   4096    the ring
#ifndef PARLEY_PS_NET_SHM_SEGMENT_H_
#define PARLEY_PS_NET_SHM_SEGMENT_H_

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "ps/base/shared_memory.h"

namespace parley::shm {

struct Control {
  alignas(64) std::atomic<uint64_t> written{0};
  alignas(64) std::atomic<uint64_t> read{0};
  alignas(64) std::atomic<uint32_t> sleeping{0};
  std::atomic<uint32_t> wants_room{0};
};
// Between processes an atomic must be one instruction, not a lock of one of them.
static_assert(std::atomic<uint64_t>::is_always_lock_free);
static_assert(sizeof(std::atomic<uint64_t>) == 8 && sizeof(Control) == 192);

inline constexpr size_t kControlBytes = 4096;

// The two halves of a segment. Zeroed memory is a fresh Control.
inline Control* ControlOf(const SharedMemory& segment) {
  return reinterpret_cast<Control*>(segment.data());
}
inline absl::Span<std::byte> RingOf(const SharedMemory& segment) {
  return {segment.data() + kControlBytes, segment.size() - kControlBytes};
}

}  // namespace parley::shm

#endif  // PARLEY_PS_NET_SHM_SEGMENT_H_
