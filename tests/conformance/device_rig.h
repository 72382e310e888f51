// What the device conformance suite runs on, and one operation at a time on it.
#ifndef PARLEY_TESTS_CONFORMANCE_DEVICE_RIG_H_
#define PARLEY_TESTS_CONFORMANCE_DEVICE_RIG_H_

#include <gtest/gtest.h>

#include <cmath>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "models/cpu/cpu_device.h"
#include "models/gpu/gpu_device.h"
#include "ps/gpu/cuda_gpu.h"
#include "ps/gpu/simulated_gpu.h"
#include "tests/conformance/device_reference.h"

namespace parley {

enum class DeviceKind { kOneDnn, kEigen, kSimulated, kCuda };

struct DeviceCase {
  const char* name;
  DeviceKind kind;
  GemmMath math = GemmMath::kFp32;
  uint64_t seed = 0;  // of a simulated GPU
  bool on_gpu() const { return kind == DeviceKind::kSimulated || kind == DeviceKind::kCuda; }
};
inline void PrintTo(const DeviceCase& c, std::ostream* out) { *out << c.name; }

inline constexpr DeviceCase kDeviceCases[] = {
    {"OneDnn", DeviceKind::kOneDnn},
    {"Eigen", DeviceKind::kEigen},
    {"Fp32InOrder", DeviceKind::kSimulated},
    {"Fp32Drawn", DeviceKind::kSimulated, GemmMath::kFp32, 1},
    {"Fp32DrawnAgain", DeviceKind::kSimulated, GemmMath::kFp32, 2},
    {"Tf32", DeviceKind::kSimulated, GemmMath::kTf32, 3},
    {"Bf16", DeviceKind::kSimulated, GemmMath::kBf16, 4},
};
inline constexpr DeviceCase kCudaCases[] = {
    {"Fp32", DeviceKind::kCuda},
    {"Tf32", DeviceKind::kCuda, GemmMath::kTf32},
    {"Bf16", DeviceKind::kCuda, GemmMath::kBf16},
};

inline constexpr size_t kSmallColumns = 20000;  // convolutions are cut into pieces

inline absl::StatusOr<std::shared_ptr<Gpu>> MakeGpu(const DeviceCase& c) {
  if (c.kind == DeviceKind::kSimulated) {
    return CreateSimulatedGpu({.seed = c.seed, .guard = true});
  }
  return CreateCudaGpu(0);
}

inline absl::StatusOr<std::unique_ptr<Device>> MakeDevice(const DeviceCase& c,
                                                          size_t column_bytes = kSmallColumns) {
  if (!c.on_gpu()) {
    return CreateCpuDevice({.threads = 1, .use_onednn = c.kind == DeviceKind::kOneDnn});
  }
  absl::StatusOr<std::shared_ptr<Gpu>> gpu = MakeGpu(c);
  if (!gpu.ok()) return gpu.status();
  return CreateGpuDevice(*gpu, {.math = c.math, .column_bytes = column_bytes});
}

// How far from float64 a result may be, in norm.
inline double BoundOf(GemmMath math) {
  return math == GemmMath::kFp32 ? 1e-5 : math == GemmMath::kTf32 ? 1e-3 : 1e-2;
}

template <typename Got>
void ExpectClose(const Got& got, const std::vector<double>& want, double bound, const char* what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  double error = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double difference = got[i] - want[i];
    error += difference * difference, norm += want[i] * want[i];
  }
  // A NaN is not within anything.
  EXPECT_LE(std::sqrt(error), bound * std::sqrt(norm)) << what;
}

// A device, and all that operations on it need, kept until the end. Failures are found by Finish
// and Values.
class DeviceRig {
 public:
  explicit DeviceRig(std::unique_ptr<Device> device) : device_(std::move(device)) {
    device_->BeginStep();
  }
  ~DeviceRig() { EXPECT_TRUE(device_->Sync().ok()); }

  Device& device() { return *device_; }
  Device* operator->() { return device_.get(); }

  Tensor* Output(SampleShape sample, uint64_t rows) {
    Tensor* tensor = tensors_.emplace_back(device_->NewTensor()).get();
    const absl::Status status = device_->Prepare(tensor, sample, rows);
    EXPECT_TRUE(status.ok()) << status;
    return tensor;
  }
  Tensor* Input(const std::vector<float>& x, SampleShape sample, uint64_t rows) {
    EXPECT_EQ(x.size(), rows * sample.size());
    Tensor* tensor = tensors_.emplace_back(device_->NewTensor()).get();
    device_->Upload(floats_.emplace_back(x).data(), sample, rows, tensor);
    return tensor;
  }
  Workspace* NewWorkspace() { return workspaces_.emplace_back(device_->NewWorkspace()).get(); }
  const float* Parameters(const std::vector<float>& values) {
    return device_->LoadParameters(floats_.emplace_back(values).data(), MemoryKind::kHost,
                                   values.size(), NewWorkspace());
  }
  const int32_t* Labels(const std::vector<int32_t>& values) {
    return device_->LoadLabels(labels_.emplace_back(values).data(), values.size(), NewWorkspace());
  }
  // Where an operation shall write a gradient, and what Finish brings home of it.
  struct Gradient {
    float* made = nullptr;
    std::vector<float>* home = nullptr;
  };
  Gradient NewGradient(uint64_t n) {
    std::vector<float>* home = &floats_.emplace_back(n, std::nanf(""));
    return {device_->PrepareGradients(home->data(), MemoryKind::kHost, n, NewWorkspace()), home};
  }
  const std::vector<float>& Finish(const Gradient& gradient) {
    device_->StoreGradients(gradient.made, MemoryKind::kHost, gradient.home->size(),
                            gradient.home->data());
    Finish();
    return *gradient.home;
  }
  std::vector<float> Values(Tensor* tensor) {
    std::vector<float> values(tensor->elements(), std::nanf(""));
    device_->Download(tensor, values.data());
    Finish();
    return values;
  }
  void Finish() {
    const absl::Status status = device_->Sync();
    EXPECT_TRUE(status.ok()) << status;
  }

  // Ends as channels-last or blocked inside: what a convolution leaves, by one that changes
  // nothing.
  Tensor* AfterConv(const std::vector<float>& x, SampleShape sample, uint64_t rows) {
    std::vector<float> same(size_t{sample.channels} * sample.channels);
    for (uint32_t c = 0; c < sample.channels; ++c) same[c * sample.channels + c] = 1;
    Tensor* y = Output(sample, rows);
    device_->Conv2dForward(Input(x, sample, rows), {.kernel = 1}, Parameters(same),
                           Parameters(std::vector<float>(sample.channels)), false, y);
    return y;
  }

 private:
  const std::unique_ptr<Device> device_;
  std::deque<std::vector<float>> floats_;
  std::deque<std::vector<int32_t>> labels_;
  std::deque<std::unique_ptr<Tensor>> tensors_;
  std::deque<std::unique_ptr<Workspace>> workspaces_;
};

class DeviceTest : public testing::TestWithParam<DeviceCase> {
 protected:
  void SetUp() override {
    if (GetParam().kind != DeviceKind::kCuda) return;
    const auto gpus = ListCudaGpus();
    if (!gpus.ok()) GTEST_SKIP() << "no GPU: " << gpus.status().message();
  }
  static std::unique_ptr<Device> NewDevice(size_t column_bytes = kSmallColumns) {
    absl::StatusOr<std::unique_ptr<Device>> device = MakeDevice(GetParam(), column_bytes);
    EXPECT_TRUE(device.ok()) << device.status();
    return *std::move(device);
  }
  static GemmMath math() { return GetParam().math; }
  static double bound() { return BoundOf(math()); }
};

inline std::string DeviceCaseName(const testing::TestParamInfo<DeviceCase>& info) {
  return info.param.name;
}

#define PARLEY_ON_ALL_DEVICES(Test)                                                         \
  INSTANTIATE_TEST_SUITE_P(Devices, Test, testing::ValuesIn(kDeviceCases), DeviceCaseName); \
  INSTANTIATE_TEST_SUITE_P(Cuda, Test, testing::ValuesIn(kCudaCases), DeviceCaseName)

}  // namespace parley

#endif  // PARLEY_TESTS_CONFORMANCE_DEVICE_RIG_H_
