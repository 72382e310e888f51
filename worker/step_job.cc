#include "worker/step_job.h"

#include <cassert>
#include <utility>

namespace parley {

void StepJob::Prepare(Step step) {
  assert(finished_);
  step_ = std::move(step);
  forward_done_ = 0;
  begun_ = false;
  finished_ = false;
}

void StepJob::Run(absl::FunctionRef<void(size_t stage)> on_backward) {
  status_ = RunStages(on_backward);
  if (!status_.ok()) finished_ = true;
}

absl::Status StepJob::RunStages(absl::FunctionRef<void(size_t stage)> on_backward) {
  Model& model = *workload_->model;
  if (!begun_) {
    absl::Status status = Begin();
    if (!status.ok()) return status;
  }
  const size_t stages = model.stages();
  while (forward_done_ < stages && forward_done_ < ready_.load(std::memory_order_acquire)) {
    absl::Status status = model.Forward(forward_done_);
    if (!status.ok()) return status;
    ++forward_done_;
  }
  if (forward_done_ < stages) return absl::OkStatus();

  result_ = model.Result();
  for (size_t stage = stages; stage-- > 0;) {
    absl::Status status = model.Backward(stage);
    if (!status.ok()) return status;
    on_backward(stage);
  }
  if (workload_->embedding.has_value()) {
    workload_->embedding->Scatter(keys(step_.position), dx_.data(),
                                  step_.row_gradients.mutable_floats());
    on_backward(kEmbedding);
  }
  finished_ = true;
  if (step_.next.has_value()) Load(*step_.next);
  return absl::OkStatus();
}

absl::Status StepJob::Begin() {
  Load(step_.position);
  begun_ = true;
  const Batch& batch = *Find(step_.position);
  step_rows_ = batch.rows.ids.size();
  step_batch_ = &batch.rows;
  Model& model = *workload_->model;
  model.BindParameters(step_.parameters.floats());
  model.BindGradients(step_.gradients.mutable_floats());
  BatchView view{.rows = step_rows_, .x = batch.values.data(), .labels = batch.labels.data()};
  if (workload_->embedding.has_value()) {
    const Embedding& embedding = *workload_->embedding;
    x_.resize(step_rows_ * embedding.output().size());
    dx_.resize(x_.size());
    embedding.Gather(batch.keys, step_.rows.floats(), x_.data());
    view.x = x_.data();
    view.dx = dx_.data();
  }
  return model.Begin(view, {.train = true, .tick = step_.tick, .first_row = batch.rows.first_row});
}

void StepJob::Load(Position position) {
  if (Find(position) != nullptr) return;
  const Dataset& train = *workload_->data.train;
  last_ = 1 - last_;
  Batch& batch = batches_[last_];
  batch.rows = sampler_.Batch(position.epoch, position.index);
  const std::vector<uint64_t>& ids = batch.rows.ids;
  batch.labels.resize(ids.size());
  if (workload_->embedding.has_value()) {
    raw_keys_.resize(ids.size() * train.keys_per_row());
    train.ReadKeysAndLabels(ids, raw_keys_.data(), batch.labels.data());
    workload_->embedding->Index(raw_keys_, &batch.keys);
    ReadFactors(train, ids, &batch.keys);
  } else {
    batch.values.resize(ids.size() * train.shape().size());
    train.Read(ids, batch.values.data(), batch.labels.data());
  }
  batch.position = position;
}

}  // namespace parley
