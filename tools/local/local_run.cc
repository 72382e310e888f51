#include "tools/local/local_run.h"

#include <sodium.h>

#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "models/cpu/cpu_device.h"
#include "models/model.h"
#include "ps/base/buffer.h"
#include "ps/base/dense_layout.h"
#include "ps/table/dense_partition.h"
#include "ps/table/optimizer.h"
#include "worker/data/dataset.h"
#include "worker/data/sampler.h"

namespace parley {
namespace {

struct Sums {
  uint64_t samples = 0, correct = 0;
  double loss = 0;
  void Add(uint64_t rows, const BatchResult& result) {
    samples += rows;
    correct += result.correct;
    loss += result.loss_sum;
  }
  double mean_loss() const { return samples == 0 ? 0 : loss / static_cast<double>(samples); }
  double accuracy() const {
    return samples == 0 ? 0 : static_cast<double>(correct) / static_cast<double>(samples);
  }
};

// One of the experiment's workers: where it is in its data.
struct LogicalWorker {
  LogicalWorker(const Sampler::Options& options, uint32_t epochs, uint64_t max_steps)
      : sampler(options), per_epoch(sampler.ticks_per_epoch()), ticks(per_epoch * epochs) {
    if (max_steps > 0) ticks = std::min(ticks, max_steps);
  }
  bool EndsEpochAt(uint64_t done) const {
    return done > 0 && done <= ticks && (done % per_epoch == 0 || done == ticks);
  }
  Sampler sampler;
  uint64_t per_epoch, ticks;
};

class LocalRun {
 public:
  explicit LocalRun(const pb::Experiment& experiment) : config_(experiment) {}

  absl::Status Prepare();
  absl::Status Train(const std::function<void(const LocalEpoch&)>& on_epoch, LocalResult* result);

 private:
  absl::Status Step(uint64_t tick);
  absl::StatusOr<BatchResult> Gradients(const std::vector<uint64_t>& ids, StepContext context,
                                        float* gradients);
  void Update(uint64_t tick, const std::vector<std::vector<float>>& gradients, uint64_t samples);
  absl::StatusOr<Sums> Evaluate(const Dataset& set);
  absl::Status FinishEpoch(uint64_t steps, LocalEpoch* epoch);
  void CopyWeights();

  const pb::Experiment& config_;
  DataSplits data_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Optimizer> optimizer_;
  BufferPool pool_;
  std::vector<std::unique_ptr<DensePartition>> partitions_;
  std::vector<LogicalWorker> workers_;
  Buffer weights_;                 // float32 [elements], a copy of the partitions' for the model
  std::map<uint64_t, Sums> sums_;  // by epoch
};

absl::Status LocalRun::Prepare() {
  if (config_.consistency().mode() != pb::Consistency::BSP ||
      config_.consistency().backup_workers() > 0) {
    return absl::InvalidArgumentError(
        "a local run has one result, but that of consistency SSP, ASP or with backup_workers "
        "depends on timing; allowed is BSP with backup_workers 0");
  }
  absl::StatusOr<DataSplits> data = LoadDataSplits(config_.data(), config_.seed());
  if (!data.ok()) return data.status();
  data_ = *std::move(data);
  absl::StatusOr<std::unique_ptr<Device>> device =
      CreateCpuDevice({.threads = config_.cluster().compute_threads()});
  if (!device.ok()) return device.status();
  device_ = *std::move(device);
  absl::StatusOr<std::unique_ptr<Model>> model = Model::Create(
      config_.model(), data_.train->shape(), data_.train->classes(), config_.seed(), device_.get());
  if (!model.ok()) return model.status();
  model_ = *std::move(model);
  absl::StatusOr<std::unique_ptr<Optimizer>> optimizer = Optimizer::Create(config_.optimizer());
  if (!optimizer.ok()) return optimizer.status();
  optimizer_ = *std::move(optimizer);

  pb::TableSpec table;
  table.set_id(1);
  table.set_name("model");
  table.set_seed(config_.seed());
  table.mutable_tensor()->Add(model_->tensors().begin(), model_->tensors().end());
  table.set_partition_elements(uint64_t{config_.cluster().partition_kib()} * 256);
  absl::StatusOr<DenseLayout> layout = DenseLayout::Create(table);
  if (!layout.ok()) return layout.status();
  for (uint32_t p = 0; p < layout->partitions(); ++p) {
    partitions_.push_back(
        std::make_unique<DensePartition>(table, *layout, p, optimizer_.get(), &pool_));
  }
  weights_ = Buffer::Allocate(layout->elements() * sizeof(float));

  const uint32_t workers = config_.cluster().workers();
  for (uint32_t rank = 0; rank < workers; ++rank) {
    workers_.emplace_back(Sampler::Options{.sharding = config_.data().sharding(),
                                           .samples = data_.train->samples(),
                                           .global_batch = config_.training().global_batch(),
                                           .part = rank,
                                           .parts = workers,
                                           .seed = config_.seed()},
                          config_.training().epochs(), config_.training().max_steps());
  }
  return absl::OkStatus();
}

void LocalRun::CopyWeights() {
  for (const std::unique_ptr<DensePartition>& partition : partitions_) {
    const Buffer part = partition->Read();
    std::copy_n(part.floats(), part.num_floats(),
                weights_.mutable_floats() + partition->range().begin);
  }
}

absl::Status LocalRun::Train(const std::function<void(const LocalEpoch&)>& on_epoch,
                             LocalResult* result) {
  uint64_t steps = 0;
  for (const LogicalWorker& worker : workers_) steps = std::max(steps, worker.ticks);
  CopyWeights();
  for (uint64_t tick = 0; tick < steps; ++tick) {
    absl::Status status = Step(tick);
    if (!status.ok()) return status;
    // An epoch is over when the worker with the longest part is through it.
    auto longest = std::max_element(
        workers_.begin(), workers_.end(),
        [](const LogicalWorker& a, const LogicalWorker& b) { return a.per_epoch < b.per_epoch; });
    if (!longest->EndsEpochAt(tick + 1)) continue;
    LocalEpoch epoch;
    epoch.epoch = static_cast<uint32_t>(tick / longest->per_epoch);
    status = FinishEpoch(tick + 1, &epoch);
    if (!status.ok()) return status;
    if (on_epoch) on_epoch(epoch);
    result->epochs.push_back(epoch);
  }
  result->steps = steps;
  result->weights.assign(weights_.floats(), weights_.floats() + weights_.num_floats());
  unsigned char hash[crypto_hash_sha256_BYTES];
  crypto_hash_sha256(hash, reinterpret_cast<const unsigned char*>(weights_.data()),
                     weights_.size());
  result->weights_sha256 =
      absl::BytesToHexString(std::string(reinterpret_cast<const char*>(hash), sizeof(hash)));
  return absl::OkStatus();
}

absl::Status LocalRun::Step(uint64_t tick) {
  std::vector<std::vector<float>> gradients;  // in worker order, of those that have rows
  uint64_t samples = 0;
  for (LogicalWorker& worker : workers_) {
    if (tick >= worker.ticks) continue;
    const uint64_t epoch = tick / worker.per_epoch;
    const WorkerBatch batch = worker.sampler.Batch(epoch, tick % worker.per_epoch);
    if (batch.ids.empty()) continue;
    gradients.emplace_back(weights_.num_floats());
    absl::StatusOr<BatchResult> result =
        Gradients(batch.ids, {.train = true, .tick = tick, .first_row = batch.first_row},
                  gradients.back().data());
    if (!result.ok()) return result.status();
    sums_[epoch].Add(batch.ids.size(), *result);
    samples += batch.ids.size();
  }
  Update(tick, gradients, samples);
  CopyWeights();
  return absl::OkStatus();
}

// Of one worker's batch, summed over its rows.
absl::StatusOr<BatchResult> LocalRun::Gradients(const std::vector<uint64_t>& ids,
                                                StepContext context, float* gradients) {
  const Dataset& set = *data_.train;
  std::vector<float> x(ids.size() * set.shape().size());
  std::vector<int32_t> labels(ids.size());
  set.Read(ids, x.data(), labels.data());
  Buffer aligned = Buffer::Allocate(weights_.size());
  model_->BindParameters(weights_.floats());
  model_->BindGradients(aligned.mutable_floats());
  absl::Status status =
      model_->Begin({.rows = ids.size(), .x = x.data(), .labels = labels.data()}, context);
  for (size_t stage = 0; status.ok() && stage < model_->stages(); ++stage) {
    status = model_->Forward(stage);
  }
  if (!status.ok()) return status;
  const BatchResult result = model_->Result();
  for (size_t stage = model_->stages(); status.ok() && stage-- > 0;) {
    status = model_->Backward(stage);
  }
  if (!status.ok()) return status;
  std::copy_n(aligned.floats(), aligned.num_floats(), gradients);
  return result;
}

void LocalRun::Update(uint64_t tick, const std::vector<std::vector<float>>& gradients,
                      uint64_t samples) {
  if (samples == 0) return;  // no gradient, not a gradient of zero
  StepInfo info;
  info.step = tick;
  info.inverse_weight = 1.0 / static_cast<double>(samples);
  std::vector<std::vector<const float*>> parts(partitions_.size());
  for (size_t p = 0; p < partitions_.size(); ++p) {
    for (const std::vector<float>& gradient : gradients) {
      parts[p].push_back(gradient.data() + partitions_[p]->range().begin);
    }
  }
  if (optimizer_->clip_norm() > 0) {
    double total = 0;
    for (size_t p = 0; p < partitions_.size(); ++p) {
      total += Optimizer::SumOfSquares(partitions_[p]->size(), parts[p], info.inverse_weight);
    }
    info.norm_scale = optimizer_->NormScale(total);
  }
  for (size_t p = 0; p < partitions_.size(); ++p) partitions_[p]->Apply(parts[p], info);
}

absl::StatusOr<Sums> LocalRun::Evaluate(const Dataset& set) {
  Sums sums;
  const uint64_t batch = config_.training().eval_batch();
  std::vector<uint64_t> ids;
  std::vector<float> x;
  std::vector<int32_t> labels;
  model_->BindParameters(weights_.floats());
  for (uint64_t begin = 0; begin < set.samples(); begin += batch) {
    ids.resize(std::min(batch, set.samples() - begin));
    std::iota(ids.begin(), ids.end(), begin);
    x.resize(ids.size() * set.shape().size());
    labels.resize(ids.size());
    set.Read(ids, x.data(), labels.data());
    absl::Status status = model_->Begin(
        {.rows = ids.size(), .x = x.data(), .labels = labels.data()}, {.train = false});
    for (size_t stage = 0; status.ok() && stage < model_->stages(); ++stage) {
      status = model_->Forward(stage);
    }
    if (!status.ok()) return status;
    sums.Add(ids.size(), model_->Result());
  }
  return sums;
}

absl::Status LocalRun::FinishEpoch(uint64_t steps, LocalEpoch* epoch) {
  epoch->step = steps;
  Sums train = sums_[epoch->epoch];
  epoch->train_samples = train.samples;
  const pb::Training& training = config_.training();
  if (training.evaluate()) {
    absl::StatusOr<Sums> test = Evaluate(*data_.test);
    if (!test.ok()) return test.status();
    epoch->evaluated = true;
    epoch->test_loss = test->mean_loss();
    epoch->test_accuracy = test->accuracy();
    if (training.evaluate_train()) {
      absl::StatusOr<Sums> full = Evaluate(*data_.train);
      if (!full.ok()) return full.status();
      train = *full;
    }
  }
  epoch->train_loss = train.mean_loss();
  epoch->train_accuracy = train.accuracy();
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LocalResult> RunLocal(const pb::Experiment& experiment,
                                     const std::function<void(const LocalEpoch&)>& on_epoch) {
  LocalRun run(experiment);
  LocalResult result;
  absl::Status status = run.Prepare();
  if (status.ok()) status = run.Train(on_epoch, &result);
  if (!status.ok()) return status;
  return result;
}

}  // namespace parley
