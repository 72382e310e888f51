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
    workload_->embedding->Scatter(keys(), dx_.data(), step_.row_gradients.mutable_floats());
    on_backward(kEmbedding);
  }
  finished_ = true;
  if (step_.next.has_value()) Load(*step_.next);
  return absl::OkStatus();
}

absl::Status StepJob::Begin() {
  Load(step_.position);
  begun_ = true;
  step_rows_ = batch_.ids.size();
  Model& model = *workload_->model;
  model.BindParameters(step_.parameters.floats());
  model.BindGradients(step_.gradients.mutable_floats());
  float* dx = nullptr;
  if (workload_->embedding.has_value()) {
    const Embedding& embedding = *workload_->embedding;
    x_.resize(step_rows_ * embedding.output().size());
    dx_.resize(x_.size());
    dx = dx_.data();
    embedding.Gather(keys(), step_.rows.floats(), x_.data());
  }
  return model.Begin({.rows = step_rows_, .x = x_.data(), .labels = labels_.data(), .dx = dx},
                     {.train = true, .tick = step_.tick, .first_row = batch_.first_row});
}

void StepJob::Load(Position position) {
  if (loaded_ == position) return;
  const Dataset& train = *workload_->data.train;
  batch_ = sampler_.Batch(position.epoch, position.index);
  x_.resize(batch_.ids.size() * train.shape().size());
  labels_.resize(batch_.ids.size());
  train.Read(batch_.ids, x_.data(), labels_.data());
  if (workload_->embedding.has_value()) {
    raw_keys_.resize(batch_.ids.size() * train.keys_per_row());
    train.ReadKeys(batch_.ids, raw_keys_.data());
    current_keys_ = 1 - current_keys_;
    workload_->embedding->Index(raw_keys_, &keys_[current_keys_]);
  }
  loaded_ = position;
}

}  // namespace parley
