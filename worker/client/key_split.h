// KeySplit: the keys of one call, each once, by partition, and where in the call each occurs.
//
// The order is fixed, since codecs group values by it: by partition, and within a partition by
// first occurrence in the call.
#ifndef PARLEY_WORKER_CLIENT_KEY_SPLIT_H_
#define PARLEY_WORKER_CLIENT_KEY_SPLIT_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "ps/base/buffer.h"
#include "ps/base/sparse_layout.h"

namespace parley {

struct KeySplit {
  Buffer key_bytes;                 // uint64 [unique], in fresh memory of the pool
  std::vector<uint32_t> begin;      // [partitions + 1]: a partition's first key
  std::vector<uint32_t> first;      // [unique + 1]: a key's first entry in `positions`
  std::vector<uint32_t> positions;  // [call]: positions in the call, key by key, ascending for each

  const uint64_t* keys() const { return reinterpret_cast<const uint64_t*>(key_bytes.data()); }
  uint32_t unique() const { return begin.back(); }
};

// Makes them, and keeps its scratch memory between calls. Two radix passes by partition, then one
// small hash table after the other, so that each stays in the cache. Not thread-safe.
class KeySplitter {
 public:
  // Reuses what *split holds, but for key_bytes. REQUIRES: fewer than 2^32 keys.
  void Split(const SparseLayout& layout, absl::Span<const uint64_t> keys, BufferPool* pool,
             KeySplit* split);

 private:
  uint32_t Dedupe(uint32_t from, uint32_t to, uint32_t unique, uint64_t* out, KeySplit* split);
  void GroupPositions(uint32_t from, uint32_t to, uint32_t unique_from, uint32_t unique_to,
                      KeySplit* split);

  std::vector<uint16_t> partition_;  // [call]
  std::vector<uint32_t> offset_;     // [partitions + 1]
  std::vector<uint64_t> sorted_;     // [call]: keys by partition
  // Of one partition after the other:
  std::vector<uint32_t> which_;  // by place in sorted_: its key's number among the unique
  std::vector<uint32_t> table_;  // open addressing: number of a key + 1, or 0
  std::vector<uint32_t> grouped_;
};

}  // namespace parley

#endif  // PARLEY_WORKER_CLIENT_KEY_SPLIT_H_
