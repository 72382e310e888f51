// Kernels for the conformance test of Gpu. Nothing of absl here: nvcc reads it.
#ifndef PARLEY_TESTS_CONFORMANCE_GPU_TEST_KERNELS_H_
#define PARLEY_TESTS_CONFORMANCE_GPU_TEST_KERNELS_H_

#include <cstdint>

#include "ps/gpu/kernel.h"

namespace parley {

// y[i] = x[i] * factor + shift, rounded twice.
struct TestScale {
  static constexpr uint32_t kThreads = 256;
  static constexpr int kPhases = 1;
  using Shared = NoShared;

  const float* x; /* [n] */
  float* y;       /* [n] */
  uint64_t n;
  float factor, shift;

  PARLEY_GPU void Run(int, const ThreadPlace& at, Shared&) const {
    for (uint64_t i = at.first(); i < n; i += at.stride()) y[i] = x[i] * factor + shift;
  }
};

// sums[block] = the sum of the block's part of x, as a tree through shared memory.
struct TestSum {
  static constexpr uint32_t kThreads = 64;
  static constexpr int kPhases = 8;  // load, 6 halvings, store
  struct Shared {
    float part[kThreads];
  };

  const float* x; /* [n] */
  float* sums;    /* [blocks] */
  uint64_t n;

  PARLEY_GPU void Run(int phase, const ThreadPlace& at, Shared& shared) const {
    if (phase == 0) {
      float sum = 0;
      for (uint64_t i = at.first(); i < n; i += at.stride()) sum += x[i];
      shared.part[at.thread] = sum;
    } else if (phase < kPhases - 1) {
      const uint32_t half = kThreads >> phase;
      if (at.thread < half) shared.part[at.thread] += shared.part[at.thread + half];
    } else if (at.thread == 0) {
      sums[at.block] = shared.part[0];
    }
  }
};

}  // namespace parley

PARLEY_DECLARE_GPU_KERNEL(parley::TestScale);
PARLEY_DECLARE_GPU_KERNEL(parley::TestSum);

#endif  // PARLEY_TESTS_CONFORMANCE_GPU_TEST_KERNELS_H_
