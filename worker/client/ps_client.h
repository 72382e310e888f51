// PsClient: a worker's way to the parameters; the only place in it that talks to servers.
//
// Exactly once: every push of a partition has a sequence, from 1, and says below which one all are
// acknowledged; Rpc resends a message as it is until it is answered. Messages of one partition
// leave in the order in which they were asked for.
//
// The first error, a server's or a deadline's, goes to on_error; after it nothing is called back.
// Thread-safety: as Env, everything on the loop. Callbacks may call any method.
#ifndef PARLEY_WORKER_CLIENT_PS_CLIENT_H_
#define PARLEY_WORKER_CLIENT_PS_CLIENT_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/cluster.pb.h"
#include "ps/base/device_memory.h"
#include "ps/base/env.h"
#include "ps/net/rpc.h"
#include "worker/client/dense_table.h"
#include "worker/client/sparse_table.h"

namespace parley {

class PsClient {
 public:
  struct Options {
    uint32_t rank = 0, incarnation = 1;  // of the logical worker for which it speaks
    uint64_t max_request_bytes = uint64_t{1} << 20;
    uint64_t max_part_bytes = uint64_t{80} << 20;         // what the transport takes in one part
    absl::Duration progress_timeout = absl::Seconds(60);  // for any one message to be answered
    BufferPool* pool = nullptr;  // for what is gathered or encoded; null: one of its own. Memory
                                 // that a transport can share makes it travel without a copy.
    // Puts the weights of dense tables of placement GPU where they are asked for: parameters and
    // what is pushed of those tables may then lie in that GPU's memory. Outlives the client. Null:
    // host memory, and an answer in a GPU's memory is an error.
    PayloadMover* mover = nullptr;
    absl::AnyInvocable<void(const absl::Status&)> on_error = nullptr;
    absl::AnyInvocable<void(const std::string&)> log = nullptr;  // one line; empty = silent
  };
  struct Counters {
    uint64_t pushes_acked = 0;   // parts
    uint64_t bytes_pushed = 0;   // payload as it travelled, acknowledged
    uint64_t bytes_pulled = 0;   // payload as it travelled, answered
    uint64_t updates_acked = 0;  // calls of SparseTable::Update
    uint64_t key_lists_sent = 0, key_digests_sent = 0, key_misses = 0;  // parts
  };

  // For all tables of the assignment. `env` and `rpc` must outlive this; `rpc` has its identity and
  // the transport knows the shards. kInvalidArgument: the map does not cover a table, or a codec is
  // unknown.
  static absl::StatusOr<std::unique_ptr<PsClient>> Create(Env* env, Rpc* rpc,
                                                          const pb::Assignment& assignment,
                                                          Options options);
  virtual ~PsClient() = default;

  // A later map of the same generation: what is queued, on its way or held for want of a newer map
  // goes to the new owners, with the sequences it has. Maps not newer than the last are ignored.
  // kInvalidArgument: the map does not cover a table; then nothing has changed. The transport knows
  // the shards.
  virtual absl::Status OnMap(const pb::PartitionMap& map) = 0;

  // Null if there is no such table, or it is of the other kind. Owned by this.
  virtual DenseTable* dense(uint32_t table) = 0;
  virtual SparseTable* sparse(uint32_t table) = 0;

  // Calls back once no push is waiting or unacknowledged. One at a time.
  virtual void WhenAllAcknowledged(absl::AnyInvocable<void()> done) = 0;

  // Tells every shard that no tick >= after_tick will be pushed. REQUIRES: all is acknowledged.
  virtual void Leave(uint64_t after_tick, absl::AnyInvocable<void()> done) = 0;

  // The request that has waited longest, "pull of step 7 from server 1 shard 0 (tcp://...)"; empty
  // if there is none.
  virtual std::string WaitingFor() const = 0;

  virtual const Counters& counters() const = 0;
};

}  // namespace parley

#endif  // PARLEY_WORKER_CLIENT_PS_CLIENT_H_
