#include "worker/evaluator.h"

#include <algorithm>
#include <cassert>
#include <numeric>
#include <utility>

namespace parley {

Evaluator::Evaluator(Env* env, std::shared_ptr<Workload> workload, uint64_t batch_rows)
    : env_(env), workload_(std::move(workload)), batch_rows_(batch_rows) {}

void Evaluator::Run(bool train, Range slice, Buffer parameters, Done done) {
  assert(pass_ == nullptr);
  pass_ = std::make_shared<Pass>();
  pass_->workload = workload_;
  pass_->set = train ? workload_->data.train.get() : workload_->data.test.get();
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
  env_->Offload([pass = pass_] { pass->status = pass->RunBatch(); },
                [this, alive = std::weak_ptr<bool>(alive_)] {
                  if (!alive.expired()) Next();
                });
}

absl::Status Evaluator::Pass::RunBatch() {
  const uint64_t rows = std::min(batch_rows, end - next);
  ids.resize(rows);
  std::iota(ids.begin(), ids.end(), next);
  x.resize(rows * set->shape().size());
  labels.resize(rows);
  set->Read(ids, x.data(), labels.data());
  Model& model = *workload->model;
  model.BindParameters(parameters.floats());
  absl::Status status =
      model.Begin({.rows = rows, .x = x.data(), .labels = labels.data()}, {.train = false});
  for (size_t stage = 0; status.ok() && stage < model.stages(); ++stage) {
    status = model.Forward(stage);
  }
  if (!status.ok()) return status;
  const BatchResult result = model.Result();
  sums.samples += rows;
  sums.loss_sum += result.loss_sum;
  sums.correct += result.correct;
  next += rows;
  return absl::OkStatus();
}

}  // namespace parley
