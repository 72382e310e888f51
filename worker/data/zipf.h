// Zipf: ranks 1..n, rank k with probability proportional to k^-exponent; exponent 0 is uniform.
//
// Rejection-inversion (Hörmann and Derflinger, "Rejection-inversion to generate variates from
// monotone discrete distributions", ACM TOMACS 6(3), 1996): no table, so n may be anything, and
// about 1.1 tries a draw. Built from IEEE operations alone, since libm's pow may differ in the last
// bit between processors. Immutable; thread-safe.
#ifndef PARLEY_WORKER_DATA_ZIPF_H_
#define PARLEY_WORKER_DATA_ZIPF_H_

#include <cstdint>

namespace parley {

class Zipf {
 public:
  static constexpr uint64_t kMaxRanks = uint64_t{1} << 50;

  // REQUIRES: 1 <= n <= kMaxRanks, 0 <= exponent <= 10.
  Zipf(uint64_t n, double exponent);

  // A function of (seed, stream, index) alone; draws from blocks kTries * index and following.
  uint64_t Draw(uint64_t seed, uint64_t stream, uint64_t index) const;

 private:
  static constexpr uint64_t kTries = 16;  // all fail less than once in 10^12 draws

  double Integral(double x) const;         // of t^-exponent from 1 to x
  double InverseIntegral(double y) const;  // the x with Integral(x) = y
  double Density(double x) const;          // x^-exponent

  const uint64_t n_;
  const double exponent_;
  double first_ = 0, last_ = 0;  // the range of Integral that is drawn from
  double sure_ = 0;              // ranks no further than this above x need no second look
};

}  // namespace parley

#endif  // PARLEY_WORKER_DATA_ZIPF_H_
