#include "ps/table/schedule.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"
#include "ps/table/decimal.h"
#include "ps/table/fixed_math.h"

namespace parley {
namespace {

double CosineFactor(const pb::Cosine& cosine, double low, uint64_t course) {
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

LearningRates::LearningRates(const pb::Optimizer& config)
    : schedule_(config.schedule()),
      lr_(DecimalOf(config.lr())),
      decimal_(DecimalOf(schedule_.has_step() ? schedule_.step().gamma()
                                              : schedule_.cosine().min_factor())) {}

double LearningRates::Factor(uint64_t step) const {
  const uint64_t warmup = schedule_.warmup_steps();
  if (step < warmup) return (static_cast<double>(step) + 1) / static_cast<double>(warmup);
  const uint64_t course = step - warmup;
  switch (schedule_.kind_case()) {
    case pb::Schedule::kStep:
      return IntegerPower(decimal_, course / schedule_.step().every());
    case pb::Schedule::kCosine:
      return CosineFactor(schedule_.cosine(), decimal_, course);
    case pb::Schedule::kConstant:
    case pb::Schedule::KIND_NOT_SET:
      return 1;
  }
  return 1;
}

}  // namespace parley
