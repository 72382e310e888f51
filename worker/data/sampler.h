// Sampler: which samples a worker trains on in each of its ticks.
//
// Every epoch has one permutation of the training set, a pure function of (seed, epoch, samples).
// GLOBAL_BATCH: step k of the epoch takes its next `global_batch` entries (the last step what is
// left) and splits them over the workers into contiguous pieces whose sizes differ by at most 1.
// BY_WORKER: worker r gets the entries r, r + W, r + 2W ... without padding and walks them in local
// batches of max(1, global_batch / W), so workers may have different numbers of ticks. Either way
// the parts are disjoint and cover the epoch.
#ifndef PARLEY_WORKER_DATA_SAMPLER_H_
#define PARLEY_WORKER_DATA_SAMPLER_H_

#include <cstdint>
#include <vector>

#include "proto/experiment.pb.h"
#include "ps/base/dense_layout.h"

namespace parley {

// A permutation of 0..n-1 (Fisher-Yates, driven by philox, stream kShuffle of `epoch`). Stays the
// same across releases: a test pins its hash.
std::vector<uint64_t> EpochPermutation(uint64_t seed, uint64_t epoch, uint64_t n);

// Piece `part` of 0..n-1 cut into `parts` contiguous pieces whose sizes differ by at most 1, larger
// ones first. REQUIRES: part < parts.
Range ContiguousPart(uint64_t n, uint32_t part, uint32_t parts);

struct WorkerBatch {
  uint64_t first_row = 0;     // position of the first row in the step's global batch
  std::vector<uint64_t> ids;  // samples; empty if this worker has no row in the step
};

class Sampler {
 public:
  struct Options {
    pb::Data::Sharding sharding = pb::Data::GLOBAL_BATCH;
    uint64_t samples = 0;
    uint64_t global_batch = 1;
    uint32_t part = 0;  // this worker among those that share the data
    uint32_t parts = 1;
    uint64_t seed = 0;
  };

  // REQUIRES: global_batch >= 1, part < parts.
  explicit Sampler(const Options& options);

  // Ticks that this worker has in every epoch. May be 0 under BY_WORKER. Thread-safe.
  uint64_t ticks_per_epoch() const;
  // Rows of tick `index` (within its epoch); may be 0 under GLOBAL_BATCH. Thread-safe.
  uint64_t rows(uint64_t index) const { return Positions(index).size(); }

  // Keeps the permutation of the last epoch asked for: not thread-safe.
  // REQUIRES: index < ticks_per_epoch().
  WorkerBatch Batch(uint64_t epoch, uint64_t index);

 private:
  // This worker's rows of tick `index`, counted in the permutation (GLOBAL_BATCH) or in the
  // worker's own part of it (BY_WORKER).
  Range Positions(uint64_t index) const;
  uint64_t local_batch() const;
  uint64_t own_samples() const;

  const Options options_;
  uint64_t epoch_ = 0;
  std::vector<uint64_t> permutation_;  // of epoch_; empty before the first Batch
};

}  // namespace parley

#endif  // PARLEY_WORKER_DATA_SAMPLER_H_
