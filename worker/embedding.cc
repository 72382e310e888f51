#include "worker/embedding.h"

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_format.h"
#include "ps/base/sparse_layout.h"

namespace parley {

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
  // Places by key: count, add up, deal out.
  batch->starts.assign(batch->keys.size() + 1, 0);
  for (uint32_t key : batch->index) {
    if (key != KeyBatch::kNone) ++batch->starts[key + 1];
  }
  for (size_t k = 1; k < batch->starts.size(); ++k) batch->starts[k] += batch->starts[k - 1];
  batch->places.resize(batch->starts.back());
  std::vector<uint32_t> next(batch->starts.begin(), batch->starts.end() - 1);
  for (uint32_t place = 0; place < batch->index.size(); ++place) {
    const uint32_t key = batch->index[place];
    if (key != KeyBatch::kNone) batch->places[next[key]++] = place;
  }
}

Lookup Embedding::LookupOf(const KeyBatch& batch) const {
  Lookup lookup;
  lookup.samples = batch.rows;
  lookup.keys = batch.keys.size();
  lookup.fields = fields_;
  lookup.dim = dim_;
  lookup.sum = sum_;
  lookup.index = batch.index.data();
  lookup.factors = batch.factors.empty() ? nullptr : batch.factors.data();
  lookup.starts = batch.starts.data();
  lookup.places = batch.places.data();
  return lookup;
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
