// Schedules, and what an optimizer's configuration may not be.
#include <cmath>

#include "gmock/gmock.h"
#include "ps/table/fixed_math.h"
#include "ps/table/schedule.h"
#include "tests/unit/table/table_testing.h"

namespace parley {
namespace {

using testing::HasSubstr;

std::string Refusal(const std::string& text) {
  const auto optimizer = Optimizer::Create(ParseOptimizer(text));
  if (optimizer.ok()) return "accepted";
  EXPECT_EQ(optimizer.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(optimizer.status().message());
}

TEST(OptimizerConfigTest, RefusalsNameFieldValueAndWhatIsAllowed) {
  EXPECT_THAT(Refusal("lr: 0.1"), HasSubstr("set one of sgd, adagrad"));
  EXPECT_EQ(Refusal("lr: -0.5 sgd {}"), "optimizer.lr is -0.5; allowed: 0 or more, finite");
  EXPECT_THAT(Refusal("lr: nan sgd {}"), HasSubstr("optimizer.lr is nan"));
  EXPECT_THAT(Refusal("lr: inf sgd {}"), HasSubstr("optimizer.lr is inf"));
  EXPECT_THAT(Refusal("weight_decay: -1 sgd {}"), HasSubstr("optimizer.weight_decay is -1"));
  EXPECT_THAT(Refusal("clip_value: -1 sgd {}"), HasSubstr("optimizer.clip_value is -1"));
  EXPECT_THAT(Refusal("clip_norm: -2 sgd {}"), HasSubstr("optimizer.clip_norm is -2"));
  EXPECT_THAT(Refusal("sgd { momentum: -1 }"), HasSubstr("optimizer.sgd.momentum is -1"));
  EXPECT_THAT(Refusal("sgd { dampening: inf }"), HasSubstr("optimizer.sgd.dampening is inf"));
  EXPECT_THAT(Refusal("sgd { nesterov: true }"), HasSubstr("optimizer.sgd.nesterov is true"));
  EXPECT_THAT(Refusal("sgd { nesterov: true momentum: 0.9 dampening: 0.1 }"),
              HasSubstr("dampening 0.1"));
  EXPECT_THAT(Refusal("adagrad { eps: -1 }"), HasSubstr("optimizer.adagrad.eps is -1"));
  EXPECT_THAT(Refusal("adagrad { lr_decay: -1 }"), HasSubstr("optimizer.adagrad.lr_decay"));
  EXPECT_THAT(Refusal("adagrad { initial_accumulator: -1 }"), HasSubstr("initial_accumulator"));
  EXPECT_EQ(Refusal("adadelta { rho: 1.5 }"), "optimizer.adadelta.rho is 1.5; allowed: 0 to 1");
  EXPECT_THAT(Refusal("rmsprop { alpha: -0.1 }"), HasSubstr("optimizer.rmsprop.alpha is -0.1"));
  EXPECT_THAT(Refusal("rmsprop { momentum: -1 }"), HasSubstr("optimizer.rmsprop.momentum"));
  EXPECT_EQ(Refusal("adam { beta1: 1 }"),
            "optimizer.adam.beta1 is 1; allowed: 0 up to, not including, 1");
  EXPECT_THAT(Refusal("adam { beta2: nan }"), HasSubstr("optimizer.adam.beta2 is nan"));
  EXPECT_THAT(Refusal("adamw { eps: -1 }"), HasSubstr("optimizer.adamw.eps is -1"));
  EXPECT_THAT(Refusal("sgd {} schedule { step {} }"),
              HasSubstr("optimizer.schedule.step.every is 0"));
  EXPECT_THAT(Refusal("sgd {} schedule { step { every: 2 gamma: 0 } }"),
              HasSubstr("optimizer.schedule.step.gamma is 0"));
  EXPECT_THAT(Refusal("sgd {} schedule { cosine {} }"),
              HasSubstr("optimizer.schedule.cosine.steps is 0"));
  EXPECT_THAT(Refusal("sgd {} schedule { cosine { steps: 5 min_factor: 1.5 } }"),
              HasSubstr("optimizer.schedule.cosine.min_factor is 1.5"));
  EXPECT_EQ(Refusal("lr: 0 adamw {} schedule { warmup_steps: 3 }"), "accepted");
}

TEST(OptimizerConfigTest, SlotsBesideTheWeights) {
  EXPECT_EQ(MakeOptimizer("sgd {}")->slots(), 0);
  EXPECT_EQ(MakeOptimizer("sgd { momentum: 0.1 }")->slots(), 1);
  EXPECT_EQ(MakeOptimizer("adadelta {}")->slots(), 2);
  EXPECT_EQ(MakeOptimizer("adam { amsgrad: true }")->slots(), Optimizer::kMaxSlots);
  EXPECT_EQ(MakeOptimizer("adagrad { initial_accumulator: 0.5 }")->initial_slot_value(0), 0.5f);
  EXPECT_EQ(MakeOptimizer("adam {}")->initial_slot_value(1), 0.0f);
}

TEST(ScheduleTest, ConstantAndTheDecimalThatWasWritten) {
  const auto optimizer = MakeOptimizer("lr: 0.1 sgd {}");
  EXPECT_EQ(optimizer->LearningRate(0), 0.1);
  EXPECT_EQ(optimizer->LearningRate(1u << 30), 0.1);
}

TEST(ScheduleTest, WarmupRisesLinearlyAndTheCourseCountsFromItsEnd) {
  const auto optimizer =
      MakeOptimizer("lr: 1 sgd {} schedule { warmup_steps: 4 step { every: 3 gamma: 0.5 } }");
  const double expected[] = {0.25, 0.5, 0.75, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25};
  for (uint64_t s = 0; s < std::size(expected); ++s) {
    EXPECT_EQ(optimizer->LearningRate(s), expected[s]) << "step " << s;
  }
}

TEST(ScheduleTest, CosineFallsOverItsStepsAndStaysAtItsMinimum) {
  const auto optimizer = MakeOptimizer(
      "lr: 2 sgd {} schedule { warmup_steps: 10 cosine { steps: 100 min_factor: 0.2 } }");
  EXPECT_DOUBLE_EQ(optimizer->LearningRate(10), 2);
  EXPECT_DOUBLE_EQ(optimizer->LearningRate(60), 1.2);
  EXPECT_DOUBLE_EQ(optimizer->LearningRate(110), 0.4);
  EXPECT_DOUBLE_EQ(optimizer->LearningRate(100000), 0.4);
}

TEST(FixedMathTest, AgreesWithTheLibrary) {
  for (int i = 0; i <= 1000; ++i) {
    const double x = i / 1000.0;
    EXPECT_NEAR(CosPi(x), std::cos(M_PI * x), 1e-15) << x;
  }
  for (const double base : {0.0, 0.5, 0.9, 0.999}) {
    for (const uint64_t n : {0, 1, 2, 3, 17, 1000}) {
      EXPECT_NEAR(IntegerPower(base, n), std::pow(base, n), 1e-13 * std::pow(base, n));
    }
  }
}

}  // namespace
}  // namespace parley
