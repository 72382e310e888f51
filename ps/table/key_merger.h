// KeyMerger: the distinct keys of several workers' gradients, and for each the gradients to sum, in
// the order of the workers.
//
// No sums are made here: the update pass reads each gradient where it was received, once. Scratch
// memory stays between steps. Not thread-safe.
#ifndef PARLEY_PS_TABLE_KEY_MERGER_H_
#define PARLEY_PS_TABLE_KEY_MERGER_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "ps/table/table_partition.h"

namespace parley {

class KeyMerger {
 public:
  KeyMerger();

  // The views' bytes are borrowed until the next call. Keys are unique within a view.
  void Merge(absl::Span<const GradientView> gradients, uint64_t dim);

  uint64_t keys() const { return hashes_.size(); }
  // [keys()] in order of first occurrence: hashes; where each key's gradients begin in gradients();
  // first() has one more, the end.
  const uint64_t* hashes() const { return hashes_.data(); }
  const uint32_t* first() const { return first_.data(); }
  const float* const* gradients() const { return gradients_.data(); }
  uint64_t memory_bytes() const;

 private:
  const uint64_t multiplier_;
  std::vector<uint32_t> slots_;   // open addressing: index into hashes_, plus one; 0: free
  std::vector<uint64_t> hashes_;  // by key
  std::vector<uint32_t> first_;   // by key
  std::vector<uint32_t> key_of_;  // by occurrence: index into hashes_
  std::vector<const float*> gradients_;
};

}  // namespace parley

#endif  // PARLEY_PS_TABLE_KEY_MERGER_H_
