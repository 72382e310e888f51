#include "tools/local/local_tables.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

namespace parley {
namespace {

// What the other side makes of values[n]. `residual` as of PayloadCodec::Encode.
absl::Status Through(const PayloadCodec& codec, const float* values, uint64_t n, float* residual,
                     float* out) {
  std::vector<std::byte> bytes(codec.MaxEncodedBytes(n));
  const uint64_t size = codec.Encode(values, n, residual, bytes.data());
  return codec.Decode(std::string_view(reinterpret_cast<const char*>(bytes.data()), size), n, out);
}

absl::StatusOr<std::vector<std::unique_ptr<TablePartition>>> MakePartitions(
    const pb::TableSpec& table, uint32_t count, BufferPool* pool) {
  std::vector<std::unique_ptr<TablePartition>> partitions;
  for (uint32_t p = 0; p < count; ++p) {
    absl::StatusOr<std::unique_ptr<TablePartition>> made = TablePartition::Create(table, p, pool);
    if (!made.ok()) return made.status();
    partitions.push_back(*std::move(made));
  }
  return partitions;
}

absl::Status MakeCodecs(const pb::Compression& config, std::unique_ptr<PayloadCodec>* push,
                        std::unique_ptr<PayloadCodec>* pull) {
  for (const auto& [name, codec] :
       {std::pair(config.push(), push), std::pair(config.pull(), pull)}) {
    absl::StatusOr<std::unique_ptr<PayloadCodec>> made = PayloadCodec::Create(name, config);
    if (!made.ok()) return made.status();
    *codec = *std::move(made);
  }
  return absl::OkStatus();
}

StepInfo InfoOf(uint64_t tick, uint64_t samples) {
  StepInfo info;
  info.step = tick;
  info.inverse_weight = 1.0 / static_cast<double>(samples);
  return info;
}

}  // namespace

absl::StatusOr<std::unique_ptr<LocalDense>> LocalDense::Create(const pb::TableSpec& table,
                                                               uint32_t workers, BufferPool* pool) {
  std::unique_ptr<LocalDense> dense(new LocalDense);
  absl::StatusOr<DenseLayout> layout = DenseLayout::Create(table);
  if (!layout.ok()) return layout.status();
  dense->layout_ = *std::move(layout);
  if (table.optimizer().clip_norm() > 0) {
    absl::StatusOr<std::unique_ptr<Optimizer>> optimizer = Optimizer::Create(table.optimizer());
    if (!optimizer.ok()) return optimizer.status();
    dense->clip_ = *std::move(optimizer);
  }
  absl::Status status = MakeCodecs(table.compression(), &dense->push_codec_, &dense->pull_codec_);
  if (!status.ok()) return status;
  auto partitions = MakePartitions(table, dense->layout_.partitions(), pool);
  if (!partitions.ok()) return partitions.status();
  dense->partitions_ = *std::move(partitions);
  const uint64_t elements = dense->elements();
  const bool residual = dense->push_codec_ != nullptr && dense->push_codec_->keeps_residual();
  dense->residual_.assign(workers, std::vector<float>(residual ? elements : 0));
  dense->pulled_ = Buffer::Allocate(elements * sizeof(float));
  // A codec that keeps state begins with the weights as they are.
  dense->CopyWeights(dense->pulled_.mutable_floats());
  const bool stateful = dense->pull_codec_ != nullptr && dense->pull_codec_->keeps_residual();
  if (!stateful) status = dense->Publish();
  if (!status.ok()) return status;
  return dense;
}

void LocalDense::CopyWeights(float* out) const {
  for (uint32_t p = 0; p < partitions_.size(); ++p) {
    const Buffer part = partitions_[p]->Read(KeyList());
    std::copy_n(part.floats(), part.num_floats(), out + layout_.partition(p).begin);
  }
}

absl::Status LocalDense::Push(uint32_t rank, const float* gradient) {
  std::vector<float>& seen = gradients_.emplace_back(gradient, gradient + elements());
  if (push_codec_ == nullptr) return absl::OkStatus();
  for (uint32_t p = 0; p < partitions_.size(); ++p) {
    const Range range = layout_.partition(p);
    float* residual = residual_[rank].empty() ? nullptr : residual_[rank].data() + range.begin;
    absl::Status status = Through(*push_codec_, gradient + range.begin, range.size(), residual,
                                  seen.data() + range.begin);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status LocalDense::Update(uint64_t tick, uint64_t samples) {
  // No samples: no gradient, not a gradient of zero.
  if (samples > 0) Apply(InfoOf(tick, samples));
  gradients_.clear();
  for (const std::unique_ptr<TablePartition>& partition : partitions_) partition->EndStep(tick);
  return samples > 0 ? Publish() : absl::OkStatus();
}

void LocalDense::Apply(StepInfo info) {
  std::vector<std::vector<GradientView>> views(partitions_.size());
  for (uint32_t p = 0; p < partitions_.size(); ++p) {
    for (const std::vector<float>& gradient : gradients_) {
      views[p].push_back({KeyList(), gradient.data() + layout_.partition(p).begin});
    }
  }
  if (clip_ != nullptr) {
    double total = 0;
    for (uint32_t p = 0; p < partitions_.size(); ++p) {
      total += partitions_[p]->SumOfSquares(views[p], info.inverse_weight);
    }
    info.norm_scale = clip_->NormScale(total);
  }
  for (uint32_t p = 0; p < partitions_.size(); ++p) partitions_[p]->Apply(views[p], info);
}

// Brings what workers read up to the weights: whole, or by the change that a codec with state lets
// through.
absl::Status LocalDense::Publish() {
  for (uint32_t p = 0; p < partitions_.size(); ++p) {
    const Buffer weights = partitions_[p]->Read(KeyList());
    const uint64_t n = weights.num_floats();
    float* pulled = pulled_.mutable_floats() + layout_.partition(p).begin;
    absl::Status status;
    if (pull_codec_ == nullptr) {
      std::copy_n(weights.floats(), n, pulled);
    } else if (!pull_codec_->keeps_residual()) {
      status = Through(*pull_codec_, weights.floats(), n, nullptr, pulled);
    } else {
      std::vector<float> change(n), lost(n, 0.0f);
      for (uint64_t i = 0; i < n; ++i) change[i] = weights.floats()[i] - pulled[i];
      status = Through(*pull_codec_, change.data(), n, lost.data(), change.data());
      for (uint64_t i = 0; i < n; ++i) pulled[i] += change[i];
    }
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<LocalSparse>> LocalSparse::Create(const pb::TableSpec& table,
                                                                 uint32_t workers,
                                                                 BufferPool* pool) {
  std::unique_ptr<LocalSparse> sparse(new LocalSparse);
  sparse->table_ = table.id();
  absl::StatusOr<SparseLayout> layout = SparseLayout::Create(table);
  if (!layout.ok()) return layout.status();
  sparse->layout_ = *layout;
  absl::Status status = MakeCodecs(table.compression(), &sparse->push_codec_, &sparse->pull_codec_);
  if (!status.ok()) return status;
  auto partitions = MakePartitions(table, sparse->layout_.partitions(), pool);
  if (!partitions.ok()) return partitions.status();
  sparse->partitions_ = *std::move(partitions);
  sparse->residual_.resize(workers);
  sparse->open_.resize(sparse->partitions_.size());
  return sparse;
}

// Codecs of such pulls keep no state and look at one value at a time, so that it does not matter
// in what company a row travels.
absl::Status LocalSparse::Pull(absl::Span<const uint64_t> keys, float* rows) const {
  for (const uint64_t key : keys) {
    const KeyList one(reinterpret_cast<const std::byte*>(&key), 1);
    const Buffer row = partitions_[layout_.PartitionOf(key)]->Read(one);
    std::copy_n(row.floats(), dim(), rows);
    if (pull_codec_ != nullptr) {
      absl::Status status = Through(*pull_codec_, row.floats(), dim(), nullptr, rows);
      if (!status.ok()) return status;
    }
    rows += dim();
  }
  return absl::OkStatus();
}

absl::Status LocalSparse::Push(uint32_t rank, absl::Span<const uint64_t> keys,
                               const float* gradients) {
  std::vector<Contribution> parts(partitions_.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    Contribution& part = parts[layout_.PartitionOf(keys[i])];
    const float* row = gradients + i * dim();
    part.keys.push_back(keys[i]);
    part.values.insert(part.values.end(), row, row + dim());
  }
  for (uint32_t p = 0; p < parts.size(); ++p) {
    if (parts[p].keys.empty()) continue;
    absl::Status status = Encode(residual_[rank], parts[p]);
    if (!status.ok()) return status;
    open_[p].push_back(std::move(parts[p]));
  }
  return absl::OkStatus();
}

// The rows of a partition travel together; what a row lost is added when it is pushed again.
absl::Status LocalSparse::Encode(Residual& residual, Contribution& part) const {
  if (push_codec_ == nullptr) return absl::OkStatus();
  std::vector<float> lost;
  for (const uint64_t key : part.keys) {
    std::vector<float>& row = residual[key];
    row.resize(dim());
    lost.insert(lost.end(), row.begin(), row.end());
  }
  absl::Status status = Through(*push_codec_, part.values.data(), part.values.size(), lost.data(),
                                part.values.data());
  for (size_t i = 0; i < part.keys.size(); ++i) {
    std::copy_n(lost.data() + i * dim(), dim(), residual[part.keys[i]].data());
  }
  return status;
}

void LocalSparse::Update(uint64_t tick, uint64_t samples) {
  for (uint32_t p = 0; p < partitions_.size(); ++p) {
    std::vector<GradientView> views;
    for (const Contribution& part : open_[p]) {
      views.push_back(
          {KeyList(reinterpret_cast<const std::byte*>(part.keys.data()), part.keys.size()),
           part.values.data()});
    }
    if (samples > 0) partitions_[p]->Apply(views, InfoOf(tick, samples));
    partitions_[p]->EndStep(tick);
    open_[p].clear();
  }
}

pb::ServerCounts::Rows LocalSparse::Count() const {
  pb::ServerCounts::Rows rows;
  rows.set_table(table_);
  for (const std::unique_ptr<TablePartition>& partition : partitions_) partition->AddCounts(&rows);
  return rows;
}

}  // namespace parley
