// Embedding: turns the keys of a batch into the model's input, and the gradient of that input into
// gradients of the keys' rows.
//
//   Index -> (rows are pulled) -> the device looks up -> model -> the device adds up -> (pushed)
//
// CONCAT puts the rows of a sample's keys side by side, [fields * dim]; SUM adds them up, [dim].
// Where the data have values, a key's row is multiplied by its value on the way in and its gradient
// on the way back. kNoKey contributes zeros and gets no gradient. Deterministic: a row's gradient
// is added up by sample, then by field; sums of SUM by field. Immutable; thread-safe.
#ifndef PARLEY_WORKER_EMBEDDING_H_
#define PARLEY_WORKER_EMBEDDING_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "models/device.h"
#include "models/shape.h"
#include "proto/cluster.pb.h"
#include "proto/experiment.pb.h"
#include "worker/data/dataset.h"

namespace parley {

// The table of a worker's embedding, beside the model's dense one.
inline constexpr uint32_t kEmbeddingTable = 2;

// The keys of one batch, each once.
struct KeyBatch {
  static constexpr uint32_t kNone = Lookup::kNone;

  uint64_t rows = 0;
  std::vector<uint64_t> keys;   // in the order in which they first occur
  std::vector<uint32_t> index;  // [rows, fields]: into keys; kNone for kNoKey
  std::vector<float> factors;   // [rows, fields]: what rows are multiplied by; empty: all 1
  std::vector<uint32_t> starts, places;  // where each key occurs, as in Lookup
};

class Embedding {
 public:
  // For data with `fields` keys a sample. kInvalidArgument names the field, its value and what is
  // allowed.
  static absl::StatusOr<Embedding> Create(const pb::Embedding& config, uint32_t fields);

  uint32_t dim() const { return dim_; }
  uint32_t fields() const { return fields_; }
  SampleShape output() const;  // of one sample: [fields * dim] or [dim]

  // keys [rows, fields] -> batch, without factors. REQUIRES: keys.size() is a multiple of fields()
  // below 2^32.
  void Index(absl::Span<const uint64_t> keys, KeyBatch* batch) const;

  // What the model is given of `batch`, which must outlive it.
  Lookup LookupOf(const KeyBatch& batch) const;

 private:
  Embedding(const pb::Embedding& config, uint32_t fields)
      : dim_(config.dim()), fields_(fields), sum_(config.pooling() == pb::Embedding::SUM) {}

  uint32_t dim_, fields_;
  bool sum_;
};

// The values that come with the keys of samples `ids` of `set`, if any, as the factors of their
// batch. REQUIRES: `batch` is of these samples' keys.
void ReadFactors(const Dataset& set, absl::Span<const uint64_t> ids, KeyBatch* batch);

// The embedding that the model begins with; null if there is none.
const pb::Embedding* FindEmbedding(const pb::Model& model);

// The model without its embedding: the chain of layers behind it.
pb::Model WithoutEmbedding(const pb::Model& model);

// The sparse table of the experiment's embedding, as every worker registers it.
// REQUIRES: FindEmbedding(experiment.model()) is not null.
pb::TableSpec EmbeddingTable(const pb::Experiment& experiment);

}  // namespace parley

#endif  // PARLEY_WORKER_EMBEDDING_H_
