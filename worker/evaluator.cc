#include "worker/evaluator.h"

#include <algorithm>
#include <cassert>
#include <numeric>
#include <utility>

namespace parley {

Evaluator::Evaluator(Env* env, std::shared_ptr<Workload> workload, SparseTable* rows,
                     uint64_t batch_rows)
    : env_(env), workload_(std::move(workload)), rows_(rows), batch_rows_(batch_rows) {}

void Evaluator::Run(bool train, Range slice, uint64_t tick, Buffer parameters, Done done) {
  assert(pass_ == nullptr);
  pass_ = std::make_shared<Pass>();
  pass_->workload = workload_;
  pass_->set = train ? workload_->data.train.get() : workload_->data.test.get();
  pass_->tick = tick;
  pass_->parameters = std::move(parameters);
  pass_->next = slice.begin;
  pass_->end = slice.end;
  pass_->batch_rows = batch_rows_;
  done_ = std::move(done);
  Next();
}

void Evaluator::Next() {
  if (!pass_->status.ok() || pass_->next >= pass_->end) {
    const std::shared_ptr<Pass> pass = std::exchange(pass_, nullptr);
    Done done = std::move(done_);
    if (pass->status.ok()) {
      done(pass->sums);
    } else {
      done(pass->status);
    }
    return;
  }
  if (rows_ == nullptr) {
    Compute();
    return;
  }
  env_->Offload([pass = pass_] { pass->Load(); },
                [this, alive = std::weak_ptr<bool>(alive_)] {
                  if (!alive.expired()) PullRows();
                });
}

void Evaluator::PullRows() {
  pass_->rows.resize(pass_->keys.keys.size() * rows_->dim());
  rows_->Pull(pass_->tick, pass_->keys.keys, pass_->rows.data(),
              [this](const PullResult&) { Compute(); });
}

void Evaluator::Compute() {
  env_->Offload([pass = pass_] { pass->status = pass->Compute(); },
                [this, alive = std::weak_ptr<bool>(alive_)] {
                  if (!alive.expired()) Next();
                });
}

void Evaluator::Pass::Load() {
  ids.resize(std::min(batch_rows, end - next));
  std::iota(ids.begin(), ids.end(), next);
  labels.resize(ids.size());
  if (workload->embedding.has_value()) {
    raw_keys.resize(ids.size() * set->keys_per_row());
    set->ReadKeysAndLabels(ids, raw_keys.data(), labels.data());
    workload->embedding->Index(raw_keys, &keys);
    ReadFactors(*set, ids, &keys);
  } else {
    x.resize(ids.size() * set->shape().size());
    set->Read(ids, x.data(), labels.data());
  }
}

absl::Status Evaluator::Pass::Compute() {
  BatchView batch;
  Lookup lookup;
  if (workload->embedding.has_value()) {
    lookup = workload->embedding->LookupOf(keys);
    batch.lookup = &lookup;
    batch.row_values = rows.data();
  } else {
    Load();
    batch.x = x.data();
  }
  const uint64_t samples = batch.rows = ids.size();
  batch.labels = labels.data();
  Model& model = *workload->model;
  model.BindParameters(parameters.floats(), KindOf(parameters));
  absl::Status status = model.Begin(batch, {.train = false});
  for (size_t stage = 0; status.ok() && stage < model.stages(); ++stage) {
    status = model.Forward(stage);
  }
  if (!status.ok()) return status;
  const absl::StatusOr<BatchResult> result = model.Result();
  if (!result.ok()) return result.status();
  sums.samples += samples;
  sums.loss_sum += result->loss_sum;
  sums.correct += result->correct;
  next += samples;
  return absl::OkStatus();
}

}  // namespace parley
