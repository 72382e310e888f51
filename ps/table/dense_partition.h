// DensePartition: the weights and optimizer slots of one partition of a dense table.
//
// Weights live in a reference-counted Buffer: a pull answer refers to them without a copy, and an
// update that finds them still referred to (being sent) writes the new weights beside them instead,
// in the same single pass. So a reader always sees the weights of exactly one version. Slots that a
// saved state refers to are copied before the next update. Owned by one loop; not thread-safe (the
// Buffers are).
#ifndef PARLEY_PS_TABLE_DENSE_PARTITION_H_
#define PARLEY_PS_TABLE_DENSE_PARTITION_H_

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "proto/cluster.pb.h"
#include "ps/base/buffer.h"
#include "ps/base/dense_layout.h"
#include "ps/base/table_state.h"
#include "ps/table/optimizer.h"

namespace parley {

class DensePartition {
 public:
  // Weights start as the tensors' initialisers say, depending on (table seed, element index) alone.
  // `optimizer` and `pool` must outlive this. REQUIRES: index < layout.partitions().
  DensePartition(const pb::TableSpec& table, const DenseLayout& layout, uint32_t index,
                 const Optimizer* optimizer, BufferPool* pool);

  uint64_t size() const { return range_.size(); }
  Range range() const { return range_; }
  uint64_t version() const { return version_; }  // updates applied

  // float32 [size]; stays as it is for as long as the Buffer lives.
  Buffer Read() const { return weights_; }

  // One update from summed gradients, each float32 [size]. info.update is filled in here.
  void Apply(absl::Span<const float* const> gradients, StepInfo info);

  // As TablePartition's: arrays "weights" and "slot0", "slot1" ... as the optimizer has them, each
  // F32 [size]. All are references to what is live; Apply writes beside what is referred to.
  TableState Save() const;
  // `owner`: what an error calls this partition. After an error everything is as it was.
  absl::Status Load(const TableState& state, absl::string_view owner);
  uint64_t Digest() const;

 private:
  const Range range_;
  const Optimizer* const optimizer_;
  BufferPool* const pool_;
  uint64_t version_ = 0;
  Buffer weights_;
  std::vector<Buffer> slots_;
};

// Fills out[0, range.size()) with the initial values of the table's elements in `range`.
void InitialValues(const pb::TableSpec& table, const DenseLayout& layout, Range range, float* out);

}  // namespace parley

#endif  // PARLEY_PS_TABLE_DENSE_PARTITION_H_
