// What the conformance tests of Gpu run on: simulated GPUs of several seeds, and this machine's
// first real one. Without one its cases are skipped, each by its name.
#ifndef PARLEY_TESTS_CONFORMANCE_GPU_RIG_H_
#define PARLEY_TESTS_CONFORMANCE_GPU_RIG_H_

#include <cstdint>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "ps/gpu/gpu.h"

namespace parley {

struct GpuMaker {
  std::string name;
  bool cuda = false;
  uint64_t seed = 0;  // of a simulated one
};
inline void PrintTo(const GpuMaker& maker, std::ostream* out) { *out << maker.name; }
std::vector<GpuMaker> SimulatedGpus();
std::vector<GpuMaker> CudaGpus();
std::string NameOf(const testing::TestParamInfo<GpuMaker>& info);

// Fails the test in a caller that returns nothing.
#define ASSERT_OK(expression)                                      \
  do {                                                             \
    const absl::Status asserted = (expression);                    \
    ASSERT_TRUE(asserted.ok()) << #expression << ": " << asserted; \
  } while (false)

class GpuConformance : public testing::TestWithParam<GpuMaker> {
 protected:
  void SetUp() override;

  // Another one of the same chip. The simulated have little memory, so that it is soon used up.
  absl::StatusOr<std::unique_ptr<Gpu>> MakeGpu() const;

  Gpu& gpu() { return *gpu_; }
  GpuStream& stream() { return *stream_; }
  std::unique_ptr<GpuStream> NewStream();
  std::unique_ptr<GpuEvent> NewEvent();

  // Device memory that lasts as long as the test; null and a failure if there is none.
  void* Allocate(size_t bytes);
  float* Floats(size_t n) { return static_cast<float*>(Allocate(n * sizeof(float))); }
  // With the values in it, there and done.
  float* Put(const std::vector<float>& values);
  uint16_t* Put(const std::vector<uint16_t>& values);
  // What is there, after all of `stream`.
  std::vector<float> Get(const float* device, size_t n);

 private:
  void* PutBytes(const void* from, size_t bytes);

  std::unique_ptr<Gpu> gpu_;
  std::unique_ptr<GpuStream> stream_;
  std::vector<void*> allocated_;

 public:
  ~GpuConformance() override;
};

// n numbers in [-1, 1), always the same for a seed.
std::vector<float> Numbers(size_t n, uint64_t seed);

}  // namespace parley

#endif  // PARLEY_TESTS_CONFORMANCE_GPU_RIG_H_
