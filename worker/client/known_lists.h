// KnownLists: which lists of keys one shard has seen lately, of all tables, as far as this worker
// knows.
//
// A list is known once a message that carried it is acknowledged. The shard remembers a worker's
// lists of all tables in one bounded memory (KeyCache, ps/server/key_cache.h). A list is charged
// here what it is charged there, and the bound is half of that one, so that what is known here fits
// there; lists that are sent but known no more are what the other half is for. Should a shard have
// forgotten a list in spite of this, it says so, and the list is sent. Least recently used lists go
// first. Owned by a ClientCore, on the loop; not thread-safe.
#ifndef PARLEY_WORKER_CLIENT_KNOWN_LISTS_H_
#define PARLEY_WORKER_CLIENT_KNOWN_LISTS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <list>
#include <utility>

#include "absl/container/flat_hash_map.h"

namespace parley {

using ListDigest = std::array<char, 16>;

class KnownLists {
 public:
  // Half of what a shard remembers of a worker, keys and overhead.
  static constexpr uint64_t kMaxBytes = uint64_t{32} << 20;
  // What a list costs the shard besides its keys: KeyCache::kOverheadBytes.
  static constexpr uint64_t kOverheadBytes = 256;
  // Shorter lists are hardly longer than their digest and are not worth remembering.
  static constexpr uint32_t kMinKeys = 8;

  bool Contains(uint32_t table, const ListDigest& digest) const {
    return entries_.contains(Id{table, digest});
  }

  // `bytes` of keys. A list that is larger than all of the bound is remembered nowhere.
  void Remember(uint32_t table, const ListDigest& digest, uint64_t bytes) {
    const Id id{table, digest};
    const auto found = entries_.find(id);
    if (found != entries_.end()) {
      order_.splice(order_.end(), order_, found->second);
      return;
    }
    const uint64_t cost = bytes + kOverheadBytes;
    if (cost > kMaxBytes) return;
    while (bytes_ + cost > kMaxBytes) Erase(entries_.find(order_.front().id));
    entries_.emplace(id, order_.insert(order_.end(), {id, cost}));
    bytes_ += cost;
  }

  void Forget(uint32_t table, const ListDigest& digest) {
    const auto found = entries_.find(Id{table, digest});
    if (found != entries_.end()) Erase(found);
  }

  uint64_t bytes() const { return bytes_; }  // with overhead
  size_t lists() const { return entries_.size(); }

 private:
  // The same keys in two tables are two lists at the shard.
  struct Id {
    uint32_t table;
    ListDigest digest;
    bool operator==(const Id&) const = default;
    template <typename H>
    friend H AbslHashValue(H h, const Id& id) {
      return H::combine(std::move(h), id.table, id.digest);
    }
  };
  struct Entry {
    Id id;
    uint64_t cost;
  };
  using Index = absl::flat_hash_map<Id, std::list<Entry>::iterator>;

  void Erase(Index::iterator found) {
    bytes_ -= found->second->cost;
    order_.erase(found->second);
    entries_.erase(found);
  }

  std::list<Entry> order_;  // the longest unused first
  Index entries_;
  uint64_t bytes_ = 0;
};

}  // namespace parley

#endif  // PARLEY_WORKER_CLIENT_KNOWN_LISTS_H_
