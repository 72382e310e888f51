// TablePartition: the values of one partition of a table, dense or sparse, behind one interface:
// what the server does with complete gradients and allowed reads.
//
// Owned by one loop; not thread-safe (the Buffers that Read returns are). What is no error of its
// caller's is an exception: std::bad_alloc (or DeviceFailure, which is one), out of Apply, EndStep
// and Load, leaves a partition that nobody may use any more, out of what only reads one that is as
// it was.
#ifndef PARLEY_PS_TABLE_TABLE_PARTITION_H_
#define PARLEY_PS_TABLE_TABLE_PARTITION_H_

#include <cstdint>
#include <cstring>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/cluster.pb.h"
#include "ps/base/buffer.h"
#include "ps/base/table_state.h"
#include "ps/table/optimizer.h"

namespace parley {

struct GpuPlace;  // gpu_place.h

// A list of keys as it came: uint64, little-endian, at any alignment. Borrowed.
class KeyList {
 public:
  KeyList() = default;
  KeyList(const std::byte* bytes, size_t size) : bytes_(bytes), size_(size) {}
  explicit KeyList(const Buffer& keys) : KeyList(keys.data(), keys.size() / sizeof(uint64_t)) {}

  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  uint64_t operator[](size_t i) const {
    uint64_t key;
    std::memcpy(&key, bytes_ + i * sizeof(key), sizeof(key));
    return key;
  }

 private:
  const std::byte* bytes_ = nullptr;
  size_t size_ = 0;
};

// What one worker contributes to an update. Borrowed.
struct GradientView {
  KeyList keys;                   // sparse: the rows, in any order; dense: empty
  const float* values = nullptr;  // dense: [size]; sparse: [keys, dim]; may be unaligned
  bool on_device = false;         // Buffer::on_device; allowed if the partition's is
};

// One gradient in the place of several: to apply it alone gives, bit for bit, what applying all of
// them gives.
struct SummedGradient {
  Buffer keys;    // sparse: uint64, each once if they were; dense: empty
  Buffer values;  // float32: dense [size]; sparse [keys, dim]
};

class TablePartition {
 public:
  virtual ~TablePartition() = default;

  // Partition `index` of `table` with its initial values. `pool` must outlive this and every Buffer
  // read from it need not. kInvalidArgument: a spec or an optimizer that cannot be, named.
  // kResourceExhausted: no memory for it.
  // A dense table whose compute.placement is GPU is kept in `place` then, which outlives it;
  // kFailedPrecondition: it is null. Sparse tables know no placement.
  static absl::StatusOr<std::unique_ptr<TablePartition>> Create(const pb::TableSpec& table,
                                                                uint32_t index, BufferPool* pool,
                                                                GpuPlace* place = nullptr);

  // Whether what Read gives is device memory, and gradients may be.
  virtual bool on_device() const { return false; }

  // Values that a gradient must bring (and a read returns) for that many keys: keys * dim, and for
  // a dense partition its size, whatever `keys` is.
  virtual uint64_t values(uint64_t keys) const = 0;

  // kInvalidArgument: keys for a dense partition, or a key whose hash is of another partition.
  virtual absl::Status CheckKeys(KeyList keys) const = 0;

  // One update from the gradients of a step, ascending by worker; their sums are taken in that
  // order, row by row. info.update is filled in here. The keys of one gradient may repeat only if
  // it is alone; each occurrence is then an update of its own, in order.
  virtual void Apply(absl::Span<const GradientView> gradients, StepInfo info) = 0;

  // As Optimizer::SumOfSquares, for clipping by norm. Sparse partitions are not clipped by norm: 0.
  virtual double SumOfSquares(absl::Span<const GradientView> gradients, double inverse_weight) = 0;

  // float32 [values(keys)], in the order of the keys; stays as it is for as long as the Buffer
  // lives. Reading a row that does not exist gives its initial values and does not create it.
  virtual Buffer Read(KeyList keys) = 0;

  // A step is closed on this partition (BSP), or a worker's tick (else): eviction happens here.
  virtual void EndStep(uint64_t tick) = 0;

  virtual uint64_t version() const = 0;  // updates applied
  virtual uint64_t memory_bytes() const = 0;

  // The sum of what would be Apply's argument, in host memory of its own. REQUIRES: as Apply.
  virtual SummedGradient Sum(absl::Span<const GradientView> gradients) = 0;

  // Everything that decides what later updates and reads give: weights and slots; rows with their
  // keys, slots and counts for eviction. Equal partitions give equal bytes. Of a dense one it takes
  // references, and the next Apply writes elsewhere; of a sparse one, copies.
  virtual TableState Save() = 0;
  // The same, of the rows touched since the last MarkSaved, and the keys of those that are gone
  // since ("removed"). Everything, with header.changes_only() unset, if that is not known (there
  // was no MarkSaved since the partition was made or loaded) or not less; dense: always.
  virtual TableState SaveChanges() = 0;
  virtual void MarkSaved() = 0;
  // Becomes what was saved; changes are applied to what is there. Anything may be in `state`:
  // kInvalidArgument names what is missing or does not fit; then the partition is as it was.
  virtual absl::Status Load(const TableState& state) = 0;
  // The same for equal states, whatever the order in which rows came; else another. Reads all.
  virtual uint64_t Digest() const = 0;

  // The same bytes in host memory: values that Read gave or Apply could be given, or a copy of
  // them.
  virtual Buffer ToHost(const Buffer& values) const { return values; }

  // Adds what this partition holds to `rows` (sparse; dense: nothing).
  virtual void AddCounts(pb::ServerCounts::Rows* rows) const = 0;
};

}  // namespace parley

#endif  // PARLEY_PS_TABLE_TABLE_PARTITION_H_
