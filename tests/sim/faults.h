// SimFault: one thing that goes wrong, or is asked for, in a simulated cluster.
#ifndef PARLEY_TESTS_SIM_FAULTS_H_
#define PARLEY_TESTS_SIM_FAULTS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace parley {

inline constexpr int kSchedulerProcess = -2;

struct SimFault {
  enum Kind {
    kCrash,        // the process dies; another takes its place after `length`, if that is finite
    kStall,        // it stands still for `length` (SIGSTOP)
    kJump,         // its clock is `length` ahead from then on
    kMute,         // nothing it sends reaches `other` for `length`; the other way all is well
    kIsolate,      // nothing passes between it and anybody, for `length`
    kSlow,         // its frames take 50 times as long, for `length`
    kSlowLink,     // those between it and `other` do, for `length`
    kPowerLoss,    // of the scheduler's machine, within the operation on its disk after `count`
                   // others: unsynced bytes are lost, and it is back after `length`
    kDiskLost,     // the same of the machine that has the checkpoints: its disk fails until then
    kDiskLies,     // the checkpoints' disk syncs nothing for `length`, and then loses its power
    kDiskFull,     // the checkpoints' disk takes no more than `count` bytes more, for `length`
    kDiskErrors,   // every fourth operation on it fails, for `length`
    kStateFull,    // the disk of the scheduler's state takes no more than `count` bytes more
    kStateErrors,  // every second change on it fails; both for `length`
    kJoinServer,   // a process comes, as a spare
    kJoinWorker,   // likewise
    kResize,       // CONTROL: `count` servers
    kCheckpoint,   // a checkpoint is asked for
  };
  Kind kind = kCrash;
  // When: once so many updates have gone into weights, and so many events after that; or, if
  // `updates` is 0, at this time.
  uint64_t updates = 0, events = 0;
  absl::Duration at = absl::ZeroDuration();
  // Of processes in the order in which they came: servers, then workers; then those that join. One
  // that died and was started again is the same process. kSchedulerProcess: the scheduler.
  int process = 0, other = 0;
  absl::Duration length = absl::ZeroDuration();
  uint64_t count = 0;
};

// "server 1 crashes after 12 updates and 40 events, back in 2 s".
std::string Describe(const SimFault& fault);

}  // namespace parley

#endif  // PARLEY_TESTS_SIM_FAULTS_H_
