// GPUs for the table tests: the simulated one, guarded, and those that are there.
#ifndef PARLEY_TESTS_UNIT_TABLE_GPU_TESTING_H_
#define PARLEY_TESTS_UNIT_TABLE_GPU_TESTING_H_

#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "ps/gpu/cuda_gpu.h"
#include "ps/gpu/simulated_gpu.h"

namespace parley {

inline std::unique_ptr<Gpu> GuardedGpu(uint64_t seed) {
  return CreateSimulatedGpu({.seed = seed, .guard = true});
}

// Null where there is none.
inline std::unique_ptr<Gpu> FirstCudaGpu() {
  if (!ListCudaGpus().ok()) return nullptr;
  absl::StatusOr<std::unique_ptr<Gpu>> gpu = CreateCudaGpu(0);
  EXPECT_TRUE(gpu.ok()) << gpu.status();
  return gpu.ok() ? *std::move(gpu) : nullptr;
}

// Device memory as long as this lives.
class DeviceFloats {
 public:
  DeviceFloats(Gpu* gpu, size_t n) : gpu_(gpu), n_(n) {
    absl::StatusOr<void*> memory = gpu->Allocate(n * sizeof(float));
    EXPECT_TRUE(memory.ok()) << memory.status();
    if (memory.ok()) data_ = static_cast<float*>(*memory);
  }
  DeviceFloats(Gpu* gpu, GpuStream* stream, const std::vector<float>& values)
      : DeviceFloats(gpu, values.size()) {
    EXPECT_TRUE(stream->CopyIn(data_, values.data(), n_ * sizeof(float)).ok());
    EXPECT_TRUE(stream->Sync().ok());
  }
  ~DeviceFloats() {
    if (data_ != nullptr) gpu_->Free(data_);
  }
  DeviceFloats(DeviceFloats&& other) noexcept
      : gpu_(other.gpu_), n_(other.n_), data_(std::exchange(other.data_, nullptr)) {}
  DeviceFloats& operator=(DeviceFloats&&) = delete;

  float* get() const { return data_; }
  std::vector<float> Read(GpuStream* stream) const {
    std::vector<float> values(n_);
    EXPECT_TRUE(stream->CopyOut(values.data(), data_, n_ * sizeof(float)).ok());
    EXPECT_TRUE(stream->Sync().ok());
    return values;
  }

 private:
  Gpu* gpu_;
  size_t n_;
  float* data_ = nullptr;
};

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_TABLE_GPU_TESTING_H_
