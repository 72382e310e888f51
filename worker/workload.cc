#include "worker/workload.h"

#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace parley {
namespace {

absl::Status In(const std::string& part, const absl::Status& status) {
  const std::string prefix = part + ": ";
  if (absl::StartsWith(status.message(), prefix)) return status;
  return absl::Status(status.code(), absl::StrCat(prefix, status.message()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Workload>> LoadWorkload(const pb::Experiment& experiment,
                                                       GpuSeat* seat) {
  absl::StatusOr<DataSplits> data = LoadDataSplits(experiment.data(), experiment.seed());
  if (!data.ok()) return In("data", data.status());
  return BuildWorkload(experiment, {std::move(data->train), std::move(data->test)}, seat);
}

absl::StatusOr<std::unique_ptr<Workload>> BuildWorkload(const pb::Experiment& experiment,
                                                        const Workload::Data& data, GpuSeat* seat) {
  auto workload = std::make_unique<Workload>();
  workload->data = data;

  GpuSeat own;
  if (seat == nullptr) seat = &own;
  absl::StatusOr<std::unique_ptr<Device>> device = seat->MakeDevice(experiment);
  if (!device.ok()) return In("device", device.status());
  workload->device = *std::move(device);
  workload->device_note = seat->note();
  if (seat != &own) workload->device_pool = seat->parameter_pool(experiment.compute());

  const Dataset& train = *workload->data.train;
  SampleShape input = train.shape();
  if (const pb::Embedding* config = FindEmbedding(experiment.model())) {
    absl::StatusOr<Embedding> embedding = Embedding::Create(*config, train.keys_per_row());
    if (!embedding.ok()) return In("model", embedding.status());
    workload->embedding = *std::move(embedding);
    input = workload->embedding->output();
  } else if (train.keys_per_row() > 0) {
    return absl::InvalidArgumentError(
        "model: it does not begin with an embedding, which data of keys needs");
  }
  absl::StatusOr<std::unique_ptr<Model>> model =
      Model::Create(WithoutEmbedding(experiment.model()), input, train.classes(), experiment.seed(),
                    workload->device.get());
  if (!model.ok()) return In("model", model.status());
  workload->model = *std::move(model);
  return workload;
}

pb::TableSpec ModelTable(const pb::Experiment& experiment, const Model& model) {
  pb::TableSpec table;
  table.set_id(kModelTable);
  table.set_name("model");
  table.set_seed(experiment.seed());
  for (const pb::TensorSpec& tensor : model.tensors()) *table.add_tensor() = tensor;
  table.set_partition_elements(uint64_t{experiment.cluster().partition_kib()} * 1024 /
                               sizeof(float));
  *table.mutable_optimizer() = experiment.optimizer();
  if (experiment.compute().placement() == pb::Compute::GPU) {
    *table.mutable_compute() = experiment.compute();
  }
  if (experiment.has_compression()) *table.mutable_compression() = experiment.compression();
  return table;
}

}  // namespace parley
