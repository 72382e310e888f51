// Workload: what a worker computes on and with. Loading and building take seconds, so this is made
// off the loop; afterwards one thing at a time uses it: a step or an evaluation. Each logical
// worker has a model and a device of its own, whose activations nobody else touches; they share the
// data.
#ifndef PARLEY_WORKER_WORKLOAD_H_
#define PARLEY_WORKER_WORKLOAD_H_

#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "models/device.h"
#include "models/model.h"
#include "proto/cluster.pb.h"
#include "proto/experiment.pb.h"
#include "worker/data/dataset.h"
#include "worker/embedding.h"

namespace parley {

// The dense table of a worker's model. That of an embedding is kEmbeddingTable.
inline constexpr uint32_t kModelTable = 1;

struct Workload {
  struct Data {  // shared by all who compute in this process
    std::shared_ptr<const Dataset> train, test;
  };

  Data data;
  std::unique_ptr<Device> device;
  std::optional<Embedding> embedding;  // in front of the model, for data of keys
  std::unique_ptr<Model> model;        // after the device: it must go first
};

// Loads the data and builds the model on a CPU device. Errors begin with "data: " or "model: ".
absl::StatusOr<std::unique_ptr<Workload>> LoadWorkload(const pb::Experiment& experiment);

// The same for data that LoadWorkload has loaded for the same experiment.
absl::StatusOr<std::unique_ptr<Workload>> BuildWorkload(const pb::Experiment& experiment,
                                                        const Workload::Data& data);

// The dense table of the model, as every worker registers it. For an embedding see EmbeddingTable.
pb::TableSpec ModelTable(const pb::Experiment& experiment, const Model& model);

}  // namespace parley

#endif  // PARLEY_WORKER_WORKLOAD_H_
