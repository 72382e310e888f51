// Mathematics whose bits are fixed: built from IEEE additions, multiplications and divisions alone.
//
// libm's pow and cos may differ in the last bit between versions and processors, and a learning
// rate that differs in the last bit makes other weights. Pure functions, thread-safe.
#ifndef PARLEY_PS_TABLE_FIXED_MATH_H_
#define PARLEY_PS_TABLE_FIXED_MATH_H_

#include <cstdint>

namespace parley {

// base^n by repeated squaring; 1 for n = 0. The relative error is about n * 2^-53, which is no more
// than that of writing `base` as a double.
constexpr double IntegerPower(double base, uint64_t n) {
  double result = 1;
  for (; n != 0; n >>= 1) {
    if (n & 1) result *= base;
    base *= base;
  }
  return result;
}

// cos(pi * x), REQUIRES: x in [0, 1]. The Taylor series; its first term left out is below 2^-60.
constexpr double CosPi(double x) {
  if (x > 0.5) return -CosPi(1 - x);
  constexpr double kPi = 3.14159265358979323846;
  const double square = (kPi * x) * (kPi * x);
  double sum = 1;
  for (int k = 24; k > 0; k -= 2) sum = 1 - square / (k * (k - 1)) * sum;
  return sum;
}

}  // namespace parley

#endif  // PARLEY_PS_TABLE_FIXED_MATH_H_
