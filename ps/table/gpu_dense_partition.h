// GpuDensePartition: a partition of a dense table whose weights and optimizer slots lie in a GPU's
// memory, and whose updates are computed there. Its values are, bit for bit, those of a
// DensePartition.
//
// Read gives a Buffer over device memory, which a transport may lend; while anybody refers to it an
// update writes the new weights beside it. Gradients in device memory are read where they lie,
// those in host memory copied in first. Every call waits for the GPU before it returns, so that
// gradients may be given back and answers sent. States are copies in host memory and those of a
// DensePartition: a checkpoint does not show where it was made.
//
// Owned by one loop; not thread-safe (the Buffers are). Throws DeviceFailure where the GPU fails,
// std::bad_alloc where its memory is full.
#ifndef PARLEY_PS_TABLE_GPU_DENSE_PARTITION_H_
#define PARLEY_PS_TABLE_GPU_DENSE_PARTITION_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "proto/cluster.pb.h"
#include "ps/base/buffer.h"
#include "ps/base/dense_layout.h"
#include "ps/table/gpu_place.h"
#include "ps/table/optimizer.h"
#include "ps/table/table_partition.h"

namespace parley {

class GpuDensePartition final : public TablePartition {
 public:
  // `pool`, of host memory, and `place` must outlive this. REQUIRES: index < layout.partitions().
  GpuDensePartition(const pb::TableSpec& table, const DenseLayout& layout, uint32_t index,
                    std::unique_ptr<Optimizer> optimizer, BufferPool* pool, GpuPlace* place);

  bool on_device() const override { return true; }
  uint64_t values(uint64_t) const override { return range_.size(); }
  absl::Status CheckKeys(KeyList keys) const override;
  void Apply(absl::Span<const GradientView> gradients, StepInfo info) override;
  double SumOfSquares(absl::Span<const GradientView> gradients, double inverse_weight) override;
  Buffer Read(KeyList) override { return weights_; }
  void EndStep(uint64_t) override {}
  uint64_t version() const override { return version_; }
  uint64_t memory_bytes() const override { return bytes() * (1 + slots_.size()); }
  SummedGradient Sum(absl::Span<const GradientView> gradients) override;
  TableState Save() override;
  TableState SaveChanges() override { return Save(); }
  void MarkSaved() override {}
  absl::Status Load(const TableState& state) override;
  uint64_t Digest() const override;
  Buffer ToHost(const Buffer& values) const override;
  void AddCounts(pb::ServerCounts::Rows*) const override {}

 private:
  // Gradients as a kernel wants them, and the copies that they lie in until it is done.
  struct Placed {
    std::vector<const float*> pointers;
    std::vector<Buffer> copies;
    Buffer scratch;
    float* scratch_floats() { return scratch.mutable_floats(); }
  };

  uint64_t bytes() const { return range_.size() * sizeof(float); }
  Buffer AllocateDevice() const { return place_->pool->Allocate(bytes()); }
  Placed Place(absl::Span<const GradientView> gradients) const;
  void Sync() const { ThrowUnlessOk(place_->stream->Sync()); }

  const std::string table_;
  const uint32_t index_;
  const Range range_;
  BufferPool* const pool_;
  GpuPlace* const place_;
  const std::unique_ptr<Optimizer> optimizer_;
  uint64_t version_ = 0;
  Buffer weights_;
  std::vector<Buffer> slots_;  // nobody else refers to them
};

}  // namespace parley

#endif  // PARLEY_PS_TABLE_GPU_DENSE_PARTITION_H_
