// ParkedPulls: the pulls that the consistency policy does not let through yet.
//
// A pull is kept by (sender, request id): one that comes again is the caller asking whether it was
// lost, and is told that it is held. Bounded. Owned by one loop; not thread-safe.
#ifndef PARLEY_PS_SERVER_PARKED_PULLS_H_
#define PARLEY_PS_SERVER_PARKED_PULLS_H_

#include <cstdint>
#include <list>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/wire.pb.h"
#include "ps/base/ids.h"

namespace parley {

class ParkedPulls {
 public:
  // A worker has a few pulls in flight; this is for thousands of workers.
  static constexpr size_t kMax = 65536;

  struct Entry {
    NodeId from;
    pb::FrameHeader request;
    absl::Duration since;
    bool told = false;  // that it is parked
  };

  // False if it is held already. kResourceExhausted when full.
  absl::Status Park(NodeId from, const pb::FrameHeader& request, absl::Duration now, bool* is_new) {
    const auto key = std::pair(from, request.request_id());
    *is_new = !keys_.contains(key);
    if (!*is_new) return absl::OkStatus();
    if (entries_.size() >= kMax) {
      return absl::ResourceExhaustedError("too many pulls are waiting on this shard");
    }
    keys_.insert(key);
    entries_.push_back({from, request, now});
    return absl::OkStatus();
  }

  // Calls `answer` for each in the order of arrival; one for which it returns true is forgotten.
  void Release(absl::FunctionRef<bool(Entry&)> answer) {
    for (auto it = entries_.begin(); it != entries_.end();) {
      if (answer(*it)) {
        keys_.erase(std::pair(it->from, it->request.request_id()));
        it = entries_.erase(it);
      } else {
        ++it;
      }
    }
  }

  bool empty() const { return entries_.empty(); }

 private:
  std::list<Entry> entries_;
  absl::flat_hash_set<std::pair<NodeId, uint64_t>> keys_;
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_PARKED_PULLS_H_
