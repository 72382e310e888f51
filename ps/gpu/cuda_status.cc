#include "ps/gpu/cuda_status.h"

#include "absl/strings/str_format.h"

namespace parley {

absl::Status CudaFailure(bool out_of_memory, std::string_view call, std::string_view says,
                         std::string_view file, int line) {
  // As in the repository, wherever it was built.
  if (const size_t folder = file.rfind("ps/gpu/"); folder != file.npos) file.remove_prefix(folder);
  return absl::Status(
      out_of_memory ? absl::StatusCode::kResourceExhausted : absl::StatusCode::kInternal,
      absl::StrFormat("cuda: %s: %s (%s:%d)", call, says, file, line));
}

absl::Status CudaStatus(cudaError_t error, std::string_view call, std::string_view file, int line) {
  if (error == cudaSuccess) return absl::OkStatus();
  (void)cudaGetLastError();
  return CudaFailure(error == cudaErrorMemoryAllocation, call, cudaGetErrorString(error), file,
                     line);
}

}  // namespace parley
