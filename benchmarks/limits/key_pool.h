// KeyPool: keys to ask a sparse table for, drawn ahead so that drawing costs nothing while time is
// taken.
//
// Row i of a table has the key KeyOfRow(i), which looks random. A pool holds draws of rows, uniform
// or Zipf (row i with probability proportional to (i + 1)^-s, worker/data/zipf.h). A request takes
// a window of the pool at a random place, so no two requests are alike and a cache of key lists
// cannot help, unless it is wanted to. Not thread-safe.
#ifndef PARLEY_BENCHMARKS_LIMITS_KEY_POOL_H_
#define PARLEY_BENCHMARKS_LIMITS_KEY_POOL_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "ps/base/sparse_layout.h"

namespace parley {

inline uint64_t KeyOfRow(uint64_t row) { return KeyHash(row + 1); }

// A small generator, seeded: SplitMix64 (Steele, Lea, Flood 2014).
class SplitMix {
 public:
  explicit SplitMix(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }
  double Unit() { return static_cast<double>(Next() >> 11) * 0x1p-53; }  // [0, 1)

 private:
  uint64_t state_;
};

class KeyPool {
 public:
  struct Options {
    uint64_t rows = 0;  // of the table; >= 1
    double zipf = 0;    // exponent; 0 = uniform
    uint64_t seed = 1;
    uint64_t draws = uint64_t{1} << 21;
  };
  // "uniform" or "zipf:EXPONENT" -> the exponent. kInvalidArgument says what is allowed.
  static absl::StatusOr<double> ParseDistribution(const std::string& text);

  explicit KeyPool(const Options& options);

  // The next request's keys. REQUIRES: keys <= draws. Valid as long as the pool.
  absl::Span<const uint64_t> Next(uint64_t keys);

 private:
  std::vector<uint64_t> keys_;
  SplitMix random_;
};

}  // namespace parley

#endif  // PARLEY_BENCHMARKS_LIMITS_KEY_POOL_H_
