#include "ps/table/key_merger.h"

#include <algorithm>
#include <bit>

#include "ps/base/sparse_layout.h"

namespace parley {

// Where a key is looked for must not be known to whoever chooses the keys, or all could be made to
// collide; this object's address is not, and a random odd multiplier is a universal hash. It does
// not show in the result.
KeyMerger::KeyMerger() : multiplier_(KeyHash(reinterpret_cast<uintptr_t>(this)) | 1) {}

void KeyMerger::Merge(absl::Span<const GradientView> gradients, uint64_t dim) {
  uint64_t total = 0;
  for (const GradientView& gradient : gradients) total += gradient.keys.size();
  const int bits = std::bit_width(2 * total + 1);
  slots_.assign(size_t{1} << bits, 0);
  const uint64_t mask = slots_.size() - 1;
  hashes_.clear();
  first_.clear();
  key_of_.clear();

  for (const GradientView& gradient : gradients) {
    for (size_t i = 0; i < gradient.keys.size(); ++i) {
      const uint64_t hash = KeyHash(gradient.keys[i]);
      uint64_t at = (hash * multiplier_) >> (64 - bits);
      while (slots_[at] != 0 && hashes_[slots_[at] - 1] != hash) at = (at + 1) & mask;
      if (slots_[at] == 0) {
        hashes_.push_back(hash);
        first_.push_back(0);
        slots_[at] = static_cast<uint32_t>(hashes_.size());
      }
      key_of_.push_back(slots_[at] - 1);
      ++first_[slots_[at] - 1];
    }
  }

  // From counts to where each key's list ends, then filled from the back in descending order of
  // workers, which leaves the beginnings behind.
  uint32_t end = 0;
  for (uint32_t& count : first_) count = end += count;
  first_.push_back(end);
  gradients_.resize(total);
  uint64_t occurrence = total;
  for (size_t w = gradients.size(); w-- > 0;) {
    for (size_t i = gradients[w].keys.size(); i-- > 0;) {
      gradients_[--first_[key_of_[--occurrence]]] = gradients[w].values + i * dim;
    }
  }
}

uint64_t KeyMerger::memory_bytes() const {
  return slots_.capacity() * sizeof(uint32_t) + hashes_.capacity() * sizeof(uint64_t) +
         (first_.capacity() + key_of_.capacity()) * sizeof(uint32_t) +
         gradients_.capacity() * sizeof(const float*);
}

}  // namespace parley
