// Leaving: tells every shard of the newest map that this worker will push no more.
//
// Shards may be told more than once. When partitions move, those are asked that are new, and those
// that own what they did not own when they were asked: a partition that came to a shard after its
// answer may not know. So it goes on after all have answered, though nobody waits for it then. What
// is asked of a shard that is gone, or is asked again, is dropped.
//
// Owned by a PsClient; everything on the loop.
#ifndef PARLEY_WORKER_CLIENT_LEAVING_H_
#define PARLEY_WORKER_CLIENT_LEAVING_H_

#include <cstdint>
#include <map>
#include <set>

#include "absl/functional/any_invocable.h"
#include "worker/client/client_core.h"

namespace parley {

class Leaving {
 public:
  // `core` must outlive this, and this the requests in its queues.
  explicit Leaving(ClientCore* core) : core_(core) {}

  // `done` runs when every shard of the newest map has answered. To be called once.
  void Begin(uint64_t after_tick, absl::AnyInvocable<void()> done);

  // There is a newer map; `gained`: the shards that own a partition which they did not own before.
  // While the queues are paused.
  void OnMap(const std::set<uint32_t>& gained);
  // After that, once the queues go on: `done` may be due for want of somebody to wait for.
  void EndIfAllAnswered();

 private:
  class Request;
  struct Asked {
    uint64_t number = 0;  // of the request that counts
    bool answered = false;
  };

  void Ask(uint32_t shard);
  bool Counts(uint32_t shard, uint64_t number) const;

  ClientCore* const core_;
  bool begun_ = false;
  uint64_t after_tick_ = 0;
  uint64_t next_number_ = 1;
  std::map<uint32_t, Asked> asked_;     // by shard
  absl::AnyInvocable<void()> on_left_;  // null: not begun, or over
};

}  // namespace parley

#endif  // PARLEY_WORKER_CLIENT_LEAVING_H_
