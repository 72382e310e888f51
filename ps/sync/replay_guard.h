// ReplayGuard: lets every push through once, however often it arrives; exactly, and in bounded
// memory.
//
// One object per partition, one window per worker. A push is named by (worker, incarnation,
// sequence) with sequences 1, 2, 3 ... per worker and partition. Each push also says below which
// sequence the worker has seen every acknowledgement; those are duplicates by definition and need
// no memory. Of the rest a window of kWindow is remembered one by one: "the last sequence seen"
// would be wrong as soon as two pushes are in flight and overtake each other. Pure. Not
// thread-safe.
#ifndef PARLEY_PS_SYNC_REPLAY_GUARD_H_
#define PARLEY_PS_SYNC_REPLAY_GUARD_H_

#include <bitset>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace parley {

class ReplayGuard {
 public:
  // Unacknowledged pushes of one worker to one partition; the client keeps to less.
  static constexpr uint64_t kWindow = 1024;

  enum class Verdict { kNew, kDuplicate };

  // Worker incarnations are those of the assignment, by rank; pushes of others are refused.
  explicit ReplayGuard(std::vector<uint32_t> incarnations);

  // Looks without remembering, so that a push of several parts is checked as a whole before any of
  // it is taken. kFailedPrecondition: another incarnation (the current one is named).
  // kInvalidArgument: no such worker, sequence 0, or acked_below > sequence. kResourceExhausted:
  // kWindow or more past acked_below (0 and 1 both mean that nothing is acknowledged).
  absl::Status Check(uint32_t worker, uint32_t incarnation, uint64_t sequence, uint64_t acked_below,
                     Verdict* verdict) const;

  // Remembers it. REQUIRES: Check of the same arguments was OK and kNew.
  void Commit(uint32_t worker, uint64_t sequence, uint64_t acked_below);

  // Remembers what was let through elsewhere; returns whether it was new. REQUIRES: Check of the
  // same arguments was OK, whatever the verdict.
  bool Learn(uint32_t worker, uint64_t sequence, uint64_t acked_below);

  // A new incarnation starts from sequence 1; pushes of the old one are refused from now on. The
  // current one again changes nothing. REQUIRES: such a worker.
  void OnNewIncarnation(uint32_t worker, uint32_t incarnation);

  // REQUIRES: such a worker.
  uint32_t incarnation(uint32_t worker) const { return windows_[worker].incarnation; }

  // A worker's window, for a copy.
  struct State {
    uint32_t incarnation = 0;
    uint64_t seen_below = 1;  // all below have been seen
    std::string seen;  // of those from there on, bit i % 8 of byte i / 8; no zeros at its end
  };
  State Save(uint32_t worker) const;
  // kInvalidArgument, and nothing has changed: seen_below is 0, or more is seen than kWindow.
  // REQUIRES: such a worker.
  absl::Status Load(uint32_t worker, const State& state);

 private:
  struct Window {
    uint32_t incarnation = 0;
    uint64_t forgotten_below = 1;  // everything below has been seen
    std::bitset<kWindow>
        seen;  // bit s % kWindow for forgotten_below <= s < forgotten_below + kWindow
  };
  static void Advance(Window* window, uint64_t to);

  std::vector<Window> windows_;
};

}  // namespace parley

#endif  // PARLEY_PS_SYNC_REPLAY_GUARD_H_
