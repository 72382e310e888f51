#include "ps/table/schedule.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "ps/table/decimal.h"
#include "ps/table/fixed_math.h"

namespace parley {
namespace {

double CosineFactor(const pb::Cosine& cosine, uint64_t course) {
  const double low = DecimalOf(cosine.min_factor());
  const double passed = static_cast<double>(std::min<uint64_t>(course, cosine.steps())) /
                        static_cast<double>(cosine.steps());
  return low + (1 - low) * (1 + CosPi(passed)) / 2;
}

}  // namespace

absl::Status CheckSchedule(const pb::Schedule& schedule) {
  if (schedule.has_step()) {
    const pb::StepDecay& step = schedule.step();
    if (step.every() == 0) {
      return absl::InvalidArgumentError(
          "optimizer.schedule.step.every is 0 or not set; allowed: 1 or more steps");
    }
    if (!std::isfinite(step.gamma()) || step.gamma() <= 0) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "optimizer.schedule.step.gamma is %g; allowed: more than 0, finite", step.gamma()));
    }
  }
  if (schedule.has_cosine()) {
    const pb::Cosine& cosine = schedule.cosine();
    if (cosine.steps() == 0) {
      return absl::InvalidArgumentError(
          "optimizer.schedule.cosine.steps is 0 or not set; allowed: 1 or more");
    }
    if (!(cosine.min_factor() >= 0 && cosine.min_factor() <= 1)) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "optimizer.schedule.cosine.min_factor is %g; allowed: 0 to 1", cosine.min_factor()));
    }
  }
  return absl::OkStatus();
}

double ScheduleFactor(const pb::Schedule& schedule, uint64_t step) {
  const uint64_t warmup = schedule.warmup_steps();
  if (step < warmup) return (static_cast<double>(step) + 1) / static_cast<double>(warmup);
  const uint64_t course = step - warmup;
  switch (schedule.kind_case()) {
    case pb::Schedule::kStep:
      return IntegerPower(DecimalOf(schedule.step().gamma()), course / schedule.step().every());
    case pb::Schedule::kCosine:
      return CosineFactor(schedule.cosine(), course);
    case pb::Schedule::kConstant:
    case pb::Schedule::KIND_NOT_SET:
      return 1;
  }
  return 1;
}

}  // namespace parley
