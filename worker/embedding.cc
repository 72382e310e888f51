#include "worker/embedding.h"

#include <algorithm>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_format.h"
#include "ps/base/sparse_layout.h"

namespace parley {
namespace {

// Of a batch without factors nothing is multiplied.
float FactorOf(const KeyBatch& batch, const uint32_t* index) {
  if (batch.factors.empty()) return 1;
  return batch.factors[static_cast<size_t>(index - batch.index.data())];
}

// to += factor * from
void Add(const float* from, float factor, uint32_t n, float* to) {
  if (factor == 1) {
    for (uint32_t i = 0; i < n; ++i) to[i] += from[i];
  } else {
    for (uint32_t i = 0; i < n; ++i) to[i] += factor * from[i];
  }
}

}  // namespace

absl::StatusOr<Embedding> Embedding::Create(const pb::Embedding& config, uint32_t fields) {
  if (config.dim() < 1 || config.dim() > SparseLayout::kMaxDim) {
    return absl::InvalidArgumentError(absl::StrFormat("embedding.dim is %d, allowed is 1..%d",
                                                      config.dim(), SparseLayout::kMaxDim));
  }
  if (fields < 1) {
    return absl::InvalidArgumentError(
        "an embedding needs data of keys, allowed is one of data.click_log, "
        "data.synthetic_clicks");
  }
  return Embedding(config, fields);
}

SampleShape Embedding::output() const { return {sum_ ? dim_ : fields_ * dim_, 1, 1}; }

void Embedding::Index(absl::Span<const uint64_t> keys, KeyBatch* batch) const {
  batch->rows = keys.size() / fields_;
  batch->keys.clear();
  batch->index.clear();
  batch->factors.clear();
  absl::flat_hash_map<uint64_t, uint32_t> seen;
  seen.reserve(keys.size());
  for (uint64_t key : keys) {
    if (key == kNoKey) {
      batch->index.push_back(KeyBatch::kNone);
      continue;
    }
    const auto [at, fresh] = seen.emplace(key, static_cast<uint32_t>(batch->keys.size()));
    if (fresh) batch->keys.push_back(key);
    batch->index.push_back(at->second);
  }
}

void Embedding::Gather(const KeyBatch& batch, const float* values, float* x) const {
  const uint32_t* index = batch.index.data();
  for (uint64_t row = 0; row < batch.rows; ++row) {
    if (sum_) std::fill_n(x, dim_, 0.0f);
    for (uint32_t field = 0; field < fields_; ++field, ++index) {
      const bool none = *index == KeyBatch::kNone;
      const float* value = none ? nullptr : values + uint64_t{*index} * dim_;
      const float factor = FactorOf(batch, index);
      if (sum_) {
        if (!none) Add(value, factor, dim_, x);
        continue;
      }
      if (none) {
        std::fill_n(x, dim_, 0.0f);
      } else if (factor == 1) {
        std::copy_n(value, dim_, x);
      } else {
        for (uint32_t i = 0; i < dim_; ++i) x[i] = factor * value[i];
      }
      x += dim_;
    }
    if (sum_) x += dim_;
  }
}

void Embedding::Scatter(const KeyBatch& batch, const float* dx, float* gradients) const {
  std::fill_n(gradients, batch.keys.size() * dim_, 0.0f);
  const uint32_t* index = batch.index.data();
  for (uint64_t row = 0; row < batch.rows; ++row) {
    for (uint32_t field = 0; field < fields_; ++field, ++index) {
      if (*index != KeyBatch::kNone) {
        Add(dx, FactorOf(batch, index), dim_, gradients + uint64_t{*index} * dim_);
      }
      if (!sum_) dx += dim_;
    }
    if (sum_) dx += dim_;
  }
}

void ReadFactors(const Dataset& set, absl::Span<const uint64_t> ids, KeyBatch* batch) {
  batch->factors.clear();
  if (!set.has_values()) return;
  batch->factors.resize(batch->index.size());
  set.ReadValues(ids, batch->factors.data());
}

const pb::Embedding* FindEmbedding(const pb::Model& model) {
  if (model.layer_size() == 0 || !model.layer(0).has_embedding()) return nullptr;
  return &model.layer(0).embedding();
}

pb::Model WithoutEmbedding(const pb::Model& model) {
  pb::Model chain = model;
  if (FindEmbedding(model) != nullptr) chain.mutable_layer()->DeleteSubrange(0, 1);
  return chain;
}

pb::TableSpec EmbeddingTable(const pb::Experiment& experiment) {
  const pb::Embedding& config = *FindEmbedding(experiment.model());
  pb::TableSpec table;
  table.set_id(kEmbeddingTable);
  table.set_name("embedding");
  table.set_seed(experiment.seed());
  const bool own = config.optimizer().rule_case() != pb::Optimizer::RULE_NOT_SET;
  *table.mutable_optimizer() = own ? config.optimizer() : experiment.optimizer();
  if (config.has_compression()) *table.mutable_compression() = config.compression();
  pb::SparseSpec* sparse = table.mutable_sparse();
  sparse->set_dim(config.dim());
  sparse->set_partitions(config.partitions());
  sparse->set_init(pb::TensorSpec::UNIFORM);
  sparse->set_bound(config.bound());
  sparse->set_row_type(config.row_type());
  if (config.has_eviction()) *sparse->mutable_eviction() = config.eviction();
  return table;
}

}  // namespace parley
