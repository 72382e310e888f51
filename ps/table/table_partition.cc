#include "ps/table/table_partition.h"

#include <new>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "ps/table/dense_partition.h"
#include "ps/table/gpu_dense_partition.h"
#include "ps/table/gpu_place.h"
#include "ps/table/sparse_partition.h"

namespace parley {
namespace {

// A DensePartition with an optimizer of its own.
class DenseTablePartition final : public TablePartition {
 public:
  DenseTablePartition(const pb::TableSpec& table, const DenseLayout& layout, uint32_t index,
                      std::unique_ptr<Optimizer> optimizer, BufferPool* pool)
      : table_(table.name()),
        index_(index),
        pool_(pool),
        optimizer_(std::move(optimizer)),
        dense_(table, layout, index, optimizer_.get(), pool) {}

  uint64_t values(uint64_t) const override { return dense_.size(); }

  absl::Status CheckKeys(KeyList keys) const override {
    if (keys.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrFormat(
        "table '%s' is dense: %d keys came with a request, allowed are none", table_, keys.size()));
  }

  void Apply(absl::Span<const GradientView> gradients, StepInfo info) override {
    dense_.Apply(Values(gradients), info);
  }

  double SumOfSquares(absl::Span<const GradientView> gradients, double inverse_weight) override {
    return Optimizer::SumOfSquares(dense_.size(), Values(gradients), inverse_weight);
  }

  Buffer Read(KeyList) override { return dense_.Read(); }
  void EndStep(uint64_t) override {}
  uint64_t version() const override { return dense_.version(); }
  uint64_t memory_bytes() const override {
    return dense_.size() * sizeof(float) * (1 + static_cast<uint64_t>(optimizer_->slots()));
  }

  SummedGradient Sum(absl::Span<const GradientView> gradients) override {
    SummedGradient sum;
    sum.values = pool_->Allocate(dense_.size() * sizeof(float));
    Optimizer::Sum(dense_.size(), Values(gradients), sum.values.mutable_floats());
    return sum;
  }
  TableState Save() override { return dense_.Save(); }
  TableState SaveChanges() override { return dense_.Save(); }
  void MarkSaved() override {}
  absl::Status Load(const TableState& state) override {
    return dense_.Load(state, absl::StrFormat("table '%s', partition %d", table_, index_));
  }
  uint64_t Digest() const override { return dense_.Digest(); }

  void AddCounts(pb::ServerCounts::Rows*) const override {}

 private:
  const std::vector<const float*>& Values(absl::Span<const GradientView> gradients) {
    values_.clear();
    for (const GradientView& gradient : gradients) values_.push_back(gradient.values);
    return values_;
  }

  const std::string table_;
  const uint32_t index_;
  BufferPool* const pool_;
  const std::unique_ptr<Optimizer> optimizer_;
  DensePartition dense_;
  std::vector<const float*> values_;  // scratch
};

// Throws std::bad_alloc.
absl::StatusOr<std::unique_ptr<TablePartition>> Make(const pb::TableSpec& table, uint32_t index,
                                                     BufferPool* pool, GpuPlace* place) {
  if (table.has_sparse()) return SparsePartition::Create(table, index, pool);
  absl::StatusOr<DenseLayout> layout = DenseLayout::Create(table);
  if (!layout.ok()) return layout.status();
  if (index >= layout->partitions()) {
    return absl::InvalidArgumentError(absl::StrFormat("table '%s': partition %d of %d partitions",
                                                      table.name(), index, layout->partitions()));
  }
  absl::StatusOr<std::unique_ptr<Optimizer>> optimizer = Optimizer::Create(table.optimizer());
  if (!optimizer.ok()) return optimizer.status();
  if (table.compute().placement() == pb::Compute::GPU) {
    if (place == nullptr) {
      return absl::FailedPreconditionError(
          absl::StrFormat("table '%s': its placement is GPU, and this process has none to keep "
                          "tables on",
                          table.name()));
    }
    return std::make_unique<GpuDensePartition>(table, *layout, index, *std::move(optimizer), pool,
                                               place);
  }
  return std::make_unique<DenseTablePartition>(table, *layout, index, *std::move(optimizer), pool);
}

}  // namespace

absl::StatusOr<std::unique_ptr<TablePartition>> TablePartition::Create(const pb::TableSpec& table,
                                                                       uint32_t index,
                                                                       BufferPool* pool,
                                                                       GpuPlace* place) {
  try {
    return Make(table, index, pool, place);
  } catch (const std::bad_alloc& failure) {
    const absl::Status status =
        StatusOf(failure, absl::StrFormat("no memory for partition %d", index));
    return absl::Status(status.code(),
                        absl::StrFormat("table '%s': %s", table.name(), status.message()));
  }
}

}  // namespace parley
