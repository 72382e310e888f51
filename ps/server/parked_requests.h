// ParkedRequests: pulls that the consistency policy does not let through yet, and pushes that may
// not be acknowledged yet.
//
// A request is kept by (sender, request id): one that comes again is the caller asking whether it
// was lost, and is told that it is held. Bounded. Owned by one loop; not thread-safe.
#ifndef PARLEY_PS_SERVER_PARKED_REQUESTS_H_
#define PARLEY_PS_SERVER_PARKED_REQUESTS_H_

#include <cstdint>
#include <list>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "ps/base/ids.h"
#include "ps/server/table_request.h"

namespace parley {

class ParkedRequests {
 public:
  // A worker has a few requests in flight; this is for thousands of workers.
  static constexpr size_t kMax = 65536;
  // Keys of sparse requests that are held with them.
  static constexpr size_t kMaxKeyBytes = size_t{256} << 20;

  struct Entry {
    NodeId from;
    TableRequest request;
    absl::Duration since;
    bool told = false;  // that it is parked
  };

  // The entry of a request that is held; null if it is not.
  const Entry* Find(NodeId from, uint64_t request_id) const {
    if (!keys_.contains(std::pair(from, request_id))) return nullptr;
    for (const Entry& entry : entries_) {
      if (entry.from == from && entry.request.header.request_id() == request_id) return &entry;
    }
    return nullptr;
  }

  // kResourceExhausted when full; then `request` stays with the caller. REQUIRES: it is not held.
  absl::Status Park(NodeId from, TableRequest&& request, absl::Duration now) {
    const size_t bytes = KeyBytes(request);
    if (entries_.size() >= kMax || key_bytes_ + bytes > kMaxKeyBytes) {
      return absl::ResourceExhaustedError("too many requests are waiting on this shard");
    }
    key_bytes_ += bytes;
    keys_.insert(std::pair(from, request.header.request_id()));
    entries_.push_back({from, std::move(request), now});
    return absl::OkStatus();
  }

  // Calls `answer` for each in the order of arrival; one for which it returns true is forgotten.
  void Release(absl::FunctionRef<bool(Entry&)> answer) {
    for (auto it = entries_.begin(); it != entries_.end();) {
      if (answer(*it)) {
        key_bytes_ -= KeyBytes(it->request);
        keys_.erase(std::pair(it->from, it->request.header.request_id()));
        it = entries_.erase(it);
      } else {
        ++it;
      }
    }
  }

  bool empty() const { return entries_.empty(); }
  // The one parked last. REQUIRES: !empty().
  Entry& back() { return entries_.back(); }

 private:
  static size_t KeyBytes(const TableRequest& request) {
    size_t bytes = 0;
    for (const PartPayload& payload : request.payload) bytes += payload.keys.size();
    return bytes;
  }

  std::list<Entry> entries_;
  size_t key_bytes_ = 0;
  absl::flat_hash_set<std::pair<NodeId, uint64_t>> keys_;
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_PARKED_REQUESTS_H_
