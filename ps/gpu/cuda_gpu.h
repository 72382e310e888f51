// The GPUs of this machine through CUDA and cuBLAS. In a build without CUDA cuda_absent.cc defines
// the same functions: which file is linked is the only difference.
//
// CUDA_VISIBLE_DEVICES is respected, since CUDA itself looks at it.
#ifndef PARLEY_PS_GPU_CUDA_GPU_H_
#define PARLEY_PS_GPU_CUDA_GPU_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "ps/gpu/gpu.h"

namespace parley {

// The GPUs that this process sees, at least one. kUnavailable says why there are none: a build
// without CUDA, no driver, no GPU, none visible.
absl::StatusOr<std::vector<GpuInfo>> ListCudaGpus();

// kUnavailable: as above, or there is no such index.
absl::StatusOr<std::unique_ptr<Gpu>> CreateCudaGpu(int index);

}  // namespace parley

#endif  // PARLEY_PS_GPU_CUDA_GPU_H_
