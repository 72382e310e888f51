// Learning-rate schedules: the learning rate of a step is lr times a factor of the step.
//
// A function of the step alone, evaluated wherever it is needed, so that every shard changes its
// rate at the same step and a restart needs no schedule state. With s the step from 0 and w =
// warmup_steps:
//   s < w:   (s + 1) / w, whatever the kind
//   s >= w:  the kind's course at c = s - w: it counts from the end of the warm-up
//     constant:  1
//     step:      gamma ^ floor(c / every)
//     cosine:    min_factor + (1 - min_factor) * (1 + cos(pi * c / steps)) / 2, min_factor from c =
//                steps on
// So a warm-up does not eat into the course: a cosine of N steps behind a warm-up of w ends at step
// w + N. The courses are torch.optim.lr_scheduler's StepLR and CosineAnnealingLR in closed form.
// Thread-safe: const after construction.
#ifndef PARLEY_PS_TABLE_SCHEDULE_H_
#define PARLEY_PS_TABLE_SCHEDULE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "proto/experiment.pb.h"

namespace parley {

// kInvalidArgument names the field, its value and what is allowed.
absl::Status CheckSchedule(const pb::Schedule& schedule);

// The learning rate of every step. Its decimals are read once: reading one takes as long as
// updating some hundred weights.
class LearningRates {
 public:
  LearningRates() = default;  // 0, always
  // REQUIRES: CheckSchedule(config.schedule()) is OK.
  explicit LearningRates(const pb::Optimizer& config);

  double Of(uint64_t step) const { return lr_ * Factor(step); }

 private:
  double Factor(uint64_t step) const;

  pb::Schedule schedule_;
  double lr_ = 0;
  double decimal_ = 0;  // gamma of a step schedule, min_factor of a cosine
};

}  // namespace parley

#endif  // PARLEY_PS_TABLE_SCHEDULE_H_
