// KnownLists: which lists of keys a shard has seen lately, as far as this worker knows.
//
// A list is known once a message that carried it is acknowledged. The shard's own memory is bounded
// as well, so that it may have forgotten what is known here; it says so, and the list is sent.
// Least recently used lists go first. Not thread-safe.
#ifndef PARLEY_WORKER_CLIENT_KNOWN_LISTS_H_
#define PARLEY_WORKER_CLIENT_KNOWN_LISTS_H_

#include <array>
#include <cstdint>
#include <list>

#include "absl/container/flat_hash_map.h"

namespace parley {

using ListDigest = std::array<char, 16>;

class KnownLists {
 public:
  // Of the keys behind the digests, per shard: half of what a shard remembers of a worker.
  static constexpr uint64_t kMaxBytes = uint64_t{32} << 20;
  // Shorter lists are hardly longer than their digest and are not worth remembering.
  static constexpr uint32_t kMinKeys = 8;

  bool Contains(const ListDigest& digest) const { return entries_.contains(digest); }

  void Remember(const ListDigest& digest, uint64_t bytes) {
    const auto found = entries_.find(digest);
    if (found != entries_.end()) {
      order_.splice(order_.end(), order_, found->second);
      return;
    }
    entries_.emplace(digest, order_.insert(order_.end(), {digest, bytes}));
    bytes_ += bytes;
    while (bytes_ > kMaxBytes) Forget(ListDigest(order_.front().digest));
  }

  void Forget(const ListDigest& digest) {
    const auto found = entries_.find(digest);
    if (found == entries_.end()) return;
    bytes_ -= found->second->bytes;
    order_.erase(found->second);
    entries_.erase(found);
  }

 private:
  struct Entry {
    ListDigest digest;
    uint64_t bytes;
  };
  std::list<Entry> order_;  // the longest unused first
  absl::flat_hash_map<ListDigest, std::list<Entry>::iterator> entries_;
  uint64_t bytes_ = 0;
};

}  // namespace parley

#endif  // PARLEY_WORKER_CLIENT_KNOWN_LISTS_H_
