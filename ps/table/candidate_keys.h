// CandidateKeys: how often keys were pushed to that have no row yet, in bounded memory.
//
// Counts are exact until more than `max_keys` keys wait for a row. Then, at the end of the step,
// all counts are halved and those that come to 0 are forgotten, until the bound holds again: keys
// that are seen once and never again make room, frequent ones lose at most half of what they had.
// The outcome depends on what was counted between two halvings but not on its order. Not
// thread-safe.
#ifndef PARLEY_PS_TABLE_CANDIDATE_KEYS_H_
#define PARLEY_PS_TABLE_CANDIDATE_KEYS_H_

#include <cstdint>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"

namespace parley {

class CandidateKeys {
 public:
  // A key that was counted `wanted` times is ready. REQUIRES: wanted > 1.
  CandidateKeys(uint32_t wanted, uint64_t max_keys) : wanted_(wanted), max_keys_(max_keys) {}

  // Counts the key once; true if it is ready: then it is forgotten here.
  bool Count(uint64_t hash) {
    const auto entry = counts_.try_emplace(hash, 0).first;
    if (++entry->second < wanted_) return false;
    counts_.erase(entry);
    return true;
  }

  void EndStep() {
    while (counts_.size() > max_keys_) {
      absl::erase_if(counts_, [](auto& entry) { return (entry.second /= 2) == 0; });
    }
  }

  uint64_t size() const { return counts_.size(); }
  // Counts have this as their upper bound, exclusive.
  uint32_t wanted() const { return wanted_; }
  // Calls visit(hash, count) for every key, in no particular order.
  void ForEach(absl::FunctionRef<void(uint64_t hash, uint32_t count)> visit) const {
    for (const auto& [hash, count] : counts_) visit(hash, count);
  }
  void Clear() { counts_.clear(); }
  // REQUIRES: 0 < count < wanted().
  void Set(uint64_t hash, uint32_t count) { counts_[hash] = count; }
  uint64_t memory_bytes() const { return counts_.capacity() * (sizeof(Counts::value_type) + 1); }

 private:
  using Counts = absl::flat_hash_map<uint64_t, uint32_t>;
  const uint32_t wanted_;
  const uint64_t max_keys_;
  Counts counts_;
};

}  // namespace parley

#endif  // PARLEY_PS_TABLE_CANDIDATE_KEYS_H_
