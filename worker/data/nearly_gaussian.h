// Normal enough for synthetic data, and the same bits everywhere. Pure, thread-safe.
#ifndef PARLEY_WORKER_DATA_NEARLY_GAUSSIAN_H_
#define PARLEY_WORKER_DATA_NEARLY_GAUSSIAN_H_

#include <array>
#include <cstdint>

namespace parley {

// The sum of eight 16-bit uniforms, centred and scaled to variance 1. Integers add exactly, so the
// data has the same bits everywhere; Box-Muller's would depend on the C library's log and cos.
inline float NearlyGaussian(const std::array<uint32_t, 4>& bits) {
  uint32_t sum = 0;
  for (uint32_t word : bits) sum += (word & 0xFFFF) + (word >> 16);
  constexpr float kMean = 8 * 65535 / 2.0f;
  constexpr float kInverseStd = 1.0f / 53509.9f;  // sqrt(8 (2^32 - 1) / 12)
  return (static_cast<float>(sum) - kMean) * kInverseStd;
}

}  // namespace parley

#endif  // PARLEY_WORKER_DATA_NEARLY_GAUSSIAN_H_
