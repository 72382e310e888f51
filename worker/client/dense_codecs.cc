#include "worker/client/dense_codecs.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "ps/base/payload_copy.h"
#include "ps/wire/payload.h"

namespace parley {

absl::StatusOr<DensePushEncoder> DensePushEncoder::Create(const pb::TableSpec& table,
                                                          const DenseLayout* layout,
                                                          BufferPool* pool) {
  DensePushEncoder encoder;
  encoder.layout_ = layout;
  encoder.pool_ = pool;
  auto codec = PayloadCodec::Create(table.compression().push(), table.compression());
  if (!codec.ok()) return codec.status();
  encoder.codec_ = *std::move(codec);
  if (encoder.codec_ != nullptr && encoder.codec_->keeps_residual()) {
    encoder.residual_ = pool->Allocate(layout->elements() * sizeof(float));
    std::fill_n(encoder.residual_.mutable_floats(), layout->elements(), 0.0f);
  }
  return encoder;
}

uint64_t DensePushEncoder::BytesOf(uint32_t partition) const {
  const uint64_t n = layout_->partition(partition).size();
  return codec_ == nullptr ? n * sizeof(float) : codec_->MaxEncodedBytes(n);
}

std::vector<Buffer> DensePushEncoder::Encode(const std::vector<uint32_t>& partitions,
                                             const Buffer& gradients, pb::FrameHeader* header) {
  std::vector<Buffer> payload;
  if (codec_ == nullptr) {
    for (size_t i = 0; i < partitions.size();) {
      size_t end = i + 1;
      while (end < partitions.size() && partitions[end] == partitions[end - 1] + 1) ++end;
      const uint64_t begin = layout_->partition(partitions[i]).begin;
      const uint64_t size = layout_->partition(partitions[end - 1]).end - begin;
      payload.push_back(gradients.Slice(begin * sizeof(float), size * sizeof(float)));
      for (; i < end; ++i) {
        header->mutable_part(static_cast<int>(i))
            ->set_count(layout_->partition(partitions[i]).size());
      }
    }
    return payload;
  }
  uint64_t most = 0;
  for (uint32_t partition : partitions) most += BytesOf(partition);
  Buffer out = pool_->Allocate(most);
  uint64_t used = 0;
  for (size_t i = 0; i < partitions.size(); ++i) {
    const Range range = layout_->partition(partitions[i]);
    float* residual = residual_.empty() ? nullptr : residual_.mutable_floats() + range.begin;
    const uint64_t bytes = codec_->Encode(gradients.floats() + range.begin, range.size(), residual,
                                          out.mutable_data() + used);
    pb::Part* part = header->mutable_part(static_cast<int>(i));
    part->set_count(range.size());
    part->set_value_bytes(bytes);
    used += bytes;
  }
  payload.push_back(out.Slice(0, used));
  return payload;
}

absl::StatusOr<DensePullDecoder> DensePullDecoder::Create(const pb::TableSpec& table,
                                                          const DenseLayout* layout,
                                                          BufferPool* pool, PayloadMover* mover) {
  DensePullDecoder decoder;
  decoder.layout_ = layout;
  auto codec = PayloadCodec::Create(table.compression().pull(), table.compression());
  if (!codec.ok()) return codec.status();
  decoder.codec_ = *std::move(codec);
  if (mover != nullptr) decoder.mover_ = mover;
  if (mover != nullptr && decoder.codec_ != nullptr) {
    return absl::InvalidArgumentError(
        absl::StrFormat("table '%s': pulls by codec '%s' into a GPU's memory, allowed are none",
                        table.name(), decoder.codec_->name()));
  }
  if (decoder.codec_ != nullptr && decoder.codec_->keeps_residual()) {
    decoder.held_ = pool->Allocate(layout->elements() * sizeof(float));
    decoder.version_.resize(layout->partitions());
  }
  return decoder;
}

void DensePullDecoder::Ask(bool raw, pb::Part* part) const {
  if (raw || held_.empty()) return;
  const std::optional<uint64_t>& version = version_[part->partition()];
  if (version.has_value()) part->set_base_version(*version);
}

absl::Status DensePullDecoder::Take(bool raw, const pb::Part& part, const Buffer& values,
                                    float* parameters) {
  const uint32_t partition = part.partition();
  const Range range = layout_->partition(partition);
  float* to = parameters + range.begin;
  const bool stateful = !held_.empty() && !raw;
  if (codec_ != nullptr && values.on_device()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "partition %d in the answer: its values, of a codec, lie in a GPU's memory", partition));
  }
  if (stateful && part.has_base_version()) {
    absl::Status status = TakeDelta(part, values.view());
    if (!status.ok()) return status;
    CopyPayload(to, held_.floats() + range.begin, range.size() * sizeof(float));
    return absl::OkStatus();
  }
  const bool encoded = codec_ != nullptr && !raw && !stateful;
  if (part.count() != range.size() ||
      (!encoded && (part.has_value_bytes() || values.size() != range.size() * sizeof(float)))) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "partition %d in the answer has count %d and %d bytes, expected is %d and %s", partition,
        part.count(), values.size(), range.size(),
        encoded ? "what they encode to" : absl::StrCat(range.size() * sizeof(float))));
  }
  if (encoded) {
    absl::Status status = codec_->Decode(values.view(), range.size(), to);
    if (status.ok()) return status;
    return absl::InvalidArgumentError(
        absl::StrFormat("partition %d in the answer: %s", partition, status.message()));
  }
  absl::Status status = mover_->Copy(to, values);
  if (!status.ok()) {
    return absl::Status(status.code(), absl::StrFormat("partition %d in the answer: %s", partition,
                                                       status.message()));
  }
  if (!stateful) return absl::OkStatus();
  CopyPayload(held_.mutable_floats() + range.begin, values.data(), values.size());
  version_[partition] = part.version();
  return absl::OkStatus();
}

// held += decoded, the same additions as the server's own.
absl::Status DensePullDecoder::TakeDelta(const pb::Part& part, std::string_view values) {
  const uint32_t partition = part.partition();
  std::optional<uint64_t>& version = version_[partition];
  const Range range = layout_->partition(partition);
  if (version != part.base_version()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "partition %d in the answer adds to version %d, expected is the version held, %s",
        partition, part.base_version(),
        version.has_value() ? absl::StrCat(*version) : std::string("none")));
  }
  if (part.count() == 0 && part.version() == *version && values.empty()) return absl::OkStatus();
  if (part.count() != range.size()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "partition %d in the answer has count %d and leads from version %d to %d, expected is %d, "
        "or 0 without a change",
        partition, part.count(), *version, part.version(), range.size()));
  }
  delta_.resize(range.size());
  absl::Status status = codec_->Decode(values, range.size(), delta_.data());
  if (!status.ok()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("partition %d in the answer: %s", partition, status.message()));
  }
  float* held = held_.mutable_floats() + range.begin;
  for (size_t i = 0; i < delta_.size(); ++i) held[i] += delta_[i];
  version = part.version();
  return absl::OkStatus();
}

}  // namespace parley
