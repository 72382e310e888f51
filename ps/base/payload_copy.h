// CopyPayload: the one door for copies of payload bytes, so that a test can count them.
//
// ARCHITECTURE.md states how often a payload byte is copied on each path; a test reads these
// counters before and after and holds it to that. All copies of payload in ps/net, ps/server and
// worker's client go through here (tests/tidy/check_tree.py bans others there). Passes over the
// bytes that compute something - sums, updates, codecs - are no copies and are not counted.
//
// Thread-safety: any thread. Cost: the memcpy and two relaxed additions, some nanoseconds; meant
// for a run of bytes at a time (a part, a block), not for each row of a sparse table: who copies
// row by row says with NoteCopied, once for all of them, what it has copied.
#ifndef PARLEY_PS_BASE_PAYLOAD_COPY_H_
#define PARLEY_PS_BASE_PAYLOAD_COPY_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace parley {

// Counted since the start of the process, over all threads.
struct PayloadCopies {
  uint64_t bytes = 0, calls = 0;
};

namespace internal {
struct alignas(64) PayloadCopyCounters {  // on a cache line of their own
  std::atomic<uint64_t> bytes{0}, calls{0};
};
inline constinit PayloadCopyCounters payload_copy_counters;
}  // namespace internal

// Counts bytes that were copied by other means, in one pass that counts as `calls`. Nothing without
// bytes.
inline void NoteCopied(uint64_t bytes, uint64_t calls = 1) {
  if (bytes == 0) return;
  // Relaxed: sums that nobody draws conclusions from about other memory.
  internal::payload_copy_counters.bytes.fetch_add(bytes, std::memory_order_relaxed);
  internal::payload_copy_counters.calls.fetch_add(calls, std::memory_order_relaxed);
}

// std::memcpy, counted. `size` is in bytes; with 0 the pointers may be null, and nothing is
// counted.
inline void CopyPayload(void* to, const void* from, size_t size) {
  if (size == 0) return;
  std::memcpy(to, from, size);
  NoteCopied(size);
}

// What has been copied so far. While other threads copy, the two need not be of one moment.
inline PayloadCopies CountPayloadCopies() {
  return {internal::payload_copy_counters.bytes.load(std::memory_order_relaxed),
          internal::payload_copy_counters.calls.load(std::memory_order_relaxed)};
}

}  // namespace parley

#endif  // PARLEY_PS_BASE_PAYLOAD_COPY_H_
