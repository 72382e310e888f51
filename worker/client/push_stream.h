// PushStream: what the replay guard of one partition knows of this worker.
//
// Every push of the partition takes the next sequence, from 1, as it leaves, and says below which
// sequence all are acknowledged; the guard remembers a window above that (ps/sync/replay_guard.h).
// Not thread-safe.
#ifndef PARLEY_WORKER_CLIENT_PUSH_STREAM_H_
#define PARLEY_WORKER_CLIENT_PUSH_STREAM_H_

#include <cstdint>

#include "absl/container/flat_hash_set.h"

namespace parley {

class PushStream {
 public:
  // Sequences open at a time: half of what the guard can tell apart (ReplayGuard::kWindow).
  static constexpr uint64_t kMaxUnacknowledged = 512;

  bool HasRoom() const { return next_ < acked_below_ + kMaxUnacknowledged; }
  // REQUIRES: HasRoom().
  uint64_t Take() { return next_++; }
  uint64_t acked_below() const { return acked_below_; }

  // Answers overtake each other: what is acknowledged ahead of its turn is kept aside.
  void Acknowledge(uint64_t sequence) {
    if (sequence != acked_below_) {
      acked_ahead_.insert(sequence);
      return;
    }
    ++acked_below_;
    while (!acked_ahead_.empty() && acked_ahead_.erase(acked_below_) > 0) ++acked_below_;
  }

 private:
  uint64_t next_ = 1;
  uint64_t acked_below_ = 1;
  absl::flat_hash_set<uint64_t> acked_ahead_;
};

}  // namespace parley

#endif  // PARLEY_WORKER_CLIENT_PUSH_STREAM_H_
