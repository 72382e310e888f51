// Learning-rate schedules: the factor by which the learning rate of a step is multiplied.
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
// Pure functions, thread-safe.
#ifndef PARLEY_PS_TABLE_SCHEDULE_H_
#define PARLEY_PS_TABLE_SCHEDULE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "proto/experiment.pb.h"

namespace parley {

// kInvalidArgument names the field, its value and what is allowed.
absl::Status CheckSchedule(const pb::Schedule& schedule);

// REQUIRES: CheckSchedule(schedule) is OK.
double ScheduleFactor(const pb::Schedule& schedule, uint64_t step);

}  // namespace parley

#endif  // PARLEY_PS_TABLE_SCHEDULE_H_
