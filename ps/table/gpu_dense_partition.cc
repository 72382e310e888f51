#include "ps/table/gpu_dense_partition.h"

#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/table/dense_partition.h"
#include "ps/table/gpu_optimizer.h"
#include "ps/table/state_arrays.h"
#include "ps/table/state_digest.h"

namespace parley {
namespace {

// A peer may lend from any byte on; a GPU reads whole floats.
bool ReadableAsItIs(const GradientView& gradient) {
  return gradient.on_device && reinterpret_cast<uintptr_t>(gradient.values) % alignof(float) == 0;
}

std::string SlotName(size_t slot) { return absl::StrCat("slot", slot); }

}  // namespace

GpuDensePartition::GpuDensePartition(const pb::TableSpec& table, const DenseLayout& layout,
                                     uint32_t index, std::unique_ptr<Optimizer> optimizer,
                                     BufferPool* pool, GpuPlace* place)
    : table_(table.name()),
      index_(index),
      range_(layout.partition(index)),
      pool_(pool),
      place_(place),
      optimizer_(std::move(optimizer)) {
  Buffer initial = pool_->Allocate(bytes());
  InitialValues(table, layout, range_, initial.mutable_floats());
  // All memory before anything is enqueued: nothing may be on its way if there is too little.
  weights_ = AllocateDevice();
  for (int s = 0; s < optimizer_->slots(); ++s) slots_.push_back(AllocateDevice());
  ThrowUnlessOk(place_->stream->CopyIn(weights_.mutable_data(), initial.data(), bytes()));
  for (int s = 0; s < optimizer_->slots(); ++s) {
    ThrowUnlessOk(EnqueueFill(range_.size(), optimizer_->initial_slot_value(s),
                              slots_[s].mutable_floats(), place_->stream.get()));
  }
  Sync();
}

absl::Status GpuDensePartition::CheckKeys(KeyList keys) const {
  if (keys.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "table '%s' is dense: %d keys came with a request, allowed are none", table_, keys.size()));
}

GpuDensePartition::Placed GpuDensePartition::Place(absl::Span<const GradientView> gradients) const {
  // All memory before anything is enqueued: nothing may be on its way if there is too little.
  Placed placed;
  if (gradients.size() > GradientsOfOneLaunch()) placed.scratch = AllocateDevice();
  for (const GradientView& gradient : gradients) {
    placed.copies.push_back(ReadableAsItIs(gradient) ? Buffer() : AllocateDevice());
  }
  for (size_t i = 0; i < gradients.size(); ++i) {
    const float* const values = gradients[i].values;
    Buffer& copy = placed.copies[i];
    placed.pointers.push_back(copy.empty() ? values : copy.floats());
    if (copy.empty()) continue;
    GpuStream& stream = *place_->stream;
    ThrowUnlessOk(gradients[i].on_device ? stream.CopyWithin(copy.mutable_data(), values, bytes())
                                         : stream.CopyIn(copy.mutable_data(), values, bytes()));
  }
  return placed;
}

void GpuDensePartition::Apply(absl::Span<const GradientView> gradients, StepInfo info) {
  info.update = ++version_;
  std::array<float*, Optimizer::kMaxSlots> slots = {};
  for (size_t s = 0; s < slots_.size(); ++s) slots[s] = slots_[s].mutable_floats();
  // As DensePartition: old weights that somebody still refers to are left alone.
  Buffer next = weights_.unique() ? Buffer() : AllocateDevice();
  float* const out = next.empty() ? weights_.mutable_floats() : next.mutable_floats();
  Placed placed = Place(gradients);
  ThrowUnlessOk(EnqueueApply(*optimizer_, range_.size(), weights_.floats(), out, slots.data(),
                             placed.pointers, info, placed.scratch_floats(), place_->stream.get()));
  Sync();
  if (!next.empty()) weights_ = std::move(next);
}

double GpuDensePartition::SumOfSquares(absl::Span<const GradientView> gradients,
                                       double inverse_weight) {
  Buffer on_device = place_->pool->Allocate(sizeof(double));
  Placed placed = Place(gradients);
  ThrowUnlessOk(EnqueueSumOfSquares(
      range_.size(), placed.pointers, inverse_weight, placed.scratch_floats(),
      reinterpret_cast<double*>(on_device.mutable_data()), place_->stream.get()));
  double sum = 0;
  ThrowUnlessOk(place_->stream->CopyOut(&sum, on_device.data(), sizeof(sum)));
  Sync();
  return sum;
}

SummedGradient GpuDensePartition::Sum(absl::Span<const GradientView> gradients) {
  Placed placed = Place(gradients);
  const Buffer whole = AllocateDevice();
  Buffer out = whole;
  ThrowUnlessOk(
      EnqueueSum(range_.size(), placed.pointers, out.mutable_floats(), place_->stream.get()));
  SummedGradient sum;
  sum.values = ToHost(whole);
  return sum;
}

Buffer GpuDensePartition::ToHost(const Buffer& values) const {
  if (!values.on_device()) return values;
  // Of the heap, which takes it back: the pool's arenas would keep a whole table's size for good.
  Buffer copy = Buffer::Allocate(values.size());
  ThrowUnlessOk(place_->stream->CopyOut(copy.mutable_data(), values.data(), values.size()));
  Sync();
  return copy;
}

TableState GpuDensePartition::Save() {
  TableState state;
  state.header.set_version(version_);
  state.Add("weights", "F32", {range_.size()}, ToHost(weights_));
  for (size_t s = 0; s < slots_.size(); ++s) {
    state.Add(SlotName(s), "F32", {range_.size()}, ToHost(slots_[s]));
  }
  return state;
}

absl::Status GpuDensePartition::Load(const TableState& state) {
  StateArrays arrays(state, absl::StrFormat("table '%s', partition %d", table_, index_));
  if (absl::Status status = arrays.Check(/*changes_allowed=*/false); !status.ok()) return status;
  std::vector<const std::byte*> saved;
  std::vector<Buffer> loaded;
  for (size_t a = 0; a <= slots_.size(); ++a) {
    const std::string name = a == 0 ? "weights" : SlotName(a - 1);
    const absl::StatusOr<const std::byte*> from = arrays.Take(name, "F32", {range_.size()});
    if (!from.ok()) return from.status();
    saved.push_back(*from);
    loaded.push_back(AllocateDevice());
  }
  if (absl::Status status = arrays.CheckAllTaken(); !status.ok()) return status;
  for (size_t a = 0; a < loaded.size(); ++a) {
    ThrowUnlessOk(place_->stream->CopyIn(loaded[a].mutable_data(), saved[a], bytes()));
  }
  Sync();
  version_ = state.header.version();
  weights_ = std::move(loaded[0]);
  for (size_t s = 0; s < slots_.size(); ++s) slots_[s] = std::move(loaded[s + 1]);
  return absl::OkStatus();
}

uint64_t GpuDensePartition::Digest() const {
  const Buffer weights = ToHost(weights_);
  uint64_t digest = DigestBytes(weights.data(), weights.size(), version_);
  for (const Buffer& slot : slots_) {
    const Buffer values = ToHost(slot);
    digest = DigestBytes(values.data(), values.size(), digest);
  }
  return digest;
}

}  // namespace parley
