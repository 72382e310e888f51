// The few functions of cuBLAS that are used, from the library as it is opened.
//
// It is not linked, since its start-up code takes 100 ms: whoever uses no GPU does not pay.
#ifndef PARLEY_PS_GPU_CUDA_BLAS_H_
#define PARLEY_PS_GPU_CUDA_BLAS_H_

#include <cublas_v2.h>

#include "absl/status/statusor.h"
#include "ps/gpu/gpu.h"

namespace parley {

struct Blas {
  decltype(&::cublasCreate_v2) create = nullptr;
  decltype(&::cublasDestroy_v2) destroy = nullptr;
  decltype(&::cublasSetStream_v2) set_stream = nullptr;
  decltype(&::cublasSetWorkspace_v2) set_workspace = nullptr;
  decltype(&::cublasSetAtomicsMode) set_atomics_mode = nullptr;
  decltype(&::cublasSetMathMode) set_math_mode = nullptr;
  decltype(&::cublasGemmEx_64) gemm = nullptr;
  decltype(&::cublasGetStatusString) status_string = nullptr;
};

// kUnavailable: the library is not on this machine, or is not the one that this was built with. It
// stays open for good, as it cannot be closed and opened again.
absl::StatusOr<Blas> OpenBlas();

// A cuBLAS handle on one stream with a workspace of its own, so that the same calls give the same
// bits whatever other streams do.
class BlasHandle {
 public:
  explicit BlasHandle(const Blas& blas) : blas_(blas) {}
  BlasHandle(const BlasHandle&) = delete;
  BlasHandle& operator=(const BlasHandle&) = delete;
  ~BlasHandle();  // REQUIRES: the GPU is this thread's

  // Makes it, at the first call. REQUIRES: `stream` is always the same, and nothing is captured.
  absl::Status Prepare(cudaStream_t stream, int major);
  absl::Status Gemm(const GemmCall& call);  // REQUIRES: Prepare

 private:
  const Blas blas_;
  cublasHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
};

}  // namespace parley

#endif  // PARLEY_PS_GPU_CUDA_BLAS_H_
