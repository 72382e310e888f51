#include "tests/conformance/gpu_rig.h"

#include "absl/strings/str_cat.h"
#include "ps/gpu/cuda_gpu.h"
#include "ps/gpu/simulated_gpu.h"

namespace parley {

std::vector<GpuMaker> SimulatedGpus() {
  std::vector<GpuMaker> makers;
  for (uint64_t seed = 0; seed < 5; ++seed) {
    makers.push_back({.name = absl::StrCat("Seed", seed), .seed = seed});
  }
  return makers;
}

std::vector<GpuMaker> CudaGpus() { return {{.name = "Gpu0", .cuda = true}}; }

std::string NameOf(const testing::TestParamInfo<GpuMaker>& info) { return info.param.name; }

void GpuConformance::SetUp() {
  if (GetParam().cuda) {
    const absl::Status there = ListCudaGpus().status();
    if (!there.ok()) GTEST_SKIP() << "no GPU: " << there.message();
  }
  absl::StatusOr<std::unique_ptr<Gpu>> gpu = MakeGpu();
  ASSERT_OK(gpu.status());
  gpu_ = *std::move(gpu);
  stream_ = NewStream();
}

absl::StatusOr<std::unique_ptr<Gpu>> GpuConformance::MakeGpu() const {
  if (GetParam().cuda) return CreateCudaGpu(0);
  return CreateSimulatedGpu(
      {.seed = GetParam().seed, .guard = true, .memory_bytes = uint64_t{64} << 20});
}

GpuConformance::~GpuConformance() {
  stream_.reset();
  for (void* device : allocated_) gpu_->Free(device);
}

std::unique_ptr<GpuStream> GpuConformance::NewStream() {
  absl::StatusOr<std::unique_ptr<GpuStream>> stream = gpu().NewStream();
  EXPECT_TRUE(stream.ok()) << stream.status();
  return stream.ok() ? *std::move(stream) : nullptr;
}

std::unique_ptr<GpuEvent> GpuConformance::NewEvent() {
  absl::StatusOr<std::unique_ptr<GpuEvent>> event = gpu().NewEvent();
  EXPECT_TRUE(event.ok()) << event.status();
  return event.ok() ? *std::move(event) : nullptr;
}

void* GpuConformance::Allocate(size_t bytes) {
  absl::StatusOr<void*> device = gpu().Allocate(bytes);
  EXPECT_TRUE(device.ok()) << device.status();
  if (!device.ok()) return nullptr;
  allocated_.push_back(*device);
  return *device;
}

void* GpuConformance::PutBytes(const void* from, size_t bytes) {
  void* device = Allocate(bytes);
  absl::Status status = stream().CopyIn(device, from, bytes);
  if (status.ok()) status = stream().Sync();
  EXPECT_TRUE(status.ok()) << status;
  return device;
}

float* GpuConformance::Put(const std::vector<float>& values) {
  return static_cast<float*>(PutBytes(values.data(), values.size() * sizeof(float)));
}

uint16_t* GpuConformance::Put(const std::vector<uint16_t>& values) {
  return static_cast<uint16_t*>(PutBytes(values.data(), values.size() * sizeof(uint16_t)));
}

std::vector<float> GpuConformance::Get(const float* device, size_t n) {
  std::vector<float> values(n);
  absl::Status status = stream().CopyOut(values.data(), device, n * sizeof(float));
  if (status.ok()) status = stream().Sync();
  EXPECT_TRUE(status.ok()) << status;
  return values;
}

std::vector<float> Numbers(size_t n, uint64_t seed) {
  std::vector<float> numbers(n);
  uint64_t state = seed * 0x9E3779B97F4A7C15 + 1;
  for (float& number : numbers) {
    state = state * 6364136223846793005 + 1442695040888963407;
    number = static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-31f;
  }
  return numbers;
}

}  // namespace parley
