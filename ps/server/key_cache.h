// KeyCache: the lists of keys that one worker has sent to this shard, by their digest, so that a
// list that comes again travels as 16 bytes.
//
// A list is remembered for one partition, after it was found to match its digest and to name keys
// of that partition alone: what is found here needs no second check. The least recently used lists
// go when there is no room; the worker then sends them again. One object per worker, so that a
// worker that thrashes, or makes digests collide, harms itself alone. Owned by one loop; not
// thread-safe (the Buffers are).
#ifndef PARLEY_PS_SERVER_KEY_CACHE_H_
#define PARLEY_PS_SERVER_KEY_CACHE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <list>

#include "absl/container/flat_hash_map.h"
#include "ps/base/buffer.h"

namespace parley {

class KeyCache {
 public:
  using Digest = std::array<char, 16>;  // KeyDigest()

  // Bytes of one worker's lists on one shard: eighty lists of 100,000 keys. More makes misses
  // rarer and costs that much memory per worker and shard.
  static constexpr size_t kMaxBytes = size_t{64} << 20;
  // What a list costs besides its bytes: the entry, its place in the index, the block's head.
  // Counted, so that lists of one key are bounded, too.
  static constexpr size_t kOverheadBytes = 256;

  struct Id {
    uint32_t table = 0;
    uint32_t partition = 0;
    Digest digest = {};
    bool operator==(const Id&) const = default;
    template <typename H>
    friend H AbslHashValue(H h, const Id& id) {
      return H::combine(std::move(h), id.table, id.partition, id.digest);
    }
  };

  // `pool` must outlive this; lists are kept in its memory.
  explicit KeyCache(BufferPool* pool, size_t max_bytes = kMaxBytes);

  // The list; empty if it is not known. What is found counts as just used. The Buffer stays as it
  // is for as long as it lives, whatever is forgotten meanwhile.
  Buffer Find(const Id& id);

  // Remembers a copy: `keys` may refer to a message, whose other bytes would be held with it. A
  // list that is known already counts as just used; one larger than the bound is not remembered.
  // REQUIRES: `keys` is not empty, matches the digest and belongs to the partition.
  void Remember(const Id& id, const Buffer& keys);

  size_t bytes() const { return bytes_; }  // with overhead
  size_t lists() const { return entries_.size(); }

 private:
  struct Entry {
    Id id;
    Buffer keys;
  };
  static size_t Cost(const Buffer& keys) { return keys.size() + kOverheadBytes; }

  BufferPool* const pool_;
  const size_t max_bytes_;
  size_t bytes_ = 0;
  std::list<Entry> entries_;  // the most recently used first
  absl::flat_hash_map<Id, std::list<Entry>::iterator> index_;
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_KEY_CACHE_H_
