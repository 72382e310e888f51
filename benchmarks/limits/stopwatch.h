// Monotonic seconds since it was made. Thread-safe.
#ifndef PARLEY_BENCHMARKS_LIMITS_STOPWATCH_H_
#define PARLEY_BENCHMARKS_LIMITS_STOPWATCH_H_

#include <chrono>

namespace parley {

class Stopwatch {
 public:
  double Seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace parley

#endif  // PARLEY_BENCHMARKS_LIMITS_STOPWATCH_H_
