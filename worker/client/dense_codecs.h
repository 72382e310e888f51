// How the values of a dense table travel: what a worker keeps to encode its pushes and to decode
// its pulls.
//
// Both belong to one DenseClient, on the loop.
#ifndef PARLEY_WORKER_CLIENT_DENSE_CODECS_H_
#define PARLEY_WORKER_CLIENT_DENSE_CODECS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/cluster.pb.h"
#include "proto/wire.pb.h"
#include "ps/base/buffer.h"
#include "ps/base/dense_layout.h"
#include "ps/base/device_memory.h"
#include "ps/codec/payload_codec.h"

namespace parley {

// Gradients on their way out. With error feedback it keeps a residual of every element: what the
// servers have not been told yet, float32 [elements] in one arena, zero at the start. That arena is
// part of the worker's state, as a step not yet pushed is: a worker that loses it loses gradients.
class DensePushEncoder {
 public:
  // `layout` and `pool` must outlive this. kInvalidArgument: a codec that there is not.
  static absl::StatusOr<DensePushEncoder> Create(const pb::TableSpec& table,
                                                 const DenseLayout* layout, BufferPool* pool);

  // About what the values of a partition take.
  uint64_t BytesOf(uint32_t partition) const;

  // The values of `partitions` from `gradients`, laid out as the table: fills in their parts
  // [partitions] and gives the buffers to send. Without a codec they are slices of `gradients`, one
  // for each run of adjacent partitions; else one buffer that nobody else refers to. Once for each
  // push of a partition, in order: the residual moves on.
  std::vector<Buffer> Encode(const std::vector<uint32_t>& partitions, const Buffer& gradients,
                             pb::FrameHeader* header);

  const Buffer& residual() const { return residual_; }  // empty if the codec keeps none

 private:
  DensePushEncoder() = default;
  const DenseLayout* layout_ = nullptr;
  BufferPool* pool_ = nullptr;
  std::unique_ptr<PayloadCodec> codec_;  // null: values travel as they are
  Buffer residual_;
};

// Weights on their way in. Where the pull codec keeps state, servers send the change since the
// version that the reader holds, so this holds a copy of all weights, float32 [elements]; what the
// caller does to its own parameters does not reach them.
class DensePullDecoder {
 public:
  // `mover` takes plain values to the parameters, and must outlive this; null: they lie in host
  // memory. kInvalidArgument: a codec that there is not, or one with a mover, since the CPU
  // decodes.
  static absl::StatusOr<DensePullDecoder> Create(const pb::TableSpec& table,
                                                 const DenseLayout* layout, BufferPool* pool,
                                                 PayloadMover* mover = nullptr);

  // Says in the part of a request which version is held. `raw`: the true weights are wanted, as by
  // the last pull of a run.
  void Ask(bool raw, pb::Part* part) const;

  // Checks one part of the answer and its values (any alignment) and puts the weights into
  // parameters [elements]. kInvalidArgument names what does not fit; then parameters of this
  // partition hold anything. Takes each answer once. They are there after Finish, at the latest.
  absl::Status Take(bool raw, const pb::Part& part, const Buffer& values, float* parameters);
  absl::Status Finish() { return mover_->Finish(); }

 private:
  DensePullDecoder() = default;
  absl::Status TakeDelta(const pb::Part& part, std::string_view values);

  const DenseLayout* layout_ = nullptr;
  std::unique_ptr<PayloadCodec> codec_;
  std::unique_ptr<HostMover> host_mover_ = std::make_unique<HostMover>();
  PayloadMover* mover_ = host_mover_.get();
  Buffer held_;                                   // empty without a codec that keeps state
  std::vector<std::optional<uint64_t>> version_;  // of held_, by partition
  std::vector<float> delta_;                      // scratch
};

}  // namespace parley

#endif  // PARLEY_WORKER_CLIENT_DENSE_CODECS_H_
