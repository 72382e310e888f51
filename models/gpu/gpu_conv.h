// Convolutions as products over unfolded inputs, some rows at a time so that the unfolded input is
// bounded. Internal to models/gpu.
//
// Thread-safety: as Device.
#ifndef PARLEY_MODELS_GPU_GPU_CONV_H_
#define PARLEY_MODELS_GPU_GPU_CONV_H_

#include <cstdint>

#include "models/device.h"
#include "models/gpu/gpu_engine.h"
#include "models/gpu/gpu_tensor.h"

namespace parley {

class GpuConv {
 public:
  // The unfolded input has at most so many bytes, or those of one sample.
  static constexpr size_t kColumnBytes = size_t{256} << 20;

  GpuConv(GpuEngine* engine, WeightForms* forms, size_t column_bytes = kColumnBytes)
      : engine_(engine), forms_(forms), column_bytes_(column_bytes) {}

  // As in Device; all tensors in last order.
  void Forward(GpuTensor* x, Conv2dGeometry geometry, const float* weight, GpuTensor* y);
  void BackwardData(GpuTensor* dy, Conv2dGeometry geometry, const float* weight, GpuTensor* dx);
  void BackwardWeights(GpuTensor* x, GpuTensor* dy, Conv2dGeometry geometry, float* dweight);

 private:
  struct Plan;
  bool Fits(const Plan& plan);
  const void* Unfold(const Plan& plan, GpuTensor* x, uint64_t first, uint64_t rows);

  GpuEngine* const engine_;
  WeightForms* const forms_;
  const size_t column_bytes_;
};

}  // namespace parley

#endif  // PARLEY_MODELS_GPU_GPU_CONV_H_
