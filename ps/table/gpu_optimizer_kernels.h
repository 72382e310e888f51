// The optimizer's kernels for the GPU; internal to ps/table.
//
// Each element sees what the CPU's kernels do to it, from the same text
// (optimizer_elements.inc.h), and gradients are added in the same order: the results have the same
// bits. Pointers are device pointers to whole floats; weights_out may be weights_in.
#ifndef PARLEY_PS_TABLE_GPU_OPTIMIZER_KERNELS_H_
#define PARLEY_PS_TABLE_GPU_OPTIMIZER_KERNELS_H_

#include <cstdint>

#include "ps/gpu/kernel.h"
#include "ps/table/optimizer_kernels.h"

#define PARLEY_ELEMENT PARLEY_GPU inline
#ifdef __CUDA_ARCH__
#define PARLEY_SQRT(x) __fsqrt_rn(x)
#define PARLEY_ABS(x) fabsf(x)
#else
#define PARLEY_SQRT(x) __builtin_sqrtf(x)
#define PARLEY_ABS(x) __builtin_fabsf(x)
#endif

namespace parley {
namespace gpu_optimizer {

#include "ps/table/optimizer_elements.inc.h"

// The sum of some gradients, in order. Kernels carry their arguments, so there is a bound; more are
// summed by several launches (gpu_optimizer.h).
struct Gradients {
  static constexpr uint32_t kMax = 16;

  const float* of[kMax];  // [count] of float32 [n]
  uint32_t count;
  float inverse_weight, norm_scale, clip;

  // No gradients: 0.
  PARLEY_GPU float Sum(uint64_t i) const {
    if (count == 0) return 0;
    float s = of[0][i];
    for (uint32_t w = 1; w < count; ++w) s = s + of[w][i];
    return s;
  }
  PARLEY_GPU float Finished(uint64_t i) const {
    return count == 0 ? 0 : Scaled(Sum(i), inverse_weight, norm_scale, clip);
  }
};

// The fused pass: UpdatePass of one launch's gradients.
struct Update {
  static constexpr uint32_t kThreads = 256;
  static constexpr int kPhases = 1;
  using Shared = NoShared;

  uint64_t n;
  const float* weights_in;
  float* weights_out;
  float* slots[3];
  Gradients gradients;
  float weight_decay;
  UpdateRule rule;
  RuleScalars scalars;

  struct Walk {
    const Update& pass;
    const ThreadPlace& at;
    template <typename Rule>
    PARLEY_GPU void Visit() const {
      for (uint64_t i = at.first(); i < pass.n; i += at.stride()) pass.Element<Rule>(i);
    }
  };

  template <typename Rule>
  PARLEY_GPU void Element(uint64_t i) const {
    const float w = weights_in[i];
    float g = gradients.Finished(i);
    if (weight_decay != 0) g = Decayed(weight_decay, w, g);
    float a = Rule::kSlots > 0 ? slots[0][i] : 0;
    float b = Rule::kSlots > 1 ? slots[1][i] : 0;
    float c = Rule::kSlots > 2 ? slots[2][i] : 0;
    const float next = Rule::Next(scalars, w, g, a, b, c);
    if (Rule::kSlots > 0) slots[0][i] = a;
    if (Rule::kSlots > 1) slots[1][i] = b;
    if (Rule::kSlots > 2) slots[2][i] = c;
    weights_out[i] = next;
  }

  PARLEY_GPU void Run(int, const ThreadPlace& at, Shared&) const {
    VisitRule(rule, Walk{*this, at});
  }
};

// out /* [n] */ = the sum alone. `out` may be gradients.of[0].
struct Sum {
  static constexpr uint32_t kThreads = 256;
  static constexpr int kPhases = 1;
  using Shared = NoShared;

  uint64_t n;
  Gradients gradients;
  float* out;

  PARLEY_GPU void Run(int, const ThreadPlace& at, Shared&) const {
    for (uint64_t i = at.first(); i < n; i += at.stride()) out[i] = gradients.Sum(i);
  }
};

// OptimizerKernels::sum_of_squares: *out = the sum of squares of the finished gradient. Its order
// is that of the CPU, 16 float64 lanes one after the other within each: so 16 threads of one block
// do all of it, a few GB/s. It is for clipping by norm alone. REQUIRES: one block.
struct SumOfSquares {
  static constexpr uint32_t kThreads = 32;
  static constexpr int kPhases = 2;
  static constexpr uint32_t kLanes = 16;
  static constexpr uint32_t kAhead = 16;  // loads that are on their way at once
  struct Shared {
    double lanes[kLanes];
  };

  uint64_t n;
  Gradients gradients;
  double* out;

  PARLEY_GPU void Run(int phase, const ThreadPlace& at, Shared& shared) const {
    if (phase == 0 && at.thread < kLanes) shared.lanes[at.thread] = Lane(at.thread);
    if (phase == 1 && at.thread == 0) {
      double total = 0;
      for (uint32_t lane = 0; lane < kLanes; ++lane) total += shared.lanes[lane];
      *out = total;
    }
  }

  PARLEY_GPU double Lane(uint64_t i) const {
    double lane = 0;
    float g[kAhead];
    for (; i + (kAhead - 1) * kLanes < n; i += kAhead * kLanes) {
      for (uint32_t k = 0; k < kAhead; ++k) g[k] = gradients.Finished(i + k * kLanes);
      for (uint32_t k = 0; k < kAhead; ++k) {
        const double x = g[k];
        lane += x * x;
      }
    }
    for (; i < n; i += kLanes) {
      const double x = gradients.Finished(i);
      lane += x * x;
    }
    return lane;
  }
};

// out /* [n] */ = value.
struct Fill {
  static constexpr uint32_t kThreads = 256;
  static constexpr int kPhases = 1;
  using Shared = NoShared;

  uint64_t n;
  float* out;
  float value;

  PARLEY_GPU void Run(int, const ThreadPlace& at, Shared&) const {
    for (uint64_t i = at.first(); i < n; i += at.stride()) out[i] = value;
  }
};

}  // namespace gpu_optimizer
}  // namespace parley

#undef PARLEY_ELEMENT
#undef PARLEY_SQRT
#undef PARLEY_ABS

PARLEY_DECLARE_GPU_KERNEL(parley::gpu_optimizer::Update);
PARLEY_DECLARE_GPU_KERNEL(parley::gpu_optimizer::Sum);
PARLEY_DECLARE_GPU_KERNEL(parley::gpu_optimizer::SumOfSquares);
PARLEY_DECLARE_GPU_KERNEL(parley::gpu_optimizer::Fill);

#endif  // PARLEY_PS_TABLE_GPU_OPTIMIZER_KERNELS_H_
