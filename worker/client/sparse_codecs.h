// How the values of a sparse table travel: what a worker keeps to encode its pushes.
//
// Owned by one SparseClient, on the loop.
#ifndef PARLEY_WORKER_CLIENT_SPARSE_CODECS_H_
#define PARLEY_WORKER_CLIENT_SPARSE_CODECS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "proto/experiment.pb.h"
#include "ps/codec/payload_codec.h"

namespace parley {

// With error feedback, each row that was pushed has a residual: what the servers have not been told
// yet of its gradients, and will be when the row is pushed again. It is part of the worker's state.
// Bounded by the rows that this worker pushes to, dim floats and about 20 bytes each.
class SparsePushEncoder {
 public:
  // kInvalidArgument: a codec that there is not.
  static absl::StatusOr<SparsePushEncoder> Create(const pb::Compression& config, uint32_t dim);

  bool plain() const { return codec_ == nullptr; }

  // At most so many bytes come out for the values of so many keys.
  uint64_t MaxBytes(uint64_t keys) const {
    return plain() ? keys * dim_ * sizeof(float) : codec_->MaxEncodedBytes(keys * dim_);
  }

  // Encodes values[keys, dim] of one partition into out; returns the bytes used.
  // REQUIRES: !plain(), keys > 0, and the keys differ.
  uint64_t Encode(const uint64_t* keys, uint64_t count, const float* values, std::byte* out);

 private:
  SparsePushEncoder() = default;

  uint32_t dim_ = 0;
  std::unique_ptr<PayloadCodec> codec_;
  absl::flat_hash_map<uint64_t, uint32_t> index_;  // key -> its row in residual_
  std::vector<float> residual_;                    // [rows, dim]
  std::vector<float> scratch_;                     // [keys, dim]
};

}  // namespace parley

#endif  // PARLEY_WORKER_CLIENT_SPARSE_CODECS_H_
