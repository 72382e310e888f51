#include "benchmarks/limits/key_pool.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "worker/data/zipf.h"

namespace parley {

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
    const Zipf zipf(options.rows, options.zipf);
    for (uint64_t i = 0; i < options.draws; ++i) {
      keys_[i] = KeyOfRow(zipf.Draw(options.seed, 0, i) - 1);
    }
  } else {
    for (uint64_t& key : keys_) key = KeyOfRow(random_.Next() % options.rows);
  }
}

absl::Span<const uint64_t> KeyPool::Next(uint64_t keys) {
  const uint64_t places = keys_.size() - keys + 1;
  return absl::MakeConstSpan(keys_).subspan(random_.Next() % places, keys);
}

}  // namespace parley
