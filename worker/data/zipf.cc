#include "worker/data/zipf.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "ps/base/philox.h"

namespace parley {
namespace {

constexpr double kLn2 = 0.693147180559945309417;

// Dividing takes longer than all the rest of a series.
constexpr int kTerms = 24;
constexpr std::array<double, kTerms> kInverse = [] {
  std::array<double, kTerms> inverse = {};
  for (int i = 1; i < kTerms; ++i) inverse[i] = 1.0 / i;
  return inverse;
}();

// x = m * 2^e with m about 1; ln m = 2 artanh((m - 1) / (m + 1)), a series whose first term left
// out is below 2^-60. REQUIRES: x > 0.
double Log(double x) {
  int e = 0;
  double m = std::frexp(x, &e);  // exact
  if (m < 0.70710678118654752) m *= 2, --e;
  const double t = (m - 1) / (m + 1), square = t * t;
  double sum = 0;
  for (int k = 23; k >= 1; k -= 2) sum = sum * square + kInverse[k];
  return 2 * t * sum + e * kLn2;
}

// 2^k * e^r with |r| <= ln(2) / 2, by the Taylor series.
double Exp(double x) {
  const double k = std::nearbyint(x * (1 / kLn2));
  const double r = x - k * kLn2;
  double sum = 1;
  for (int i = 16; i >= 1; --i) sum = 1 + r * kInverse[i] * sum;
  return std::ldexp(sum, static_cast<int>(k));  // exact
}

// Near 1 the formula with the difference loses its digits, and the logarithm is as good.
bool NearOne(double exponent) { return std::abs(1 - exponent) < 1e-6; }

}  // namespace

Zipf::Zipf(uint64_t n, double exponent) : n_(n), exponent_(exponent) {
  first_ = Integral(1.5) - 1;
  last_ = Integral(static_cast<double>(n) + 0.5);
  sure_ = 2 - InverseIntegral(Integral(2.5) - Density(2));
}

uint64_t Zipf::Draw(uint64_t seed, uint64_t stream, uint64_t index) const {
  uint64_t rank = 1;
  for (uint64_t attempt = 0; attempt < kTries; ++attempt) {
    const std::array<uint32_t, 4> bits = Philox(seed, stream, index * kTries + attempt);
    const uint64_t word = uint64_t{bits[0]} << 32 | bits[1];
    const double uniform = static_cast<double>(word >> 11) * 0x1p-53;
    const double y = last_ + uniform * (first_ - last_);
    const double x = InverseIntegral(y);
    const double nearest = std::clamp(std::floor(x + 0.5), 1.0, static_cast<double>(n_));
    rank = static_cast<uint64_t>(nearest);
    if (nearest - x <= sure_ || y >= Integral(nearest + 0.5) - Density(nearest)) break;
  }
  return rank;
}

double Zipf::Integral(double x) const {
  if (NearOne(exponent_)) return Log(x);
  return (Exp((1 - exponent_) * Log(x)) - 1) / (1 - exponent_);
}

double Zipf::InverseIntegral(double y) const {
  if (NearOne(exponent_)) return Exp(y);
  // Rounding may leave the range of the integral where it ends.
  const double base = std::max(1 + y * (1 - exponent_), 0x1p-1000);
  return Exp(Log(base) / (1 - exponent_));
}

double Zipf::Density(double x) const { return Exp(-exponent_ * Log(x)); }

}  // namespace parley
