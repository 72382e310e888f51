#include "worker/client/sparse_codecs.h"

#include <algorithm>
#include <utility>

#include "ps/base/payload_copy.h"

namespace parley {

absl::StatusOr<SparsePushEncoder> SparsePushEncoder::Create(const pb::Compression& config,
                                                            uint32_t dim) {
  SparsePushEncoder encoder;
  encoder.dim_ = dim;
  auto codec = PayloadCodec::Create(config.push(), config);
  if (!codec.ok()) return codec.status();
  encoder.codec_ = *std::move(codec);
  return encoder;
}

uint64_t SparsePushEncoder::Encode(const uint64_t* keys, uint64_t count, const float* values,
                                   std::byte* out) {
  const uint64_t n = count * dim_;
  if (!codec_->keeps_residual()) return codec_->Encode(values, n, nullptr, out);
  scratch_.resize(n);
  for (uint64_t i = 0; i < count; ++i) {
    const uint32_t rows = static_cast<uint32_t>(index_.size());
    const auto [found, is_new] = index_.try_emplace(keys[i], rows);
    if (is_new) residual_.resize(residual_.size() + dim_, 0.0f);
    std::copy_n(residual_.begin() + static_cast<ptrdiff_t>(uint64_t{found->second} * dim_), dim_,
                scratch_.begin() + static_cast<ptrdiff_t>(i * dim_));
  }
  const uint64_t bytes = codec_->Encode(values, n, scratch_.data(), out);
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t row = index_.find(keys[i])->second;
    std::copy_n(scratch_.begin() + static_cast<ptrdiff_t>(i * dim_), dim_,
                residual_.begin() + static_cast<ptrdiff_t>(row * dim_));
  }
  NoteCopied(2 * n * sizeof(float), /*calls=*/2);  // the residuals, there and back
  return bytes;
}

}  // namespace parley
