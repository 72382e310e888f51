#include "worker/step_job.h"

#include <algorithm>
#include <cassert>
#include <utility>

#include "absl/types/span.h"

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

  if (absl::Status status = Backward(on_backward); !status.ok()) return status;
  const absl::StatusOr<BatchResult> result = model.Result();
  if (!result.ok()) return result.status();
  result_ = *result;
  finished_ = true;
  // Not on an asynchronous device, which has done so meanwhile.
  if (step_.next.has_value()) Load(*step_.next);
  return absl::OkStatus();
}

absl::Status StepJob::Backward(absl::FunctionRef<void(size_t stage)> on_backward) {
  Model& model = *workload_->model;
  const bool asynchronous = model.asynchronous();
  size_t enqueued = model.stages();
  for (size_t stage = model.stages(); stage-- > 0;) {
    while (enqueued > (asynchronous ? 0 : stage)) {
      if (absl::Status status = model.Backward(--enqueued); !status.ok()) return status;
    }
    while (asynchronous && !model.GradientsReady(stage) && ReadAhead()) {
    }
    if (absl::Status status = model.AwaitGradients(stage); !status.ok()) return status;
    on_backward(stage);
  }
  if (workload_->embedding.has_value()) on_backward(kEmbedding);
  while (asynchronous && ReadAhead()) {
  }
  return absl::OkStatus();
}

absl::Status StepJob::Begin() {
  Load(step_.position);
  begun_ = true;
  const Batch& batch = *Find(step_.position);
  step_rows_ = batch.rows.ids.size();
  step_batch_ = &batch.rows;
  Model& model = *workload_->model;
  model.BindParameters(step_.parameters.floats(), KindOf(step_.parameters));
  model.BindGradients(step_.gradients.mutable_floats(), KindOf(step_.gradients));
  BatchView view = batch.View();
  if (workload_->embedding.has_value()) {
    view.row_values = step_.rows.floats();
    view.row_gradients = step_.row_gradients.mutable_floats();
  }
  return model.Begin(view, {.train = true, .tick = step_.tick, .first_row = batch.rows.first_row});
}

BatchView StepJob::Batch::View() const {
  BatchView view{.rows = rows.ids.size(),
                 .labels = reinterpret_cast<const int32_t*>(labels.data())};
  if (lookup.fields > 0) {
    view.lookup = &lookup;
  } else {
    view.x = values.floats();
  }
  return view;
}

void StepJob::Load(Position position) {
  if (Find(position) == nullptr) Open(position);
  while (!complete()) ReadSome(batches_[last_].rows.ids.size());
}

// Begins to read a batch, in the place of the older one.
void StepJob::Open(Position position) {
  const Dataset& train = *workload_->data.train;
  last_ = 1 - last_;
  Batch& batch = batches_[last_];
  batch.rows = sampler_.Batch(position.epoch, position.index);
  batch.read = 0;
  batch.position = position;
  const uint64_t rows = batch.rows.ids.size();
  const auto fit = [this](uint64_t bytes, Buffer* buffer) {
    if (buffer->size() != bytes) *buffer = pool_->Allocate(bytes);
  };
  fit(rows * sizeof(int32_t), &batch.labels);
  if (!workload_->embedding.has_value()) {
    fit(rows * train.shape().size() * sizeof(float), &batch.values);
  }
}

// Reads up to so many rows more of the batch that was opened last; true if it is complete then.
bool StepJob::ReadSome(uint64_t rows) {
  const Dataset& train = *workload_->data.train;
  Batch& batch = batches_[last_];
  const std::vector<uint64_t>& ids = batch.rows.ids;
  if (workload_->embedding.has_value()) {
    raw_keys_.resize(ids.size() * train.keys_per_row());
    train.ReadKeysAndLabels(ids, raw_keys_.data(), batch.mutable_labels());
    workload_->embedding->Index(raw_keys_, &batch.keys);
    ReadFactors(train, ids, &batch.keys);
    batch.lookup = workload_->embedding->LookupOf(batch.keys);
    batch.read = ids.size();
    return true;
  }
  rows = std::min(rows, ids.size() - batch.read);
  train.Read(absl::MakeConstSpan(ids).subspan(batch.read, rows),
             batch.values.mutable_floats() + batch.read * train.shape().size(),
             batch.mutable_labels() + batch.read);
  batch.read += rows;
  return complete();
}

// A piece of the next step's batch; once it is complete it is on its way to the device. False if
// there is nothing to do.
bool StepJob::ReadAhead() {
  constexpr uint64_t kRows = 64;  // tens of microseconds: gradients do not wait longer
  if (!step_.next.has_value()) return false;
  if (Find(*step_.next) == nullptr) {
    Open(*step_.next);
  } else if (complete()) {
    return false;
  }
  if (ReadSome(kRows)) workload_->model->Prefetch(batches_[last_].View());
  return true;
}

}  // namespace parley
