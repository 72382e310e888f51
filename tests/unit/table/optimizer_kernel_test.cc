// The fused pass: the same bits on every instruction set and as a naive loop.
#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/unit/table/table_testing.h"

namespace parley {
namespace {

const char* const kEveryRule[] = {
    "sgd {}",
    "sgd { momentum: 0.9 dampening: 0.1 }",
    "sgd { momentum: 0.9 nesterov: true }",
    "adagrad { lr_decay: 0.1 initial_accumulator: 0.1 }",
    "adadelta {}",
    "rmsprop {}",
    "rmsprop { momentum: 0.9 }",
    "rmsprop { centered: true }",
    "rmsprop { centered: true momentum: 0.9 }",
    "adam {}",
    "adam { amsgrad: true }",
    "adamw {}",
};
// Around the widths of registers, lanes and tiles.
const size_t kSizes[] = {1, 7, 15, 16, 17, 37, 2047, 2048, 2049, 4111};

class KernelTest : public testing::Test {
 protected:
  ~KernelTest() override { ForceOptimizerKernelIsa(""); }
};

// `count` gradients of `n` elements, each at another alignment.
struct Gradients {
  Gradients(size_t count, size_t n, bool aligned = false) {
    for (size_t w = 0; w < count; ++w) {
      values.push_back(RandomVector(100 + w, n));
      shifted.push_back(std::make_unique<ShiftedFloats>(values.back(), aligned ? 0 : 1 + w % 7));
      pointers.push_back(shifted.back()->get());
    }
  }
  std::vector<std::vector<float>> values;
  std::vector<std::unique_ptr<ShiftedFloats>> shifted;
  std::vector<const float*> pointers;
};

TrainedState ThreeUpdates(const Optimizer& optimizer, const Gradients& gradients, size_t n) {
  TrainedState state(optimizer, RandomVector(1, n));
  for (uint64_t update = 1; update <= 3; ++update) {
    StepInfo info;
    info.step = update - 1;
    info.update = update;
    info.inverse_weight = 1.0 / 3;
    info.norm_scale = 0.7;
    state.Apply(optimizer, gradients.pointers, info);
  }
  return state;
}

TEST_F(KernelTest, EveryInstructionSetGivesTheSameBits) {
  if (!ForceOptimizerKernelIsa("avx512")) GTEST_SKIP() << "this machine has no AVX-512";
  for (const std::string rule : kEveryRule) {
    const auto optimizer = MakeOptimizer("lr: 0.1 weight_decay: 0.01 clip_value: 0.2 " + rule);
    for (const size_t n : kSizes) {
      for (const size_t count : {0, 1, 2, 3, 4, 5, 8, 9}) {
        const Gradients gradients(count, n);
        ASSERT_TRUE(ForceOptimizerKernelIsa("avx512"));
        EXPECT_STREQ(OptimizerKernelIsa(), "avx512");
        const TrainedState wide = ThreeUpdates(*optimizer, gradients, n);
        const double wide_sum = Optimizer::SumOfSquares(n, gradients.pointers, 0.1);
        ASSERT_TRUE(ForceOptimizerKernelIsa("avx2"));
        EXPECT_STREQ(OptimizerKernelIsa(), "avx2");
        const TrainedState narrow = ThreeUpdates(*optimizer, gradients, n);
        const double narrow_sum = Optimizer::SumOfSquares(n, gradients.pointers, 0.1);
        ASSERT_TRUE(SameBits(wide.weights, narrow.weights)) << rule << " n=" << n << " W=" << count;
        for (size_t s = 0; s < wide.slots.size(); ++s) {
          ASSERT_TRUE(SameBits(wide.slots[s], narrow.slots[s])) << rule << " slot " << s;
        }
        ASSERT_EQ(wide_sum, narrow_sum) << "n=" << n << " W=" << count;
      }
    }
  }
  EXPECT_FALSE(ForceOptimizerKernelIsa("sse9"));
}

TEST_F(KernelTest, AlignmentAndPlaceDoNotShow) {
  const size_t n = 4111;
  for (const std::string rule : kEveryRule) {
    const auto optimizer = MakeOptimizer("lr: 0.1 weight_decay: 0.01 " + rule);
    const Gradients unaligned(3, n), aligned(3, n, /*aligned=*/true);
    EXPECT_TRUE(SameBits(ThreeUpdates(*optimizer, unaligned, n).weights,
                         ThreeUpdates(*optimizer, aligned, n).weights));
    // Out of place, the old weights stay as they are.
    TrainedState in_place(*optimizer, RandomVector(1, n)), beside = in_place;
    std::vector<float> out(n, -1);
    std::vector<float*> slots;
    for (auto& slot : beside.slots) slots.push_back(slot.data());
    in_place.Apply(*optimizer, aligned.pointers, StepInfo());
    optimizer->Apply(n, beside.weights.data(), out.data(), slots.data(), aligned.pointers,
                     StepInfo());
    EXPECT_TRUE(SameBits(out, in_place.weights)) << rule;
    EXPECT_TRUE(SameBits(beside.weights, RandomVector(1, n))) << rule;
    EXPECT_EQ(beside.slots, in_place.slots) << rule;
  }
}

// The gradient that a rule sees, by the text of optimizer.h.
float NaiveGradient(const Gradients& gradients, size_t i, const StepInfo& info, float clip,
                    float decay, float w) {
  if (gradients.values.empty()) return 0.0f + decay * w;
  float g = gradients.values[0][i];
  for (size_t k = 1; k < gradients.values.size(); ++k) g = g + gradients.values[k][i];
  g = g * static_cast<float>(info.inverse_weight);
  g = g * static_cast<float>(info.norm_scale);
  g = std::min(std::max(g, -clip), clip);
  return g + decay * w;
}

TEST_F(KernelTest, FusedPassEqualsANaiveLoopBitForBit) {
  const auto sgd = MakeOptimizer("lr: 0.1 weight_decay: 0.01 clip_value: 0.2 sgd {}");
  const auto adadelta = MakeOptimizer("lr: 0.5 weight_decay: 0.01 clip_value: 0.2 adadelta {}");
  const auto adam = MakeOptimizer("lr: 0.01 weight_decay: 0.01 clip_value: 0.2 adam {}");
  StepInfo info;
  info.inverse_weight = 1.0 / 128;
  info.norm_scale = 0.7;
  for (const size_t n : kSizes) {
    for (const size_t count : {0, 1, 2, 3, 4, 5, 6, 9, 13}) {
      Gradients gradients(count, n);
      const std::vector<float> w = RandomVector(1, n);
      std::vector<float> by_sgd(n), by_adadelta(n), by_adam(n);
      for (size_t i = 0; i < n; ++i) {
        const float g = NaiveGradient(gradients, i, info, 0.2f, 0.01f, w[i]);
        by_sgd[i] = w[i] + -0.1f * g;
        const float square = 0.0f * 0.9f + (static_cast<float>(1 - 0.9) * g) * g;
        const float delta = std::sqrt(1e-6f) / std::sqrt(square + 1e-6f) * g;
        by_adadelta[i] = w[i] + -0.5f * delta;
        const float first = static_cast<float>(1 - 0.9) * g;
        const float second = (static_cast<float>(1 - 0.999) * g) * g;
        const float bias2 = static_cast<float>(std::sqrt(1 - 0.999));
        by_adam[i] = w[i] + (static_cast<float>(-(0.01 / (1 - 0.9))) * first) /
                                (std::sqrt(second) / bias2 + 1e-8f);
      }
      const std::pair<const Optimizer*, const std::vector<float>*> pairs[] = {
          {sgd.get(), &by_sgd}, {adadelta.get(), &by_adadelta}, {adam.get(), &by_adam}};
      for (const auto& [optimizer, expected] : pairs) {
        TrainedState state(*optimizer, w);
        state.Apply(*optimizer, gradients.pointers, info);
        ASSERT_TRUE(SameBits(state.weights, *expected))
            << optimizer->config().ShortDebugString() << " n=" << n << " W=" << count;
      }
    }
  }
}

// Momentum's first update is SGD's, with a sum that is stored before it is used.
TEST_F(KernelTest, SumAndUpdateInOneLoopAsInTwo) {
  for (const char* isa : {"avx2", "avx512"}) {
    if (!ForceOptimizerKernelIsa(isa)) continue;
    for (const char* clip : {"", " clip_value: 0.02"}) {
      const auto one = MakeOptimizer(std::string("lr: 0.1 sgd {}") + clip);
      const auto two = MakeOptimizer(std::string("lr: 0.1 sgd { momentum: 0.9 }") + clip);
      StepInfo info;
      info.inverse_weight = 1.0 / 13;
      info.norm_scale = 0.7;
      for (const size_t n : kSizes) {
        for (const size_t count : {0, 1, 2, 3, 4, 5}) {
          Gradients gradients(count, n);
          TrainedState fused(*one, RandomVector(1, n)), apart(*two, RandomVector(1, n));
          fused.Apply(*one, gradients.pointers, info);
          apart.Apply(*two, gradients.pointers, info);
          ASSERT_TRUE(SameBits(fused.weights, apart.weights))
              << isa << clip << " n=" << n << " W=" << count;
          // Not by doing nothing.
          ASSERT_EQ(SameBits(fused.weights, RandomVector(1, n)), count == 0);
        }
      }
    }
  }
}

TEST_F(KernelTest, OrderOfGradientsDecidesTheBits) {
  // (1e8 + -1e8) + 1 is 1, (1e8 + 1) + -1e8 is 0: the order given is the order summed.
  const std::vector<float> big(20, 1e8f), minus(20, -1e8f), one(20, 1.0f);
  const auto optimizer = MakeOptimizer("lr: 1 sgd {}");
  TrainedState a(*optimizer, std::vector<float>(20, 0.0f)), b = a;
  a.Apply(*optimizer, {big.data(), minus.data(), one.data()}, StepInfo());
  b.Apply(*optimizer, {big.data(), one.data(), minus.data()}, StepInfo());
  EXPECT_EQ(a.weights, std::vector<float>(20, -1.0f));
  EXPECT_EQ(b.weights, std::vector<float>(20, 0.0f));
}

TEST_F(KernelTest, NoNumberPassesTheClipAsOneAndSpreadsNoFurther) {
  for (const char* isa : {"avx2", "avx512"}) {
    if (!ForceOptimizerKernelIsa(isa)) continue;
    std::vector<float> gradient(40, 0.1f);
    gradient[3] = std::numeric_limits<float>::quiet_NaN();
    gradient[20] = std::numeric_limits<float>::infinity();
    const auto optimizer = MakeOptimizer("lr: 1 clip_value: 0.5 sgd {}");
    TrainedState state(*optimizer, std::vector<float>(40, 0.0f));
    state.Apply(*optimizer, {gradient.data()}, StepInfo());
    for (size_t i = 0; i < 40; ++i) {
      if (i == 3) {
        EXPECT_TRUE(std::isnan(state.weights[i])) << isa;
      } else {
        EXPECT_EQ(state.weights[i], i == 20 ? -0.5f : -0.1f) << isa << " " << i;
      }
    }
  }
}

TEST_F(KernelTest, SumOfSquaresAddsSixteenLanesInOrder) {
  for (const size_t n : kSizes) {
    for (const size_t count : {0, 1, 3, 6}) {
      const Gradients gradients(count, n);
      double lanes[16] = {};
      for (size_t i = 0; i < n && count > 0; ++i) {
        float g = gradients.values[0][i];
        for (size_t k = 1; k < count; ++k) g = g + gradients.values[k][i];
        const double x = g * 0.25f;
        lanes[i % 16] += x * x;
      }
      double expected = 0;
      for (const double lane : lanes) expected += lane;
      EXPECT_EQ(Optimizer::SumOfSquares(n, gradients.pointers, 0.25), expected) << n;
    }
  }
}

TEST_F(KernelTest, NormScaleIsThatOfClipGradNorm) {
  const auto clipped = MakeOptimizer("clip_norm: 2 sgd {}");
  EXPECT_DOUBLE_EQ(clipped->NormScale(25), 2 / (5 + 1e-6));
  EXPECT_EQ(clipped->NormScale(1), 1);
  EXPECT_EQ(clipped->NormScale(0), 1);
  EXPECT_TRUE(std::isnan(clipped->NormScale(std::nan(""))));
  EXPECT_EQ(MakeOptimizer("sgd {}")->NormScale(25), 1);
}

}  // namespace
}  // namespace parley
