// What this machine can do at best, measured in the same run as what is compared with it.
//
// Each function takes `rounds` rounds of about `seconds` and returns a value for each. Memory is
// allocated and touched before, in huge pages where the system gives them. Functions that need a
// second process fork one, which dies with this one; call them before starting threads. Errors name
// the system call or library that failed.
#ifndef PARLEY_BENCHMARKS_LIMITS_LIMITS_H_
#define PARLEY_BENCHMARKS_LIMITS_LIMITS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "benchmarks/limits/series.h"

namespace parley {

struct LimitOptions {
  uint32_t rounds = 5;
  double seconds = 0.2;  // of a round
};

// "64MiB", "4KiB", "100B": sizes in the names of series.
std::string SizeName(size_t bytes);

// memcpy of `bytes`, by `threads` threads that have a share each. GB/s of bytes copied.
Series MeasureMemcpy(const std::string& name, size_t bytes, int threads, LimitOptions options);

// What a push then pull of a vector of `bytes` cannot do without: w += g, and then a copy of w out
// of here. GB/s of vector bytes: bytes / (time of both passes). With `sets` above 1 as many vectors
// take turns, so that those in flight need not fit a cache together.
Series MeasureTwoPass(const std::string& name, size_t bytes, int sets, int threads,
                      LimitOptions options);

// Median round trip between two processes that sleep on a futex in shared memory, in us.
absl::StatusOr<Series> MeasureFutexPingPong(const std::string& name, LimitOptions options);

// One way over tcp on loopback, blocking sends and receives of `bytes`, in GB/s.
absl::StatusOr<Series> MeasureTcpStream(const std::string& name, size_t bytes,
                                        LimitOptions options);

// One way from a DEALER to a ROUTER over tcp on loopback, a process each, a header part and a
// payload part of `bytes` that libzmq does not copy; 8 payloads take turns. GB/s of payload.
absl::StatusOr<Series> MeasureZmqStream(const std::string& name, size_t bytes,
                                        LimitOptions options);

// The same with messages of one part of `bytes`, in millions a second.
absl::StatusOr<Series> MeasureZmqRate(const std::string& name, size_t bytes, LimitOptions options);

// The sparse table without anything around it: one partition with `rows` rows of `dim` floats, SGD,
// requests of `keys` keys as KeyPool draws them. Two series, `name`.pull (look up and copy out) and
// `name`.push (update), in millions of keys a second.
struct BareTableOptions {
  uint64_t rows = 10'000'000, keys = 100'000;
  uint32_t dim = 16;
  double zipf = 0;
};
absl::StatusOr<std::vector<Series>> MeasureBareTable(const std::string& name,
                                                     const BareTableOptions& table,
                                                     LimitOptions options);

}  // namespace parley

#endif  // PARLEY_BENCHMARKS_LIMITS_LIMITS_H_
