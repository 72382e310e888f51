// The GPU device: the operations of models on a Gpu - CUDA's, or a simulated one.
//
// Parameters and batches are copied in, gradients and results out, beside the operations, on
// streams of their own (gpu_engine.h). Dropout keeps exactly what the CPU keeps. Sums have a fixed
// order, no kernel uses atomics: the same calls give the same bits on the same GPU with the same
// versions of CUDA and cuBLAS. Bits are not the CPU's.
//
// Caller's memory that takes part in copies should be pinned, or they do not go on beside anything.
#ifndef PARLEY_MODELS_GPU_GPU_DEVICE_H_
#define PARLEY_MODELS_GPU_GPU_DEVICE_H_

#include <memory>

#include "absl/status/statusor.h"
#include "models/device.h"
#include "ps/gpu/gpu.h"

namespace parley {

struct GpuDeviceOptions {
  GemmMath math = GemmMath::kTf32;
  // Bound of the scratch memory of convolutions; part of what decides the bits.
  size_t column_bytes = size_t{256} << 20;
  // Launch what is the same step for step as CUDA graphs; changes no bit.
  bool graphs = false;
};

absl::StatusOr<std::unique_ptr<Device>> CreateGpuDevice(std::shared_ptr<Gpu> gpu,
                                                        const GpuDeviceOptions& options);

}  // namespace parley

#endif  // PARLEY_MODELS_GPU_GPU_DEVICE_H_
