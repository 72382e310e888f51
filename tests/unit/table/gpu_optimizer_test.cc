// The GPU's optimizer gives the bits of the CPU's: every rule, any number of gradients.
#include "ps/table/gpu_optimizer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/unit/table/gpu_testing.h"
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
const char* const kEveryGradient[] = {"lr: 0.1 ", "lr: 0.1 weight_decay: 0.01 ",
                                      "lr: 0.1 clip_value: 0.2 ",
                                      "lr: 0.1 weight_decay: 0.01 clip_value: 0.2 "};
// Up to 9 as the CPU groups them by 4; above what one launch takes once and twice.
const size_t kCounts[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 31, 32, 40};

std::vector<std::vector<float>> MakeGradients(uint64_t seed, size_t count, size_t n) {
  std::vector<std::vector<float>> values;
  for (size_t w = 0; w < count; ++w) values.push_back(RandomVector(100 * seed + w, n));
  return values;
}

std::vector<const float*> Pointers(const std::vector<std::vector<float>>& values) {
  std::vector<const float*> pointers;
  for (const std::vector<float>& v : values) pointers.push_back(v.data());
  return pointers;
}

// Weights and slots on a GPU.
struct DeviceState {
  DeviceState(Gpu* gpu, GpuStream* stream, const TrainedState& state)
      : weights(gpu, stream, state.weights), scratch(gpu, state.weights.size()) {
    for (const std::vector<float>& slot : state.slots) slots.emplace_back(gpu, stream, slot);
  }
  absl::Status Apply(const Optimizer& optimizer, size_t n, absl::Span<const float* const> gradients,
                     const StepInfo& info, GpuStream* stream) {
    std::vector<float*> pointers;
    for (const DeviceFloats& slot : slots) pointers.push_back(slot.get());
    return EnqueueApply(optimizer, n, weights.get(), weights.get(), pointers.data(), gradients,
                        info, scratch.get(), stream);
  }
  DeviceFloats weights, scratch;
  std::vector<DeviceFloats> slots;
};

class GpuOptimizerTest : public testing::TestWithParam<uint64_t> {
 protected:
  // Parameter 0: a real one.
  void SetUp() override {
    gpu_ = GetParam() == 0 ? FirstCudaGpu() : GuardedGpu(GetParam());
    if (gpu_ == nullptr) GTEST_SKIP() << "this machine has no GPU, or this build no CUDA";
    auto stream = gpu_->NewStream();
    ASSERT_TRUE(stream.ok()) << stream.status();
    stream_ = *std::move(stream);
  }

  std::vector<DeviceFloats> OnDevice(const std::vector<std::vector<float>>& values) {
    std::vector<DeviceFloats> device;
    for (const std::vector<float>& v : values) device.emplace_back(gpu_.get(), stream_.get(), v);
    return device;
  }

  static std::vector<const float*> Places(const std::vector<DeviceFloats>& device) {
    std::vector<const float*> pointers;
    for (const DeviceFloats& d : device) pointers.push_back(d.get());
    return pointers;
  }

  // Three updates on both sides.
  void Compare(const Optimizer& optimizer, size_t count, size_t n) {
    const std::vector<std::vector<float>> values = MakeGradients(GetParam(), count, n);
    const std::vector<DeviceFloats> device = OnDevice(values);
    TrainedState expected(optimizer, RandomVector(1, n));
    DeviceState state(gpu_.get(), stream_.get(), expected);
    for (uint64_t update = 1; update <= 3; ++update) {
      StepInfo info;
      info.step = update - 1;
      info.update = update;
      info.inverse_weight = 1.0 / 3;
      info.norm_scale = 0.7;
      expected.Apply(optimizer, Pointers(values), info);
      const absl::Status status = state.Apply(optimizer, n, Places(device), info, stream_.get());
      ASSERT_TRUE(status.ok()) << status;
    }
    const std::string what = absl::StrCat(optimizer.config().ShortDebugString(), " W=", count);
    ASSERT_TRUE(SameBits(state.weights.Read(stream_.get()), expected.weights)) << what;
    for (size_t s = 0; s < expected.slots.size(); ++s) {
      ASSERT_TRUE(SameBits(state.slots[s].Read(stream_.get()), expected.slots[s]))
          << what << " slot " << s;
    }
  }

  std::unique_ptr<Gpu> gpu_;
  std::unique_ptr<GpuStream> stream_;
};

TEST_P(GpuOptimizerTest, EveryRuleGivesTheBitsOfTheCpu) {
  for (const std::string rule : kEveryRule) {
    for (const std::string gradient : kEveryGradient) {
      const auto optimizer = MakeOptimizer(gradient + rule);
      for (const size_t count : {0, 1, 3, 9}) Compare(*optimizer, count, 333);
    }
  }
}

TEST_P(GpuOptimizerTest, EveryNumberOfGradientsGivesTheBitsOfTheCpu) {
  for (const std::string rule : {"sgd {}", "adam {}"}) {
    const auto optimizer = MakeOptimizer("lr: 0.1 weight_decay: 0.01 clip_value: 0.2 " + rule);
    for (const size_t count : kCounts) Compare(*optimizer, count, 1027);
  }
}

TEST_P(GpuOptimizerTest, SumsGiveTheBitsOfTheCpu) {
  for (const size_t n : {1, 15, 16, 17, 255, 256, 257, 4111}) {
    for (const size_t count : kCounts) {
      const std::vector<std::vector<float>> values = MakeGradients(GetParam(), count, n);
      const std::vector<DeviceFloats> device = OnDevice(values);
      const DeviceFloats scratch(gpu_.get(), n), sum(gpu_.get(), n), squares(gpu_.get(), 2);
      ASSERT_TRUE(EnqueueSum(n, Places(device), sum.get(), stream_.get()).ok());
      ASSERT_TRUE(EnqueueSumOfSquares(n, Places(device), 0.1, scratch.get(),
                                      reinterpret_cast<double*>(squares.get()), stream_.get())
                      .ok());
      std::vector<float> expected(n);
      Optimizer::Sum(n, Pointers(values), expected.data());
      ASSERT_TRUE(SameBits(sum.Read(stream_.get()), expected)) << "n=" << n << " W=" << count;
      double total = 0;
      ASSERT_TRUE(stream_->CopyOut(&total, squares.get(), sizeof(total)).ok());
      ASSERT_TRUE(stream_->Sync().ok());
      ASSERT_EQ(total, Optimizer::SumOfSquares(n, Pointers(values), 0.1))
          << "n=" << n << " W=" << count;
    }
  }
}

TEST_P(GpuOptimizerTest, WeightsMayBeWrittenBeside) {
  const size_t n = 600;
  const auto optimizer = MakeOptimizer("lr: 0.1 rmsprop { momentum: 0.9 }");
  const std::vector<std::vector<float>> values = MakeGradients(3, 2, n);
  const std::vector<DeviceFloats> device = OnDevice(values);
  TrainedState expected(*optimizer, RandomVector(1, n));
  const DeviceState state(gpu_.get(), stream_.get(), expected);
  const DeviceFloats out(gpu_.get(), n);
  expected.Apply(*optimizer, Pointers(values), StepInfo());
  std::vector<float*> slots;
  for (const DeviceFloats& slot : state.slots) slots.push_back(slot.get());
  ASSERT_TRUE(EnqueueApply(*optimizer, n, state.weights.get(), out.get(), slots.data(),
                           Places(device), StepInfo(), nullptr, stream_.get())
                  .ok());
  EXPECT_TRUE(SameBits(out.Read(stream_.get()), expected.weights));
  EXPECT_TRUE(SameBits(state.weights.Read(stream_.get()), RandomVector(1, n)));
}

TEST_P(GpuOptimizerTest, Fills) {
  const DeviceFloats memory(gpu_.get(), 700);
  ASSERT_TRUE(EnqueueFill(700, 0.1f, memory.get(), stream_.get()).ok());
  EXPECT_TRUE(SameBits(memory.Read(stream_.get()), std::vector<float>(700, 0.1f)));
}

INSTANTIATE_TEST_SUITE_P(Simulated, GpuOptimizerTest, testing::Values(1, 2, 3));
INSTANTIATE_TEST_SUITE_P(Cuda, GpuOptimizerTest, testing::Values(0));

}  // namespace
}  // namespace parley
