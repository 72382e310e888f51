// What a scheduler relies on in the state that an earlier one has saved: it may have been saved for
// another experiment, or changed where it lay. Pure.
#ifndef PARLEY_SCHEDULER_SAVED_STATE_H_
#define PARLEY_SCHEDULER_SAVED_STATE_H_

#include "absl/status/status.h"
#include "proto/experiment.pb.h"
#include "proto/scheduler.pb.h"

namespace parley {

// kFailedPrecondition: of another experiment than `cluster` is of; kDataLoss: of none. Either names
// what is wrong, and what is allowed.
absl::Status CheckSavedState(const pb::SchedulerState& state, const pb::Cluster& cluster);

}  // namespace parley

#endif  // PARLEY_SCHEDULER_SAVED_STATE_H_
