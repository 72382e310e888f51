#include "ps/server/key_cache.h"

#include <utility>

#include "ps/base/payload_copy.h"

namespace parley {

KeyCache::KeyCache(BufferPool* pool, size_t max_bytes) : pool_(pool), max_bytes_(max_bytes) {}

Buffer KeyCache::Find(const Id& id) {
  const auto found = index_.find(id);
  if (found == index_.end()) return Buffer();
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->keys;
}

void KeyCache::Remember(const Id& id, const Buffer& keys) {
  if (const auto known = index_.find(id); known != index_.end()) {
    entries_.splice(entries_.begin(), entries_, known->second);
    return;
  }
  const size_t cost = Cost(keys);
  if (cost > max_bytes_) return;
  while (bytes_ + cost > max_bytes_) {
    bytes_ -= Cost(entries_.back().keys);
    index_.erase(entries_.back().id);
    entries_.pop_back();
  }
  Buffer copy = pool_->Allocate(keys.size());
  CopyPayload(copy.mutable_data(), keys.data(), keys.size());
  entries_.push_front({id, std::move(copy)});
  index_.emplace(id, entries_.begin());
  bytes_ += cost;
}

}  // namespace parley
