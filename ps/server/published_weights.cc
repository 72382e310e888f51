#include "ps/server/published_weights.h"

#include <utility>

namespace parley {

PublishedWeights::PublishedWeights(const PayloadCodec* codec, Buffer initial, BufferPool* pool)
    : codec_(codec), pool_(pool), weights_(std::move(initial)) {}

void PublishedWeights::OnUpdate(const Buffer& weights, uint64_t version) {
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

}  // namespace parley
