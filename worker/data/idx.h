// IDX files, the format of MNIST: magic 00 00 <type> <dimensions>, one big-endian u32 extent per
// dimension, then the values, row-major. Only unsigned bytes (type 08) are read, plain or gzip
// (told apart by content).
//
// Format: http://yann.lecun.com/exdb/mnist/, "the IDX file format". Pure functions, thread-safe.
#ifndef PARLEY_WORKER_DATA_IDX_H_
#define PARLEY_WORKER_DATA_IDX_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace parley {

struct IdxArray {
  std::vector<uint32_t> shape;  // as the header says, also when only the first `limit` are kept
  uint64_t kept = 0;            // entries along the first dimension that `bytes` holds
  std::vector<uint8_t> bytes;   // [kept, shape[1], ...]
};

// Reads a file of `dimensions` dimensions; of the first dimension only `limit` entries (0 = all,
// and then nothing may follow them). Memory grows with what the file really holds, not with what
// its header claims. Errors name the file, what is wrong and what is expected: kNotFound (cannot be
// opened), kDataLoss (truncated, corrupt gzip, trailing bytes), kInvalidArgument (magic,
// dimensions).
absl::StatusOr<IdxArray> ReadIdx(const std::string& path, uint32_t dimensions, uint64_t limit = 0);

}  // namespace parley

#endif  // PARLEY_WORKER_DATA_IDX_H_
