// EpochMeter: where a worker's time goes. At any moment it is in one activity.
//
// Computing is counted from the start of a run off the loop to the moment the loop hears that its
// last Backward is done; waiting is the rest of training: weights or gradients are on their way.
#ifndef PARLEY_WORKER_EPOCH_METER_H_
#define PARLEY_WORKER_EPOCH_METER_H_

#include "absl/time/time.h"

namespace parley {

class EpochMeter {
 public:
  enum class Activity { kNone, kCompute, kWait, kEvaluate };

  void Switch(absl::Duration now, Activity activity) {
    const absl::Duration spent = now - since_;
    if (activity_ == Activity::kCompute) compute += spent;
    if (activity_ == Activity::kWait) wait += spent;
    if (activity_ == Activity::kEvaluate) evaluate += spent;
    since_ = now;
    activity_ = activity;
  }

  absl::Duration compute, wait, evaluate;

 private:
  Activity activity_ = Activity::kNone;
  absl::Duration since_;
};

}  // namespace parley

#endif  // PARLEY_WORKER_EPOCH_METER_H_
