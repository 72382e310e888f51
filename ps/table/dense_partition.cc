#include "ps/table/dense_partition.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "ps/base/philox.h"
#include "ps/table/state_arrays.h"
#include "ps/table/state_digest.h"

namespace parley {
namespace {

// out[i] = uniform in [-bound, bound) for the table's element begin + i. 2u - 1 is exact in float32
// (u has 24 bits), so the one rounding is that of the product, and it cannot reach `bound`.
void FillUniform(uint64_t seed, uint64_t stream, float bound, Range elements, float* out) {
  std::array<uint32_t, 4> block = {};
  for (uint64_t e = elements.begin; e < elements.end; ++e) {
    if (e == elements.begin || e % 4 == 0) block = Philox(seed, stream, e / 4);
    *out++ = (2 * ToUnitFloat(block[e % 4]) - 1) * bound;
  }
}

}  // namespace

void InitialValues(const pb::TableSpec& table, const DenseLayout& layout, Range range, float* out) {
  const uint64_t stream = Stream(RandomPurpose::kInit, table.id());
  for (size_t t = 0; t < layout.tensors(); ++t) {
    const Range tensor = layout.tensor(t);
    const Range part = {std::max(tensor.begin, range.begin), std::min(tensor.end, range.end)};
    if (part.begin >= part.end) continue;
    float* to = out + (part.begin - range.begin);
    const pb::TensorSpec& spec = table.tensor(static_cast<int>(t));
    if (spec.init() == pb::TensorSpec::UNIFORM) {
      FillUniform(table.seed(), stream, spec.bound(), part, to);
    } else {
      std::fill(to, to + part.size(), 0.0f);
    }
  }
}

DensePartition::DensePartition(const pb::TableSpec& table, const DenseLayout& layout,
                               uint32_t index, const Optimizer* optimizer, BufferPool* pool)
    : range_(layout.partition(index)), optimizer_(optimizer), pool_(pool) {
  assert(index < layout.partitions());
  weights_ = pool_->Allocate(size() * sizeof(float));
  InitialValues(table, layout, range_, weights_.mutable_floats());
  for (int s = 0; s < optimizer_->slots(); ++s) {
    slots_.push_back(pool_->Allocate(size() * sizeof(float)));
    float* values = slots_.back().mutable_floats();
    std::fill(values, values + size(), optimizer_->initial_slot_value(s));
  }
}

void DensePartition::Apply(absl::Span<const float* const> gradients, StepInfo info) {
  info.update = ++version_;
  std::array<float*, Optimizer::kMaxSlots> slots = {};
  for (size_t s = 0; s < slots_.size(); ++s) {
    // A slot that a saved state refers to is copied first: the pass reads and writes it in place.
    if (!slots_[s].unique()) {
      Buffer copy = pool_->Allocate(slots_[s].size());
      std::memcpy(copy.mutable_data(), slots_[s].data(), slots_[s].size());
      slots_[s] = std::move(copy);
    }
    slots[s] = slots_[s].mutable_floats();
  }

  // Somebody still sends or reads the old weights: leave them alone and write the new ones beside.
  // The pass reads and writes every weight anyway, so that costs memory but no copy.
  Buffer next = weights_.unique() ? Buffer() : pool_->Allocate(weights_.size());
  float* out = next.empty() ? weights_.mutable_floats() : next.mutable_floats();
  optimizer_->Apply(size(), weights_.floats(), out, slots.data(), gradients, info);
  if (!next.empty()) weights_ = std::move(next);
}

TableState DensePartition::Save() const {
  TableState state;
  state.header.set_version(version_);
  state.Add("weights", "F32", {size()}, weights_);
  for (size_t s = 0; s < slots_.size(); ++s) {
    state.Add(absl::StrCat("slot", s), "F32", {size()}, slots_[s]);
  }
  return state;
}

absl::Status DensePartition::Load(const TableState& state, absl::string_view owner) {
  StateArrays arrays(state, owner);
  if (absl::Status status = arrays.Check(/*changes_allowed=*/false); !status.ok()) return status;
  std::vector<Buffer> loaded;
  for (size_t a = 0; a <= slots_.size(); ++a) {
    const std::string name = a == 0 ? "weights" : absl::StrCat("slot", a - 1);
    const absl::StatusOr<const std::byte*> bytes = arrays.Take(name, "F32", {size()});
    if (!bytes.ok()) return bytes.status();
    loaded.push_back(pool_->Allocate(size() * sizeof(float)));
    std::memcpy(loaded.back().mutable_data(), *bytes, loaded.back().size());
  }
  if (absl::Status status = arrays.CheckAllTaken(); !status.ok()) return status;
  version_ = state.header.version();
  weights_ = std::move(loaded[0]);
  for (size_t s = 0; s < slots_.size(); ++s) slots_[s] = std::move(loaded[s + 1]);
  return absl::OkStatus();
}

uint64_t DensePartition::Digest() const {
  uint64_t digest = DigestBytes(weights_.data(), weights_.size(), version_);
  for (const Buffer& slot : slots_) digest = DigestBytes(slot.data(), slot.size(), digest);
  return digest;
}

}  // namespace parley
