#include "ps/server/overwritten_values.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "ps/base/payload_copy.h"

namespace parley {
namespace {

constexpr char kKeys[] = "server.overwritten.keys";
constexpr char kValues[] = "server.overwritten.values";

}  // namespace

void OverwrittenValues::BeforeStep(uint64_t tick, absl::Span<const GradientView> gradients,
                                   TablePartition* values) {
  // The new ones first: without memory for them nothing has changed.
  Buffer keys, old;
  if (!sparse_ && !gradients.empty()) old = values->Read(KeyList());
  if (sparse_) {
    uint64_t n = 0;
    for (const GradientView& gradient : gradients) n += gradient.keys.size();
    if (n > 0) {
      keys = pool_->Allocate(n * sizeof(uint64_t));
      uint64_t* to = reinterpret_cast<uint64_t*>(keys.mutable_data());
      for (const GradientView& gradient : gradients) {
        for (size_t i = 0; i < gradient.keys.size(); ++i) *to++ = gradient.keys[i];
      }
      NoteCopied(keys.size());
      old = values->Read(KeyList(keys));
    }
  }
  tick_ = tick;
  version_ = values->version();
  keys_ = std::move(keys);
  values_ = std::move(old);
  place_.clear();
}

Buffer OverwrittenValues::Read(KeyList keys, TablePartition* now) const {
  if (values_.empty()) return now->Read(keys);
  if (!sparse_) return values_;
  const KeyList kept(keys_);
  if (place_.empty()) {
    for (uint64_t i = 0; i < kept.size(); ++i) place_.emplace(kept[i], i);
  }
  const size_t row_bytes = values_.size() / kept.size();
  Buffer answer = now->Read(keys);  // rows side by side, in memory of their own
  for (size_t i = 0; i < keys.size(); ++i) {
    const auto found = place_.find(keys[i]);
    if (found == place_.end()) continue;
    CopyPayload(answer.mutable_data() + i * row_bytes, values_.data() + found->second * row_bytes,
                row_bytes);
  }
  return answer;
}

void OverwrittenValues::Save(const TablePartition& values, pb::HostedState* state,
                             TableState* arrays) const {
  if (!tick_.has_value()) return;
  state->set_overwritten_tick(*tick_);
  state->set_overwritten_version(version_);
  if (!keys_.empty()) arrays->Add(kKeys, "U64", {KeyList(keys_).size()}, keys_);
  if (!values_.empty()) arrays->Add(kValues, "F32", {values_.num_floats()}, values.ToHost(values_));
}

absl::Status OverwrittenValues::Load(const pb::HostedState& state, const TableState& arrays,
                                     const TablePartition& values) {
  tick_.reset();
  keys_ = values_ = Buffer();
  place_.clear();
  if (!state.has_overwritten_tick()) return absl::OkStatus();
  const Buffer* keys = arrays.Find(kKeys);
  const Buffer* old = arrays.Find(kValues);
  const uint64_t n = keys != nullptr ? KeyList(*keys).size() : 0;
  if (old != nullptr || n > 0) {
    const uint64_t wanted = values.values(n) * sizeof(float);
    if (old == nullptr || old->size() != wanted || (sparse_ && n == 0)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("overwritten values of step %d: %d bytes for %d keys, allowed is %d",
                          state.overwritten_tick(), old == nullptr ? 0 : old->size(), n, wanted));
    }
    if (keys != nullptr) {
      if (absl::Status status = values.CheckKeys(KeyList(*keys)); !status.ok()) return status;
      keys_ = *keys;
    }
    values_ = *old;
  }
  tick_ = state.overwritten_tick();
  version_ = state.overwritten_version();
  return absl::OkStatus();
}

}  // namespace parley
