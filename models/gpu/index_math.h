// Index arithmetic of kernels: 32 bits, division by multiplication. Internal to models/gpu.
#ifndef PARLEY_MODELS_GPU_INDEX_MATH_H_
#define PARLEY_MODELS_GPU_INDEX_MATH_H_

#include <cstdint>
#include <cstring>

#include "ps/gpu/kernel.h"

namespace parley {

// Quotients and remainders by a divisor that is known at the launch: GPUs have no division.
// Granlund and Montgomery, "Division by invariant integers using multiplication", PLDI 1994, fig.
// 4.1; exact for all 32-bit numerators.
class Divider {
 public:
  Divider() = default;
  explicit Divider(uint32_t divisor) : divisor_(divisor) {
    while ((uint64_t{1} << shift_) < divisor) ++shift_;
    const uint64_t above = (uint64_t{1} << shift_) - divisor;
    multiplier_ = static_cast<uint32_t>((above << 32) / divisor + 1);
  }
  PARLEY_GPU uint32_t divisor() const { return divisor_; }
  PARLEY_GPU uint32_t Quotient(uint32_t n) const {
    const uint64_t high = (uint64_t{multiplier_} * n) >> 32;
    return static_cast<uint32_t>((high + n) >> shift_);
  }
  // n becomes its quotient; returns the remainder.
  PARLEY_GPU uint32_t Split(uint32_t* n) const {
    const uint32_t quotient = Quotient(*n);
    const uint32_t remainder = *n - quotient * divisor_;
    *n = quotient;
    return remainder;
  }

 private:
  uint32_t divisor_ = 1, multiplier_ = 1, shift_ = 0;
};

// Nearest bfloat16, ties to even; NaN stays one.
PARLEY_GPU inline uint16_t ToBf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

PARLEY_GPU inline void StoreAs(float x, float* to) { *to = x; }
PARLEY_GPU inline void StoreAs(float x, uint16_t* to) { *to = ToBf16(x); }

}  // namespace parley

#endif  // PARLEY_MODELS_GPU_INDEX_MATH_H_
