#include "ps/server/published_weights.h"

#include <utility>

#include "absl/strings/str_format.h"
#include "ps/base/payload_copy.h"
#include "ps/table/state_digest.h"

namespace parley {

namespace {

constexpr char kWeights[] = "server.published";
constexpr char kChange[] = "server.published.change";
constexpr char kBefore[] = "server.published.before";

absl::Status CheckSize(const char* name, const Buffer* saved, uint64_t bytes) {
  if (saved != nullptr && saved->size() == bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("array '%s' has %d bytes, allowed is %d", name,
                                                    saved == nullptr ? 0 : saved->size(), bytes));
}

// One that may be read as floats wherever it lies: what came over the network has any alignment,
// and an update may write into it.
Buffer Aligned(const Buffer& saved, BufferPool* pool) {
  Buffer copy = pool->Allocate(saved.size());
  CopyPayload(copy.mutable_data(), saved.data(), saved.size());
  return copy;
}

}  // namespace

PublishedWeights::PublishedWeights(const PayloadCodec* codec, Buffer initial, BufferPool* pool,
                                   bool keeps_before)
    : codec_(codec), pool_(pool), keeps_before_(keeps_before), weights_(std::move(initial)) {}

void PublishedWeights::OnUpdate(const Buffer& weights, uint64_t version) {
  if (keeps_before_) {
    before_ = weights_;
    before_version_ = version_;
  }
  const uint64_t n = weights.num_floats();
  Buffer scratch = pool_->Allocate(n * sizeof(float));
  float* values = scratch.mutable_floats();
  const float* old = weights_.floats();
  // The codec encodes values + residual: with the published weights as a negative residual that is
  // the difference, without a pass that makes it.
  for (uint64_t i = 0; i < n; ++i) values[i] = -old[i];
  Buffer encoded = pool_->Allocate(codec_->MaxEncodedBytes(n));
  const uint64_t bytes = codec_->Encode(weights.floats(), n, values, encoded.mutable_data());
  change_ = encoded.Slice(0, bytes);
  change_base_ = version_;
  version_ = version;
  if (!codec_->Decode(change_.view(), n, values).ok()) {
    // A codec that does not understand itself: readers get the true weights whole, which is right
    // whatever they hold.
    change_ = Buffer();
    weights_ = weights;
    return;
  }
  // Answers may still refer to the published weights: then the new ones go beside them.
  Buffer next = weights_.unique() ? Buffer() : pool_->Allocate(n * sizeof(float));
  float* out = next.empty() ? weights_.mutable_floats() : next.mutable_floats();
  for (uint64_t i = 0; i < n; ++i) out[i] = old[i] + values[i];
  if (!next.empty()) weights_ = std::move(next);
}

Buffer PublishedWeights::Read(const pb::Part& asked, pb::Part* answer) const {
  answer->set_version(version_);
  if (asked.has_base_version() && asked.base_version() == version_) {
    answer->set_base_version(version_);
    answer->set_count(0);
    return Buffer();
  }
  answer->set_count(weights_.num_floats());
  if (asked.has_base_version() && asked.base_version() == change_base_ && !change_.empty()) {
    answer->set_base_version(change_base_);
    answer->set_value_bytes(change_.size());
    return change_;
  }
  return weights_;
}

uint64_t PublishedWeights::Digest() const {
  return DigestBytes(weights_.data(), weights_.size(), version_);
}

Buffer PublishedWeights::ReadBefore(const pb::Part& asked, pb::Part* answer) const {
  if (before_.empty()) return Read(asked, answer);
  answer->set_version(before_version_);
  if (asked.has_base_version() && asked.base_version() == before_version_) {
    answer->set_base_version(before_version_);
    answer->set_count(0);
    return Buffer();
  }
  answer->set_count(before_.num_floats());
  return before_;
}

void PublishedWeights::SaveWeights(TableState* arrays) const {
  arrays->Add(kWeights, "F32", {weights_.num_floats()}, weights_);
}

absl::Status PublishedWeights::LoadWeights(const TableState& arrays, uint64_t version) {
  const Buffer* weights = arrays.Find(kWeights);
  if (absl::Status status = CheckSize(kWeights, weights, weights_.size()); !status.ok()) {
    return status;
  }
  weights_ = Aligned(*weights, pool_);
  version_ = version;
  change_ = Buffer();
  before_ = Buffer();
  return absl::OkStatus();
}

void PublishedWeights::Save(pb::HostedState* state, TableState* arrays) const {
  SaveWeights(arrays);
  state->set_published_version(version_);
  if (!change_.empty()) {
    state->set_published_change_base(change_base_);
    arrays->Add(kChange, "U8", {change_.size()}, change_);
  }
  if (!before_.empty()) {
    state->set_published_before(before_version_);
    arrays->Add(kBefore, "F32", {before_.num_floats()}, before_);
  }
}

absl::Status PublishedWeights::Load(const pb::HostedState& state, const TableState& arrays) {
  if (absl::Status status = LoadWeights(arrays, state.published_version()); !status.ok()) {
    return status;
  }
  if (state.has_published_change_base()) {
    const Buffer* change = arrays.Find(kChange);
    const uint64_t most = codec_->MaxEncodedBytes(weights_.num_floats());
    if (change == nullptr || change->empty() || change->size() > most) {
      return absl::InvalidArgumentError(
          absl::StrFormat("array '%s' has %d bytes, allowed is 1 to %d", kChange,
                          change == nullptr ? 0 : change->size(), most));
    }
    change_ = *change;
    change_base_ = state.published_change_base();
  }
  if (state.has_published_before()) {
    const Buffer* before = arrays.Find(kBefore);
    if (absl::Status status = CheckSize(kBefore, before, weights_.size()); !status.ok()) {
      return status;
    }
    before_ = *before;
    before_version_ = state.published_before();
  }
  return absl::OkStatus();
}

}  // namespace parley
