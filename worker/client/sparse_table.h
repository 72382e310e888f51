// SparseTable: a worker's way to one sparse table - rows of `dim` floats by uint64 key.
//
// Keys of one call may repeat: a pull fetches a row once, a push sums the gradients of a key before
// they travel. A list of keys that a server has seen lately travels as its digest; a server that
// has forgotten it says so, and the list is sent. Pulls of several steps may be open at once.
//
// Made and owned by a PsClient. Thread-safety: as Env, everything on the loop. Callbacks may call
// any method.
#ifndef PARLEY_WORKER_CLIENT_SPARSE_TABLE_H_
#define PARLEY_WORKER_CLIENT_SPARSE_TABLE_H_

#include <cstdint>

#include "absl/functional/any_invocable.h"
#include "absl/types/span.h"
#include "worker/client/dense_table.h"

namespace parley {

class SparseTable {
 public:
  using OnPulled = absl::AnyInvocable<void(const PullResult&)>;

  virtual ~SparseTable() = default;

  virtual uint32_t dim() const = 0;

  // Fetches the rows of `keys` for `tick` into rows[keys, dim], in the order of `keys`. `keys` is
  // copied; `rows` must stay valid until `done` or the end of the client. Where they begin on a
  // cache line, rows move faster. Without keys nobody is asked, and the result's min_clock is
  // `tick`.
  virtual void Pull(uint64_t tick, absl::Span<const uint64_t> keys, float* rows, OnPulled done) = 0;

  // This worker's whole gradient of `tick`, gradients[keys, dim]; under BSP once a tick, also
  // without keys or with weight 0, since every partition waits to hear of it. Copies what it needs.
  // `done` (may be null) runs when all partitions have acknowledged it.
  virtual void Push(uint64_t tick, double weight, absl::Span<const uint64_t> keys,
                    const float* gradients, absl::AnyInvocable<void()> done) = 0;

  // Small updates that belong to no step, each applied by itself and, unless a message is lost on
  // the way, in order of the calls for one key: ASP only. Calls are gathered and travel together;
  // `done` (may be null) runs when this one is acknowledged. REQUIRES: ASP, and a table without
  // eviction, which goes by steps: servers refuse them otherwise.
  virtual void Update(absl::Span<const uint64_t> keys, const float* gradients,
                      absl::AnyInvocable<void()> done) = 0;
  // Calls of Update not yet acknowledged (one that goes to several shards counts at each); stop at
  // some hundreds of thousands.
  virtual uint64_t updates_open() const = 0;
};

}  // namespace parley

#endif  // PARLEY_WORKER_CLIENT_SPARSE_TABLE_H_
