// A build without CUDA.
#include "ps/gpu/cuda_gpu.h"

namespace parley {

absl::StatusOr<std::vector<GpuInfo>> ListCudaGpus() {
  return absl::UnavailableError("this build of Parley has no CUDA");
}

absl::StatusOr<std::unique_ptr<Gpu>> CreateCudaGpu(int) { return ListCudaGpus().status(); }

}  // namespace parley
