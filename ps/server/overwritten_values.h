// OverwrittenValues: what the last step of a partition overwrote, so that a worker which has to
// compute that step again reads what it read before (decision 014, "A worker is replaced").
//
// Dense: a reference to the weights before the update, which therefore writes beside them. Sparse:
// a copy of the rows that the step touches; all others are as they were. Not for tables that evict.
//
// Owned by one loop; not thread-safe (the Buffers are). Throws std::bad_alloc out of BeforeStep and
// Read.
#ifndef PARLEY_PS_SERVER_OVERWRITTEN_VALUES_H_
#define PARLEY_PS_SERVER_OVERWRITTEN_VALUES_H_

#include <cstdint>
#include <optional>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "proto/cluster.pb.h"
#include "ps/base/buffer.h"
#include "ps/base/table_state.h"
#include "ps/table/table_partition.h"

namespace parley {

class OverwrittenValues {
 public:
  // `pool` must outlive this.
  OverwrittenValues(bool sparse, BufferPool* pool) : sparse_(sparse), pool_(pool) {}

  // Step `tick` is about to be applied to `values`: keeps what these gradients (none: nothing)
  // overwrite, and forgets what the step before did.
  void BeforeStep(uint64_t tick, absl::Span<const GradientView> gradients, TablePartition* values);

  // Whether a reader of `tick` has to read here.
  bool Has(uint64_t tick) const { return tick_.has_value() && tick <= *tick_; }
  // As TablePartition::Read, before the step. REQUIRES: Has(); `now` is what BeforeStep was given.
  Buffer Read(KeyList keys, TablePartition* now) const;
  // TablePartition::version() before the step.
  uint64_t version() const { return version_; }

  // As arrays named "server.overwritten...", in host memory, and in `state`. `values`: as above.
  void Save(const TablePartition& values, pb::HostedState* state, TableState* arrays) const;
  // kInvalidArgument: what was saved is not of such a partition.
  absl::Status Load(const pb::HostedState& state, const TableState& arrays,
                    const TablePartition& values);

 private:
  const bool sparse_;
  BufferPool* const pool_;
  std::optional<uint64_t> tick_;  // none: no step yet
  uint64_t version_ = 0;
  Buffer keys_;    // sparse: uint64 [n], may repeat
  Buffer values_;  // dense: all; sparse: float32 [n, dim]; empty: nothing was overwritten
  // Sparse: where a key is in keys_. Made when it is first asked for: few are ever replaced.
  mutable absl::flat_hash_map<uint64_t, uint64_t> place_;
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_OVERWRITTEN_VALUES_H_
