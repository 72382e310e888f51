#include "benchmarks/limits/key_pool.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace parley {
namespace {

// Draws k in 1..n with probability proportional to k^-s.
class ZipfDraw {
 public:
  ZipfDraw(uint64_t n, double s) : n_(static_cast<double>(n)), s_(s) {
    low_ = Integral(1.5) - 1;
    high_ = Integral(n_ + 0.5);
    shortcut_ = 2 - Inverse(Integral(2.5) - std::exp(-s_ * std::log(2.0)));
  }
  uint64_t operator()(SplitMix& random) const {
    for (;;) {
      const double u = high_ + random.Unit() * (low_ - high_);
      const double x = Inverse(u);
      const double k = std::clamp(std::round(x), 1.0, n_);
      // Mostly the first test decides, without a power.
      if (k - x <= shortcut_ || u >= Integral(k + 0.5) - std::exp(-s_ * std::log(k))) {
        return static_cast<uint64_t>(k);
      }
    }
  }

 private:
  // Of x^-s, and its inverse function. Near s = 1 the power's form loses all digits.
  double Integral(double x) const {
    const double log_x = std::log(x), e = 1 - s_;
    return std::abs(e) < 1e-9 ? log_x : std::expm1(e * log_x) / e;
  }
  double Inverse(double u) const {
    const double e = 1 - s_;
    return std::abs(e) < 1e-9 ? std::exp(u) : std::exp(std::log1p(e * u) / e);
  }

  double n_, s_, low_, high_, shortcut_;
};

}  // namespace

absl::StatusOr<double> KeyPool::ParseDistribution(const std::string& text) {
  if (text == "uniform") return 0.0;
  absl::string_view number = text;
  double exponent = 0;
  if (absl::ConsumePrefix(&number, "zipf:") && absl::SimpleAtod(number, &exponent) &&
      exponent > 0 && exponent <= 10) {
    return exponent;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("distribution '", text,
                   "' is not known; allowed: uniform, or zipf:S with 0 < S <= 10, as zipf:1.05"));
}

KeyPool::KeyPool(const Options& options) : keys_(options.draws), random_(options.seed) {
  if (options.zipf > 0) {
    const ZipfDraw draw(options.rows, options.zipf);
    for (uint64_t& key : keys_) key = KeyOfRow(draw(random_) - 1);
  } else {
    for (uint64_t& key : keys_) key = KeyOfRow(random_.Next() % options.rows);
  }
}

absl::Span<const uint64_t> KeyPool::Next(uint64_t keys) {
  const uint64_t places = keys_.size() - keys + 1;
  return absl::MakeConstSpan(keys_).subspan(random_.Next() % places, keys);
}

}  // namespace parley
