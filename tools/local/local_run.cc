#include "tools/local/local_run.h"

#include <sodium.h>

#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"
#include "models/model.h"
#include "ps/base/buffer.h"
#include "tools/local/local_tables.h"
#include "worker/data/dataset.h"
#include "worker/data/sampler.h"
#include "worker/embedding.h"
#include "worker/gpu_seat.h"

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
  // One batch, ready for the model. Reused from batch to batch.
  struct Batch {
    std::vector<float> x;
    std::vector<int32_t> labels;
    std::vector<uint64_t> raw_keys;
    KeyBatch keys;
    std::vector<float> rows, row_gradients;
    Lookup lookup;
  };

  absl::Status PrepareModel();
  absl::Status PrepareTables();
  absl::Status Step(uint64_t tick);
  absl::Status Load(const Dataset& set, const std::vector<uint64_t>& ids);
  absl::Status Forward(const std::vector<uint64_t>& ids, StepContext context);
  absl::StatusOr<BatchResult> Push(uint32_t rank, const std::vector<uint64_t>& ids,
                                   StepContext context);
  absl::StatusOr<Sums> Evaluate(const Dataset& set);
  absl::Status FinishEpoch(uint64_t steps, LocalEpoch* epoch);

  const pb::Experiment& config_;
  DataSplits data_;
  std::unique_ptr<Device> device_;
  std::optional<Embedding> embedding_;
  std::unique_ptr<Model> model_;
  BufferPool pool_;
  std::unique_ptr<LocalDense> dense_;
  std::unique_ptr<LocalSparse> sparse_;  // with an embedding
  std::vector<LogicalWorker> workers_;
  Batch batch_;
  Buffer gradients_;               // float32 [elements]
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
  absl::Status status = PrepareModel();
  if (status.ok()) status = PrepareTables();
  if (!status.ok()) return status;

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

absl::Status LocalRun::PrepareModel() {
  absl::StatusOr<std::unique_ptr<Device>> device = GpuSeat().MakeDevice(config_);
  if (!device.ok()) return device.status();
  device_ = *std::move(device);
  SampleShape input = data_.train->shape();
  if (const pb::Embedding* config = FindEmbedding(config_.model())) {
    absl::StatusOr<Embedding> embedding = Embedding::Create(*config, data_.train->keys_per_row());
    if (!embedding.ok()) return embedding.status();
    embedding_ = *embedding;
    input = embedding_->output();
  }
  absl::StatusOr<std::unique_ptr<Model>> model =
      Model::Create(WithoutEmbedding(config_.model()), input, data_.train->classes(),
                    config_.seed(), device_.get());
  if (!model.ok()) return model.status();
  model_ = *std::move(model);
  return absl::OkStatus();
}

absl::Status LocalRun::PrepareTables() {
  pb::TableSpec table;
  table.set_id(1);
  table.set_name("model");
  table.set_seed(config_.seed());
  table.mutable_tensor()->Add(model_->tensors().begin(), model_->tensors().end());
  table.set_partition_elements(uint64_t{config_.cluster().partition_kib()} * 256);
  *table.mutable_optimizer() = config_.optimizer();
  if (config_.has_compression()) *table.mutable_compression() = config_.compression();
  absl::StatusOr<std::unique_ptr<LocalDense>> dense =
      LocalDense::Create(table, config_.cluster().workers(), &pool_);
  if (!dense.ok()) return dense.status();
  dense_ = *std::move(dense);
  gradients_ = Buffer::Allocate(dense_->elements() * sizeof(float));
  if (!embedding_.has_value()) return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<LocalSparse>> sparse =
      LocalSparse::Create(EmbeddingTable(config_), config_.cluster().workers(), &pool_);
  if (!sparse.ok()) return sparse.status();
  sparse_ = *std::move(sparse);
  return absl::OkStatus();
}

absl::Status LocalRun::Train(const std::function<void(const LocalEpoch&)>& on_epoch,
                             LocalResult* result) {
  uint64_t steps = 0;
  for (const LogicalWorker& worker : workers_) steps = std::max(steps, worker.ticks);
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
  result->weights.resize(dense_->elements());
  dense_->CopyWeights(result->weights.data());
  if (sparse_ != nullptr) result->embedding = sparse_->Count();
  unsigned char hash[crypto_hash_sha256_BYTES];
  crypto_hash_sha256(hash, reinterpret_cast<const unsigned char*>(result->weights.data()),
                     result->weights.size() * sizeof(float));
  result->weights_sha256 =
      absl::BytesToHexString(std::string(reinterpret_cast<const char*>(hash), sizeof(hash)));
  return absl::OkStatus();
}

absl::Status LocalRun::Step(uint64_t tick) {
  uint64_t samples = 0;
  for (uint32_t rank = 0; rank < workers_.size(); ++rank) {
    LogicalWorker& worker = workers_[rank];
    if (tick >= worker.ticks) continue;
    const uint64_t epoch = tick / worker.per_epoch;
    const WorkerBatch batch = worker.sampler.Batch(epoch, tick % worker.per_epoch);
    if (batch.ids.empty()) continue;
    absl::StatusOr<BatchResult> result =
        Push(rank, batch.ids, {.train = true, .tick = tick, .first_row = batch.first_row});
    if (!result.ok()) return result.status();
    sums_[epoch].Add(batch.ids.size(), *result);
    samples += batch.ids.size();
  }
  if (sparse_ != nullptr) sparse_->Update(tick, samples);
  return dense_->Update(tick, samples);
}

// The samples, and with an embedding their rows, into batch_.
absl::Status LocalRun::Load(const Dataset& set, const std::vector<uint64_t>& ids) {
  batch_.x.resize(ids.size() * set.shape().size());
  batch_.labels.resize(ids.size());
  set.Read(ids, batch_.x.data(), batch_.labels.data());
  if (!embedding_.has_value()) return absl::OkStatus();
  batch_.raw_keys.resize(ids.size() * set.keys_per_row());
  set.ReadKeys(ids, batch_.raw_keys.data());
  embedding_->Index(batch_.raw_keys, &batch_.keys);
  ReadFactors(set, ids, &batch_.keys);
  batch_.rows.resize(batch_.keys.keys.size() * embedding_->dim());
  absl::Status status = sparse_->Pull(batch_.keys.keys, batch_.rows.data());
  if (!status.ok()) return status;
  batch_.row_gradients.resize(batch_.rows.size());
  batch_.lookup = embedding_->LookupOf(batch_.keys);
  return absl::OkStatus();
}

absl::Status LocalRun::Forward(const std::vector<uint64_t>& ids, StepContext context) {
  model_->BindParameters(dense_->Pull());
  BatchView batch{.rows = ids.size(), .x = batch_.x.data(), .labels = batch_.labels.data()};
  if (embedding_.has_value()) {
    batch.x = nullptr;
    batch.lookup = &batch_.lookup;
    batch.row_values = batch_.rows.data();
    if (context.train) batch.row_gradients = batch_.row_gradients.data();
  }
  absl::Status status = model_->Begin(batch, context);
  for (size_t stage = 0; status.ok() && stage < model_->stages(); ++stage) {
    status = model_->Forward(stage);
  }
  return status;
}

// One worker's step: gradients summed over the rows of its batch, handed to the tables.
absl::StatusOr<BatchResult> LocalRun::Push(uint32_t rank, const std::vector<uint64_t>& ids,
                                           StepContext context) {
  absl::Status status = Load(*data_.train, ids);
  if (!status.ok()) return status;
  model_->BindGradients(gradients_.mutable_floats());
  status = Forward(ids, context);
  if (!status.ok()) return status;
  for (size_t stage = model_->stages(); status.ok() && stage-- > 0;) {
    status = model_->Backward(stage);
    if (status.ok()) status = model_->AwaitGradients(stage);
  }
  absl::StatusOr<BatchResult> result = status.ok() ? model_->Result() : status;
  status = result.status();
  if (status.ok()) status = dense_->Push(rank, gradients_.floats());
  if (status.ok() && embedding_.has_value()) {
    status = sparse_->Push(rank, batch_.keys.keys, batch_.row_gradients.data());
  }
  if (!status.ok()) return status;
  return result;
}

absl::StatusOr<Sums> LocalRun::Evaluate(const Dataset& set) {
  Sums sums;
  const uint64_t batch = config_.training().eval_batch();
  std::vector<uint64_t> ids;
  for (uint64_t begin = 0; begin < set.samples(); begin += batch) {
    ids.resize(std::min(batch, set.samples() - begin));
    std::iota(ids.begin(), ids.end(), begin);
    absl::Status status = Load(set, ids);
    if (status.ok()) status = Forward(ids, {.train = false});
    if (!status.ok()) return status;
    const absl::StatusOr<BatchResult> result = model_->Result();
    if (!result.ok()) return result.status();
    sums.Add(ids.size(), *result);
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
