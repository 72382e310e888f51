// The optimizer's passes on a GPU, enqueued on a stream: what Optimizer does on the CPU, with the
// same bits.
//
// All pointers are to memory of the stream's Gpu, whole floats, but the lists of them, which are
// read at once. Nothing is done before the stream is waited for. Errors are the stream's.
//
// Thread-safety: as the stream.
#ifndef PARLEY_PS_TABLE_GPU_OPTIMIZER_H_
#define PARLEY_PS_TABLE_GPU_OPTIMIZER_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "ps/gpu/gpu.h"
#include "ps/table/optimizer.h"

namespace parley {

// Gradients that one launch takes; a call with more needs `scratch` /* [n] */, which else may be
// null.
uint32_t GradientsOfOneLaunch();

// As Optimizer::Apply. Scratch may be none of the others.
absl::Status EnqueueApply(const Optimizer& optimizer, uint64_t n, const float* weights_in,
                          float* weights_out, float* const* slots,
                          absl::Span<const float* const> gradients, const StepInfo& info,
                          float* scratch, GpuStream* stream);

// As Optimizer::Sum.
absl::Status EnqueueSum(uint64_t n, absl::Span<const float* const> gradients, float* out,
                        GpuStream* stream);

// *out = as Optimizer::SumOfSquares.
absl::Status EnqueueSumOfSquares(uint64_t n, absl::Span<const float* const> gradients,
                                 double inverse_weight, float* scratch, double* out,
                                 GpuStream* stream);

// out /* [n] */ = value.
absl::Status EnqueueFill(uint64_t n, float value, float* out, GpuStream* stream);

}  // namespace parley

#endif  // PARLEY_PS_TABLE_GPU_OPTIMIZER_H_
