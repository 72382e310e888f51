// What CUDA's three libraries answer, as Status: kResourceExhausted for memory that is not there,
// kInternal for the rest. The text names the call, the library's words, and file and line.
//
//   if (absl::Status status = PARLEY_CUDA(cudaMemsetAsync, device, 0, bytes, stream); !status.ok())
//     return status;
#ifndef PARLEY_PS_GPU_CUDA_STATUS_H_
#define PARLEY_PS_GPU_CUDA_STATUS_H_

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <string_view>

#include "absl/status/status.h"

namespace parley {

// Also clears what cudaGetLastError would say, so that a failure is told once.
absl::Status CudaStatus(cudaError_t error, std::string_view call, std::string_view file, int line);

// `says`: the library's own text.
absl::Status CudaFailure(bool out_of_memory, std::string_view call, std::string_view says,
                         std::string_view file, int line);

}  // namespace parley

#define PARLEY_CUDA(call, ...) ::parley::CudaStatus(call(__VA_ARGS__), #call, __FILE__, __LINE__)

#endif  // PARLEY_PS_GPU_CUDA_STATUS_H_
