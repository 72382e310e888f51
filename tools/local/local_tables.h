// The tables of a local run: what servers hold and workers pull and push, without either.
//
// Values go through the same codecs as on the wire, partition by partition, with the residuals of
// each worker and the weights that readers hold; nothing is encoded for transport's sake alone.
//
// Not thread-safe.
#ifndef PARLEY_TOOLS_LOCAL_LOCAL_TABLES_H_
#define PARLEY_TOOLS_LOCAL_LOCAL_TABLES_H_

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/cluster.pb.h"
#include "ps/base/buffer.h"
#include "ps/base/dense_layout.h"
#include "ps/base/sparse_layout.h"
#include "ps/codec/payload_codec.h"
#include "ps/table/optimizer.h"
#include "ps/table/table_partition.h"

namespace parley {

class LocalDense {
 public:
  // Errors as of the layout, the optimizer and the codecs.
  static absl::StatusOr<std::unique_ptr<LocalDense>> Create(const pb::TableSpec& table,
                                                            uint32_t workers, BufferPool* pool);

  uint64_t elements() const { return layout_.elements(); }

  // What every worker reads now, float32 [elements], 64-byte aligned; valid until Update.
  const float* Pull() const { return pulled_.floats(); }
  // The true weights.
  void CopyWeights(float* out /* [elements] */) const;

  // Worker `rank`'s gradient of the step, float32 [elements]. By ascending rank.
  absl::Status Push(uint32_t rank, const float* gradient);
  // Closes the step `tick`, whose pushes were sums over `samples` samples.
  absl::Status Update(uint64_t tick, uint64_t samples);

 private:
  LocalDense() = default;
  void Apply(StepInfo info);
  absl::Status Publish();

  DenseLayout layout_;
  std::unique_ptr<Optimizer> clip_;
  std::unique_ptr<PayloadCodec> push_codec_, pull_codec_;  // null: float32
  std::vector<std::unique_ptr<TablePartition>> partitions_;
  Buffer pulled_;
  std::vector<std::vector<float>> residual_;   // by worker: [elements], or empty
  std::vector<std::vector<float>> gradients_;  // of the open step: [elements], as servers see them
};

class LocalSparse {
 public:
  static absl::StatusOr<std::unique_ptr<LocalSparse>> Create(const pb::TableSpec& table,
                                                             uint32_t workers, BufferPool* pool);

  uint32_t dim() const { return layout_.dim(); }

  // rows [keys, dim], as a worker gets them.
  absl::Status Pull(absl::Span<const uint64_t> keys, float* rows) const;
  // Worker `rank`'s gradient of the step, [keys, dim]; each key once. By ascending rank.
  absl::Status Push(uint32_t rank, absl::Span<const uint64_t> keys, const float* gradients);
  void Update(uint64_t tick, uint64_t samples);

  pb::ServerCounts::Rows Count() const;

 private:
  struct Contribution {  // of one worker to one partition
    std::vector<uint64_t> keys;
    std::vector<float> values;  // [keys, dim], as the server sees them
  };
  using Residual = std::unordered_map<uint64_t, std::vector<float>>;  // by key: [dim]
  LocalSparse() = default;
  absl::Status Encode(Residual& residual, Contribution& part) const;

  uint32_t table_ = 0;
  SparseLayout layout_;
  std::unique_ptr<PayloadCodec> push_codec_, pull_codec_;
  std::vector<std::unique_ptr<TablePartition>> partitions_;
  std::vector<Residual> residual_;               // by worker: what codecs have kept back
  std::vector<std::vector<Contribution>> open_;  // by partition, of the open step
};

}  // namespace parley

#endif  // PARLEY_TOOLS_LOCAL_LOCAL_TABLES_H_
