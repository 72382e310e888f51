// Streams, events and graphs of CUDA.
#ifndef PARLEY_PS_GPU_CUDA_STREAM_H_
#define PARLEY_PS_GPU_CUDA_STREAM_H_

#include <memory>

#include "absl/status/statusor.h"
#include "ps/gpu/cuda_blas.h"
#include "ps/gpu/gpu.h"

namespace parley {

// On the GPU of `info`, which must be this thread's. `blas` is copied.
absl::StatusOr<std::unique_ptr<GpuStream>> NewCudaStream(const GpuInfo& info, const Blas& blas);
absl::StatusOr<std::unique_ptr<GpuEvent>> NewCudaEvent(const GpuInfo& info);

}  // namespace parley

#endif  // PARLEY_PS_GPU_CUDA_STREAM_H_
