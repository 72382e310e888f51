#include "ps/gpu/cuda_blas.h"

#include <dlfcn.h>

#include <algorithm>

#include "absl/strings/str_format.h"
#include "ps/gpu/cuda_status.h"

namespace parley {
namespace {

template <typename Function>
bool Find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  return *function != nullptr;
}

// What cuBLAS recommends, and would take by itself.
size_t WorkspaceBytes(int major) { return size_t{major >= 9 ? 32u : 4u} << 20; }

}  // namespace

#define PARLEY_BLAS(member, ...) \
  BlasStatus(blas_, blas_.member(__VA_ARGS__), #member, __FILE__, __LINE__)

static absl::Status BlasStatus(const Blas& blas, cublasStatus_t error, std::string_view call,
                               std::string_view file, int line) {
  if (error == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  (void)cudaGetLastError();
  return CudaFailure(error == CUBLAS_STATUS_ALLOC_FAILED, absl::StrFormat("cublas %s", call),
                     blas.status_string(error), file, line);
}

absl::StatusOr<Blas> OpenBlas() {
  const std::string name = absl::StrFormat("libcublas.so.%d", CUBLAS_VER_MAJOR);
  void* library = dlopen(name.c_str(), RTLD_LAZY | RTLD_LOCAL);
  // Where it lay when this was built, unless the loader knows better.
  if (library == nullptr) library = dlopen(PARLEY_CUBLAS_PATH, RTLD_LAZY | RTLD_LOCAL);
  if (library == nullptr) return absl::UnavailableError(absl::StrFormat("cuBLAS: %s", dlerror()));
  Blas blas;
  if (!Find(library, "cublasCreate_v2", &blas.create) ||
      !Find(library, "cublasDestroy_v2", &blas.destroy) ||
      !Find(library, "cublasSetStream_v2", &blas.set_stream) ||
      !Find(library, "cublasSetWorkspace_v2", &blas.set_workspace) ||
      !Find(library, "cublasSetAtomicsMode", &blas.set_atomics_mode) ||
      !Find(library, "cublasSetMathMode", &blas.set_math_mode) ||
      !Find(library, "cublasGemmEx_64", &blas.gemm) ||
      !Find(library, "cublasGetStatusString", &blas.status_string)) {
    return absl::UnavailableError(absl::StrFormat("cuBLAS: %s", dlerror()));
  }
  return blas;
}

BlasHandle::~BlasHandle() {
  if (handle_ != nullptr) blas_.destroy(handle_);
  if (workspace_ != nullptr) (void)cudaFree(workspace_);  // waits for what uses it
}

absl::Status BlasHandle::Prepare(cudaStream_t stream, int major) {
  if (handle_ != nullptr) return absl::OkStatus();
  const size_t bytes = WorkspaceBytes(major);
  if (workspace_ == nullptr) {
    if (absl::Status status = PARLEY_CUDA(cudaMalloc, &workspace_, bytes); !status.ok()) {
      return status;
    }
  }
  cublasHandle_t handle = nullptr;
  absl::Status status = PARLEY_BLAS(create, &handle);
  if (!status.ok()) return status;
  status = PARLEY_BLAS(set_stream, handle, stream);
  // After the stream, which takes the workspace away.
  if (status.ok()) status = PARLEY_BLAS(set_workspace, handle, workspace_, bytes);
  if (status.ok()) status = PARLEY_BLAS(set_atomics_mode, handle, CUBLAS_ATOMICS_NOT_ALLOWED);
  // FP32 is FP32: neither TF32 nor sums of bfloat16 unless a call says so.
  if (status.ok()) status = PARLEY_BLAS(set_math_mode, handle, CUBLAS_DEFAULT_MATH);
  if (!status.ok()) {
    blas_.destroy(handle);
    return status;
  }
  handle_ = handle;
  return absl::OkStatus();
}

absl::Status BlasHandle::Gemm(const GemmCall& call) {
  const cudaDataType type = call.math == GemmMath::kBf16 ? CUDA_R_16BF : CUDA_R_32F;
  const cublasComputeType_t compute =
      call.math == GemmMath::kTf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
  const float alpha = 1, beta = call.accumulate ? 1 : 0;
  // cuBLAS has columns where we have rows, so it sees every matrix transposed, and is asked for
  // C^T = op(B)^T op(A)^T.
  return PARLEY_BLAS(gemm, handle_, call.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N,
                     call.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, call.n, call.m, call.k, &alpha,
                     call.b, type, call.transpose_b ? call.k : call.n, call.a, type,
                     call.transpose_a ? call.m : call.k, &beta, call.c, CUDA_R_32F, call.n, compute,
                     CUBLAS_GEMM_DEFAULT);
}

}  // namespace parley
