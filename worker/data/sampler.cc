#include "worker/data/sampler.h"

#include <algorithm>
#include <cassert>
#include <numeric>
#include <utility>

#include "absl/numeric/int128.h"
#include "ps/base/philox.h"

namespace parley {

std::vector<uint64_t> EpochPermutation(uint64_t seed, uint64_t epoch, uint64_t n) {
  std::vector<uint64_t> order(n);
  std::iota(order.begin(), order.end(), uint64_t{0});
  const uint64_t stream = Stream(RandomPurpose::kShuffle, epoch);
  for (uint64_t i = n; i > 1; --i) {
    const std::array<uint32_t, 4> bits = Philox(seed, stream, i);
    const uint64_t uniform = uint64_t{bits[0]} << 32 | bits[1];
    // The high half of a 64 x 64 bit product is uniform in [0, i) but for a bias below i / 2^64.
    const uint64_t j = absl::Uint128High64(absl::uint128(uniform) * i);
    std::swap(order[i - 1], order[j]);
  }
  return order;
}

Range ContiguousPart(uint64_t n, uint32_t part, uint32_t parts) {
  assert(part < parts);
  const uint64_t base = n / parts, longer = n % parts;
  const uint64_t begin = part * base + std::min<uint64_t>(part, longer);
  return {begin, begin + base + (part < longer ? 1 : 0)};
}

Sampler::Sampler(const Options& options) : options_(options) {
  assert(options.global_batch >= 1 && options.part < options.parts);
}

uint64_t Sampler::local_batch() const {
  return std::max<uint64_t>(1, options_.global_batch / options_.parts);
}

uint64_t Sampler::own_samples() const {
  // Entries part, part + parts ... below samples.
  if (options_.samples <= options_.part) return 0;
  return (options_.samples - options_.part - 1) / options_.parts + 1;
}

uint64_t Sampler::ticks_per_epoch() const {
  const bool global = options_.sharding == pb::Data::GLOBAL_BATCH;
  const uint64_t n = global ? options_.samples : own_samples();
  const uint64_t batch = global ? options_.global_batch : local_batch();
  return n / batch + (n % batch != 0 ? 1 : 0);
}

Range Sampler::Positions(uint64_t index) const {
  if (options_.sharding == pb::Data::GLOBAL_BATCH) {
    const uint64_t begin = index * options_.global_batch;
    const uint64_t size = std::min(options_.global_batch, options_.samples - begin);
    const Range piece = ContiguousPart(size, options_.part, options_.parts);
    return {begin + piece.begin, begin + piece.end};
  }
  const uint64_t begin = index * local_batch();
  return {begin, std::min(begin + local_batch(), own_samples())};
}

WorkerBatch Sampler::Batch(uint64_t epoch, uint64_t index) {
  assert(index < ticks_per_epoch());
  if (permutation_.empty() || epoch_ != epoch) {
    permutation_ = EpochPermutation(options_.seed, epoch, options_.samples);
    epoch_ = epoch;
  }
  const Range positions = Positions(index);
  WorkerBatch batch;
  batch.ids.reserve(positions.size());
  if (options_.sharding == pb::Data::GLOBAL_BATCH) {
    batch.first_row = positions.begin - index * options_.global_batch;
    batch.ids.assign(permutation_.begin() + positions.begin, permutation_.begin() + positions.end);
  } else {
    // Workers' rows of a tick must not share dropout masks, so each has a stretch of its own.
    batch.first_row = options_.part * local_batch();
    for (uint64_t k = positions.begin; k < positions.end; ++k) {
      batch.ids.push_back(permutation_[options_.part + k * options_.parts]);
    }
  }
  return batch;
}

}  // namespace parley
