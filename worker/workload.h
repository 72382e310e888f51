// Workload: what a worker computes on and with. Loading and building take seconds, so this is made
// off the loop; afterwards one thing at a time uses it: a step or an evaluation. Each logical
// worker has a model and a device of its own, whose activations nobody else touches; they share the
// data.
#ifndef PARLEY_WORKER_WORKLOAD_H_
#define PARLEY_WORKER_WORKLOAD_H_

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "models/device.h"
#include "models/model.h"
#include "proto/cluster.pb.h"
#include "proto/experiment.pb.h"
#include "ps/base/buffer.h"
#include "worker/data/dataset.h"
#include "worker/embedding.h"
#include "worker/gpu_seat.h"

namespace parley {

// The dense table of a worker's model. That of an embedding is kEmbeddingTable.
inline constexpr uint32_t kModelTable = 1;

struct Workload {
  struct Data {  // shared by all who compute in this process
    std::shared_ptr<const Dataset> train, test;
  };

  Data data;
  std::unique_ptr<Device> device;
  std::string device_note;  // beside its description, for the log; may be empty
  // Device memory for weights and gradients of the dense table, where servers keep it there
  // (compute.placement); null: they are made in host memory. Outlives this.
  BufferPool* device_pool = nullptr;
  std::optional<Embedding> embedding;  // in front of the model, for data of keys
  std::unique_ptr<Model> model;        // after the device: it must go first
};

// Whose memory a buffer is.
inline MemoryKind KindOf(const Buffer& buffer) {
  return buffer.on_device() ? MemoryKind::kDevice : MemoryKind::kHost;
}

// Loads the data and builds the model on the device that the experiment asks for. `seat` finds the
// GPU; null: one of its own. Errors begin with "data: ", "model: " or "device: ".
absl::StatusOr<std::unique_ptr<Workload>> LoadWorkload(const pb::Experiment& experiment,
                                                       GpuSeat* seat = nullptr);

// The same for data that LoadWorkload has loaded for the same experiment.
absl::StatusOr<std::unique_ptr<Workload>> BuildWorkload(const pb::Experiment& experiment,
                                                        const Workload::Data& data,
                                                        GpuSeat* seat = nullptr);

// The dense table of the model, as every worker registers it. For an embedding see EmbeddingTable.
pb::TableSpec ModelTable(const pb::Experiment& experiment, const Model& model);

}  // namespace parley

#endif  // PARLEY_WORKER_WORKLOAD_H_
