// The heavy operations of the CPU device behind one interface, so that oneDNN and Eigen are
// interchangeable and the rest of the device is written once. Internal to models/cpu.
#ifndef PARLEY_MODELS_CPU_CPU_BACKEND_H_
#define PARLEY_MODELS_CPU_CPU_BACKEND_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "models/cpu/cpu_tensor.h"
#include "models/device.h"

namespace parley {

// C [m, n] = op(A) [m, k] op(B) [k, n], all row-major; op transposes if the flag is set, and then
// the matrix lies in memory as [k, m] or [n, k].
struct GemmShape {
  bool transpose_a = false, transpose_b = false;
  int64_t m = 0, n = 0, k = 0;
};

class CpuBackend {
 public:
  virtual ~CpuBackend() = default;

  virtual std::string name() const = 0;  // "oneDNN 2.6"
  virtual uint32_t threads() const = 0;

  virtual absl::Status Gemm(const GemmShape& shape, const float* a, const float* b, float* c) = 0;

  // As in Device. May change the block of x and dy, and set that of y and dx.
  virtual absl::Status ConvForward(CpuTensor* x, Conv2dGeometry geometry, const float* weight,
                                   const float* bias, bool relu, CpuTensor* y) = 0;
  virtual absl::Status ConvBackwardData(CpuTensor* dy, Conv2dGeometry geometry, const float* weight,
                                        CpuTensor* dx) = 0;
  virtual absl::Status ConvBackwardWeights(CpuTensor* x, CpuTensor* dy, Conv2dGeometry geometry,
                                           float* dweight, float* dbias) = 0;
};

std::unique_ptr<CpuBackend> CreateEigenBackend();

// Null if this build has no oneDNN: which of two files defines it is decided when linking.
std::unique_ptr<CpuBackend> CreateOneDnnBackend(uint32_t threads);

}  // namespace parley

#endif  // PARLEY_MODELS_CPU_CPU_BACKEND_H_
