#include "ps/table/gpu_optimizer.h"

#include <algorithm>
#include <limits>

#include "ps/table/gpu_optimizer_kernels.h"

namespace parley {
namespace {

using gpu_optimizer::Gradients;

Gradients Take(absl::Span<const float* const> gradients) {
  Gradients taken = {};
  std::copy(gradients.begin(), gradients.end(), taken.of);
  taken.count = static_cast<uint32_t>(gradients.size());
  taken.inverse_weight = 1;
  taken.norm_scale = 1;
  taken.clip = std::numeric_limits<float>::infinity();
  return taken;
}

// Sums the first ones into `sum` until what is left, the sum in front of the others, fits one
// launch.
absl::StatusOr<Gradients> Reduce(uint64_t n, absl::Span<const float* const> gradients, float* sum,
                                 GpuStream* stream) {
  bool summed = false;
  while (gradients.size() + (summed ? 1 : 0) > Gradients::kMax) {
    gpu_optimizer::Sum kernel = {};
    kernel.n = n;
    kernel.out = sum;
    const size_t room = Gradients::kMax - (summed ? 1 : 0);
    kernel.gradients = Take(gradients.subspan(0, room));
    if (summed) {
      std::copy_backward(kernel.gradients.of, kernel.gradients.of + room,
                         kernel.gradients.of + room + 1);
      kernel.gradients.of[0] = sum;
      ++kernel.gradients.count;
    }
    absl::Status status = stream->Launch(kernel, BlocksFor<gpu_optimizer::Sum>(n));
    if (!status.ok()) return status;
    gradients.remove_prefix(room);
    summed = true;
  }
  Gradients rest = Take(gradients);
  if (summed) {
    std::copy_backward(rest.of, rest.of + rest.count, rest.of + rest.count + 1);
    rest.of[0] = sum;
    ++rest.count;
  }
  return rest;
}

}  // namespace

uint32_t GradientsOfOneLaunch() { return Gradients::kMax; }

absl::Status EnqueueApply(const Optimizer& optimizer, uint64_t n, const float* weights_in,
                          float* weights_out, float* const* slots,
                          absl::Span<const float* const> gradients, const StepInfo& info,
                          float* scratch, GpuStream* stream) {
  absl::StatusOr<Gradients> rest = Reduce(n, gradients, scratch, stream);
  if (!rest.ok()) return rest.status();
  const UpdatePass pass = optimizer.Numbers(info);
  gpu_optimizer::Update kernel = {};
  kernel.n = n;
  kernel.weights_in = weights_in;
  kernel.weights_out = weights_out;
  std::copy_n(slots, optimizer.slots(), kernel.slots);
  kernel.gradients = *rest;
  kernel.gradients.inverse_weight = pass.sum.inverse_weight;
  kernel.gradients.norm_scale = pass.sum.norm_scale;
  kernel.gradients.clip = pass.sum.clip;
  kernel.weight_decay = pass.weight_decay;
  kernel.rule = pass.rule;
  kernel.scalars = pass.scalars;
  return stream->Launch(kernel, BlocksFor<gpu_optimizer::Update>(n));
}

absl::Status EnqueueSum(uint64_t n, absl::Span<const float* const> gradients, float* out,
                        GpuStream* stream) {
  absl::StatusOr<Gradients> rest = Reduce(n, gradients, out, stream);
  if (!rest.ok()) return rest.status();
  gpu_optimizer::Sum kernel = {};
  kernel.n = n;
  kernel.gradients = *rest;
  kernel.out = out;
  return stream->Launch(kernel, BlocksFor<gpu_optimizer::Sum>(n));
}

absl::Status EnqueueSumOfSquares(uint64_t n, absl::Span<const float* const> gradients,
                                 double inverse_weight, float* scratch, double* out,
                                 GpuStream* stream) {
  absl::StatusOr<Gradients> rest = Reduce(n, gradients, scratch, stream);
  if (!rest.ok()) return rest.status();
  gpu_optimizer::SumOfSquares kernel = {};
  kernel.n = n;
  kernel.gradients = *rest;
  kernel.gradients.inverse_weight = static_cast<float>(inverse_weight);
  kernel.out = out;
  return stream->Launch(kernel, 1);
}

absl::Status EnqueueFill(uint64_t n, float value, float* out, GpuStream* stream) {
  gpu_optimizer::Fill kernel = {};
  kernel.n = n;
  kernel.out = out;
  kernel.value = value;
  return stream->Launch(kernel, BlocksFor<gpu_optimizer::Fill>(n));
}

}  // namespace parley
