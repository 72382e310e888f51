// What a Device does at the same time: nobody sees it in the numbers. The simulated GPU does what
// is not ordered in another order for each seed.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "ps/gpu/gpu_memory.h"
#include "tests/conformance/device_runs.h"

namespace parley {
namespace {

DeviceCase Simulated(uint64_t seed) { return {"simulated", DeviceKind::kSimulated, {}, seed}; }

std::unique_ptr<Device> NewSimulated(uint64_t seed, GemmMath math = GemmMath::kFp32) {
  // The guard takes time, and is on in other tests.
  return *CreateGpuDevice(CreateSimulatedGpu({.seed = seed, .guard = seed % 16 == 0}),
                          {.math = math, .column_bytes = kSmallColumns});
}

// The mutants of CMakeLists.txt are found here: each leaves out something that these depend on.
TEST(DeviceOrderTest, EverySeedGivesTheBitsOfTheFirst) {
  for (const GemmMath math : {GemmMath::kFp32, GemmMath::kBf16}) {
    const auto run = [&](uint64_t seed) {
      const std::unique_ptr<Device> device = NewSimulated(seed, math);
      return std::vector<Record>{TrainInSteps(device.get(), false),
                                 TrainInSteps(device.get(), true), RunAhead(device.get()),
                                 RunShortStepsAhead(device.get())};
    };
    const std::vector<Record> first = run(0);
    EXPECT_EQ(first[0], first[1]) << "telling the next batch changes the numbers";
    if (math == GemmMath::kFp32) {
      const std::unique_ptr<Device> cpu = *MakeDevice(kDeviceCases[0]);
      for (const auto& [here, there] : {std::pair(first[0], TrainInSteps(cpu.get(), false)),
                                        std::pair(first[2], RunAhead(cpu.get())),
                                        std::pair(first[3], RunShortStepsAhead(cpu.get()))}) {
        const std::vector<float>& want = there.floats();
        ExpectClose(here.floats(), {want.begin(), want.end()}, 1e-4, "differs from the CPU's");
      }
    }
    const uint64_t seeds = math == GemmMath::kFp32 ? 200 : 40;
    for (uint64_t seed = 1; seed <= seeds; ++seed) {
      ASSERT_TRUE(run(seed) == first) << "seed " << seed << " has other bits than seed 0";
    }
  }
}

// A copy out goes on beside operations, which may be about to overwrite what it reads.
TEST(DeviceOrderTest, DownloadsAreOfTheirPlaceInTheOrder) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    const std::unique_ptr<Device> device = NewSimulated(seed);
    const std::unique_ptr<Tensor> x = device->NewTensor(), y = device->NewTensor();
    const std::unique_ptr<Tensor> z = device->NewTensor();
    const std::unique_ptr<Workspace> memory = device->NewWorkspace(), none = device->NewWorkspace();
    const std::vector<float> values = Pattern(1, 2 * 12), same = {1, 0, 0, 0, 1, 0, 0, 0, 1};
    const std::vector<float> zeros(3);
    device->BeginStep();
    device->Upload(values.data(), {3, 2, 2}, 2, x.get());
    const float* weight = device->LoadParameters(same.data(), MemoryKind::kHost, 9, memory.get());
    const float* bias = device->LoadParameters(zeros.data(), MemoryKind::kHost, 3, none.get());
    ASSERT_TRUE(device->Prepare(y.get(), {3, 2, 2}, 2).ok());
    ASSERT_TRUE(device->Prepare(z.get(), {3, 2, 2}, 2).ok());
    device->Conv2dForward(x.get(), {.kernel = 1}, weight, bias, false, y.get());
    std::vector<float> before(24), after(24), other(24);
    device->Download(y.get(), before.data());
    device->ReluForward(y.get(), z.get());
    device->Conv2dForward(x.get(), {.kernel = 1}, weight, bias, true, y.get());
    device->Download(z.get(), other.data());
    device->Download(y.get(), after.data());
    ASSERT_TRUE(device->Sync().ok());
    std::vector<float> rectified = values;
    for (float& v : rectified) v = std::max(v, 0.0f);
    ASSERT_EQ(before, values) << "seed " << seed;
    ASSERT_EQ(other, rectified) << "seed " << seed;
    ASSERT_EQ(after, rectified) << "seed " << seed;
  }
}

// Gradients come one after the other, and are read while others are still made.
TEST(DeviceOrderTest, GradientsAreThereWhenTheirStageIsAndLaterOnesNeedNotBe) {
  std::vector<float> want;
  int early = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    const std::unique_ptr<Device> device = NewSimulated(seed);
    TestModel m(kSmallConvNet, kRunInput, kRunClasses, device.get());
    if (want.empty()) {
      m.Step(6);
      want = m.gradients;
      m.gradients.assign(m.gradients.size(), std::nanf(""));
    }
    OwnBatch batch(1, 6);
    ASSERT_TRUE(m.model->Begin(batch.view(), {}).ok());
    Forward(*m.model);
    Backward(*m.model);
    for (size_t stage = m.model->stages(); stage-- > 0;) {
      const bool ask = seed % 2 == 1;
      for (int polls = 0; ask && !m.model->GradientsReady(stage); ++polls) ASSERT_LT(polls, 10000);
      ASSERT_TRUE(m.model->AwaitGradients(stage).ok());
      EXPECT_TRUE(m.model->GradientsReady(stage));
      const Range tensors = m.model->stage_tensors(stage);
      if (tensors.size() == 0) continue;
      const uint64_t begin = m.tensors[tensors.begin].begin;
      for (uint64_t i = begin; i < m.tensors[tensors.end - 1].end; ++i) {
        ASSERT_EQ(m.gradients[i], want[i]) << "seed " << seed << " stage " << stage;
      }
      early += begin > 0 && std::isnan(m.gradients[begin - 1]) ? 1 : 0;
    }
    ASSERT_TRUE(m.model->Result().ok());
  }
  EXPECT_GT(early, 0) << "nothing was ever waited for by itself";
}

TEST(DeviceOrderTest, ParametersAndGradientsInDeviceMemory) {
  const std::unique_ptr<Device> plain = NewSimulated(0);
  TestModel want(kSmallConvNet, kRunInput, kRunClasses, plain.get());
  const double loss = want.Step(6).loss_sum;
  for (const uint64_t seed : {1, 2, 3}) {
    const std::shared_ptr<Gpu> gpu = *MakeGpu(Simulated(seed));
    const auto device =
        *CreateGpuDevice(gpu, {.math = GemmMath::kFp32, .column_bytes = kSmallColumns});
    TestModel m(kSmallConvNet, kRunInput, kRunClasses, device.get());
    const size_t bytes = m.parameters.size() * sizeof(float);
    const std::unique_ptr<GpuStream> stream = *gpu->NewStream();
    DeviceMemory parameters, gradients;
    ASSERT_TRUE(parameters.Reserve(gpu.get(), bytes).ok());
    ASSERT_TRUE(gradients.Reserve(gpu.get(), bytes).ok());
    ASSERT_TRUE(stream->CopyIn(parameters.data(), m.parameters.data(), bytes).ok());
    ASSERT_TRUE(stream->Sync().ok());
    m.model->BindParameters(parameters.floats(), MemoryKind::kDevice);
    m.model->BindGradients(gradients.floats(), MemoryKind::kDevice);
    EXPECT_EQ(m.Step(6).loss_sum, loss);
    ASSERT_TRUE(stream->CopyOut(m.gradients.data(), gradients.data(), bytes).ok());
    ASSERT_TRUE(stream->Sync().ok());
    EXPECT_EQ(m.gradients, want.gradients);
  }
}

using OrderTest = DeviceTest;
PARLEY_ON_ALL_DEVICES(OrderTest);

TEST_P(OrderTest, TheSameCallsGiveTheSameBits) {
  const std::unique_ptr<Device> device = NewDevice(), other = NewDevice();
  const Record steps = TrainInSteps(device.get(), false), ahead = RunAhead(device.get());
  EXPECT_EQ(RunAhead(device.get()), ahead);
  EXPECT_EQ(TrainInSteps(device.get(), false), steps);
  EXPECT_EQ(TrainInSteps(device.get(), true), steps);  // the batch was there before: no more
  EXPECT_EQ(TrainInSteps(other.get(), true), steps);
  EXPECT_EQ(RunAhead(other.get()), ahead);
}

TEST_P(OrderTest, MarksAreReachedInOrder) {
  DeviceRig rig(NewDevice());
  constexpr size_t kMarks = 5;
  const std::vector<float> x = Pattern(1, 6);
  std::vector<std::vector<float>> out(kMarks, std::vector<float>(6, std::nanf("")));
  std::vector<Mark> marks;
  Tensor* t = rig.Input(x, {6, 1, 1}, 1);
  for (size_t i = 0; i < kMarks; ++i) {
    Tensor* y = rig.Output({6, 1, 1}, 1);
    rig->ReluForward(t, y);
    rig->Download(y, out[i].data());
    marks.push_back(rig->MarkHere());
  }
  std::vector<float> want = x;
  for (float& v : want) v = std::max(v, 0.0f);
  ASSERT_TRUE(rig->Await(marks[1]).ok());
  EXPECT_TRUE(rig->Reached(marks[0]) && rig->Reached(marks[1]));
  EXPECT_EQ(out[0], want);
  EXPECT_EQ(out[1], want);
  for (int polls = 0; !rig->Reached(marks[3]); ++polls) ASSERT_LT(polls, 100000000);
  EXPECT_TRUE(rig->Reached(marks[2]));
  EXPECT_EQ(out[2], want);
  EXPECT_EQ(out[3], want);
  ASSERT_TRUE(rig->Await(marks[0]).ok());  // again, late
  ASSERT_TRUE(rig->Sync().ok());
  for (const Mark mark : marks) EXPECT_TRUE(rig->Reached(mark));
  EXPECT_EQ(out[4], want);
}

// Each caller of NllForward gets what is its own, also if there are many before the first Await.
TEST_P(OrderTest, LossesOfManyBatches) {
  DeviceRig rig(NewDevice());
  constexpr size_t kMany = 40;
  double loss[kMany] = {};
  uint64_t correct[kMany] = {};
  Mark half{};
  for (size_t i = 0; i < kMany; ++i) {
    std::vector<float> y((i + 1) * 3, -2);
    for (size_t r = 0; r <= i; ++r) y[r * 3 + 1] = -1;
    rig->NllForward(rig.Input(y, {3, 1, 1}, i + 1),
                    rig.Labels(std::vector<int32_t>(i + 1, i % 2 == 0 ? 1 : 2)), &loss[i],
                    &correct[i]);
    if (i == kMany / 2) half = rig->MarkHere();
  }
  ASSERT_TRUE(rig->Await(half).ok());
  const auto check = [&](size_t i) {
    const auto rows = static_cast<double>(i + 1);
    EXPECT_EQ(loss[i], i % 2 == 0 ? rows : 2 * rows) << i;
    EXPECT_EQ(correct[i], i % 2 == 0 ? i + 1 : 0) << i;
  };
  for (size_t i = 0; i <= kMany / 2; ++i) check(i);
  ASSERT_TRUE(rig->Sync().ok());
  for (size_t i = 0; i < kMany; ++i) check(i);
}

// Two models take turns within their steps; what each gives is what it gives alone.
void CheckTwoModels(Device* one, Device* two) {
  TestModel a(kSmallConvNet, kRunInput, kRunClasses, one);
  TestModel b(
      "layer { linear { out: 9 } } layer { relu {} } layer { linear { out: 4 } }"
      "layer { log_softmax {} }",
      kRunInput, kRunClasses, two);
  std::vector<double> losses;
  std::vector<std::vector<float>> gradients;
  OwnBatch batch(1, 6), other(1, 5);
  losses.push_back(a.Step(6, {.tick = 1}).loss_sum), gradients.push_back(a.gradients);
  losses.push_back(b.Step(5, {.tick = 1}).loss_sum), gradients.push_back(b.gradients);
  for (int round = 0; round < 3; ++round) {
    for (TestModel* m : {&a, &b}) m->gradients.assign(m->gradients.size(), std::nanf(""));
    ASSERT_TRUE(a.model->Begin(batch.view(), {.tick = 1}).ok());
    Forward(*a.model);
    ASSERT_TRUE(b.model->Begin(other.view(), {.tick = 1}).ok());
    Forward(*b.model);
    Backward(*a.model);
    Backward(*b.model);
    EXPECT_EQ(a.model->Result()->loss_sum, losses[0]);
    AwaitAll(*b.model);
    EXPECT_EQ(b.gradients, gradients[1]);
    AwaitAll(*a.model);
    EXPECT_EQ(a.gradients, gradients[0]);
    EXPECT_EQ(b.model->Result()->loss_sum, losses[1]);
  }
}

TEST_P(OrderTest, TwoModelsOnOneDevice) {
  const std::unique_ptr<Device> device = NewDevice();
  CheckTwoModels(device.get(), device.get());
}

TEST_P(OrderTest, TwoDevicesOnOneGpu) {
  if (!GetParam().on_gpu()) {
    const std::unique_ptr<Device> one = NewDevice(), two = NewDevice();
    return CheckTwoModels(one.get(), two.get());
  }
  const absl::StatusOr<std::shared_ptr<Gpu>> gpu = MakeGpu(GetParam());
  ASSERT_TRUE(gpu.ok()) << gpu.status();
  const GpuDeviceOptions options{.math = math(), .column_bytes = kSmallColumns};
  const auto one = *CreateGpuDevice(*gpu, options), two = *CreateGpuDevice(*gpu, options);
  CheckTwoModels(one.get(), two.get());
}

}  // namespace
}  // namespace parley
