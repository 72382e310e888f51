#include "worker/trainer.h"

#include <algorithm>
#include <cassert>
#include <new>
#include <numeric>
#include <utility>
#include <vector>

#include "worker/weights_hash.h"

namespace parley {
namespace {

Sampler::Options SamplerOptions(const Trainer::Options& options, const Workload& workload) {
  return {.sharding = options.experiment.data().sharding(),
          .samples = workload.data.train->samples(),
          .global_batch = options.experiment.training().global_batch(),
          .part = options.data_part,
          .parts = options.data_parts,
          .seed = options.experiment.seed()};
}

}  // namespace

Trainer::Trainer(Env* env, PsClient* client, std::shared_ptr<Workload> workload, Options options,
                 Handlers handlers)
    : env_(env),
      client_(client),
      dense_(client->dense(kModelTable)),
      sparse_(client->sparse(kEmbeddingTable)),
      workload_(std::move(workload)),
      options_(std::move(options)),
      handlers_(std::move(handlers)),
      pool_(options_.pool != nullptr ? options_.pool : &own_pool_),
      parameter_pool_(workload_->device_pool != nullptr ? workload_->device_pool : pool_),
      sampler_(SamplerOptions(options_, *workload_)),
      ticks_per_epoch_(sampler_.ticks_per_epoch()),
      total_ticks_(TotalTicks()),
      plan_(std::make_shared<StagePlan>(StagePlan::Create(*workload_->model, dense_->layout()))),
      job_(std::make_shared<StepJob>(workload_, SamplerOptions(options_, *workload_),
                                     options_.pool)),
      parameters_(parameter_pool_->Allocate(dense_->layout().elements() * sizeof(float))),
      evaluator_(env, workload_, sparse_, options_.experiment.training().eval_batch()),
      ready_(plan_.get()),
      next_ready_(plan_.get()) {}

void Trainer::Start() {
  tick_ = std::min(options_.start_tick, total_ticks_);
  if (ticks_per_epoch_ > 0) {
    // At the end of an epoch in which another pushed the last tick: that epoch once more.
    const bool taken_over = tick_ > options_.first_tick;
    epoch_ = static_cast<uint32_t>((tick_ - (taken_over ? 1 : 0)) / ticks_per_epoch_);
    if (taken_over) {
      EnterEpoch();
      return;
    }
  }
  BeginEpoch();
}

uint64_t Trainer::TotalTicks() const {
  const pb::Training& training = options_.experiment.training();
  const uint64_t all = training.epochs() * ticks_per_epoch_;
  return training.max_steps() > 0 ? std::min(all, training.max_steps()) : all;
}

void Trainer::BeginEpoch() {
  const pb::Training& training = options_.experiment.training();
  const bool steps_done = training.max_steps() > 0 && tick_ >= training.max_steps();
  if (epoch_ >= training.epochs() || steps_done) {
    Finish();
    return;
  }
  EnterEpoch();
}

// Somewhere in epoch_, as tick_ says.
void Trainer::EnterEpoch() {
  phase_ = Phase::kTraining;
  epoch_begin_ = epoch_ * ticks_per_epoch_;
  epoch_end_ = std::min(epoch_begin_ + ticks_per_epoch_, total_ticks_);
  compute_before_ += sums_.meter.compute;
  sums_ = EpochSums{};
  sums_.start = env_->Now();
  Spend(EpochMeter::Activity::kWait);
  SkipTicks();
  if (tick_ < epoch_end_) {
    BeginTick();
  } else {
    // No sample is this worker's. By the loop, or a worker without any would nest a call an epoch.
    env_->Post([this, alive = std::weak_ptr<bool>(alive_)] {
      if (!alive.expired()) MaybeEndEpoch();
    });
  }
}

// Ticks that are given up: the others do without this worker's part of them.
void Trainer::SkipTicks() {
  for (; tick_ < std::min(options_.skip_below, epoch_end_); ++tick_) PushNothing();
}

void Trainer::BeginTick() {
  rows_ = sampler_.rows(PositionOf(tick_).index);
  prepared_ = pulled_ = false;
  pushed_ = 0;
  rows_asked_ = rows_pulled_ = rows_pushed_ = sparse_ == nullptr || rows_ == 0;
  if (std::exchange(next_open_, false)) {
    std::swap(ready_, next_ready_);
  } else {
    ready_.Reset();
    const uint64_t tick = tick_;
    dense_->Pull(
        tick, parameters_.mutable_floats(),
        [this, tick](absl::Span<const uint32_t> partitions) { OnArrived(tick, partitions); },
        [this, tick](const PullResult& result) { OnPulled(tick, result); });
  }
  MaybePullRows();
  // What has come already, with the pushes of the tick before.
  MaybeCompute();
  if (next_pulled_.has_value()) OnPulled(tick_, *std::exchange(next_pulled_, std::nullopt));
}

// Whether the pushes of this tick bring the weights of the next. Not across an epoch's end, where
// the weights are evaluated. Nor where the whole gradient is clipped by its norm: no partition is
// updated before all are pushed, so that every answer would wait for the last push and the next
// tick's weights come no sooner than by a pull. Nor from a tick that is skipped, where the next may
// not be read at all.
bool Trainer::Fuses() const {
  return options_.experiment.cluster().push_pull() &&
         options_.experiment.optimizer().clip_norm() == 0 && tick_ + 1 < epoch_end_ &&
         tick_ >= options_.skip_below;
}

void Trainer::OpenNextPull() {
  next_open_ = true;
  next_ready_.Reset();
  const uint64_t next = tick_ + 1;
  dense_->BeginPull(
      next, parameters_.mutable_floats(),
      [this, next](absl::Span<const uint32_t> partitions) { OnArrived(next, partitions); },
      [this, next](const PullResult& result) { OnPulled(next, result); });
}

// The stages that use these partitions have gone backward, so nobody reads them in parameters_ any
// more in this tick: the next one's may be written over them while backward goes on elsewhere.
void Trainer::PushDense(double weight, absl::Span<const uint32_t> partitions) {
  if (Fuses()) {
    if (pushed_ == 0) OpenNextPull();
    dense_->PushPull(tick_, weight, partitions, gradients_);
  } else {
    dense_->Push(tick_, weight, partitions, gradients_);
  }
  pushed_ += static_cast<uint32_t>(partitions.size());
}

// The rows of this tick's keys, once it is known which they are.
void Trainer::MaybePullRows() {
  if (phase_ != Phase::kTraining || rows_asked_ || reading_ || tick_ >= epoch_end_) return;
  const StepJob::Position position = PositionOf(tick_);
  if (!job_->loaded(position)) {
    if (!running_) Read(position);
    return;
  }
  rows_asked_ = true;
  keys_ = &job_->keys(position);
  const uint64_t bytes = keys_->keys.size() * sparse_->dim() * sizeof(float);
  row_values_ = pool_->Allocate(bytes);
  row_gradients_ = pool_->Allocate(bytes);
  sparse_->Pull(tick_, keys_->keys, row_values_.mutable_floats(), [this](const PullResult& result) {
    NoteStaleness(result);
    rows_pulled_ = true;
    MaybeCompute();
  });
  MaybeReadAhead();
}

// The keys of the next tick, while this one's rows are on their way.
void Trainer::MaybeReadAhead() {
  if (phase_ != Phase::kTraining || sparse_ == nullptr || tick_ >= epoch_end_) return;
  if (!rows_asked_ || running_ || reading_) return;
  const std::optional<StepJob::Position> next = NextPosition();
  if (next.has_value() && !job_->loaded(*next)) Read(*next);
}

void Trainer::Read(StepJob::Position position) {
  reading_ = true;
  env_->Offload([job = job_, position] { job->Load(position); },
                [this, alive = std::weak_ptr<bool>(alive_)] {
                  if (alive.expired()) return;
                  reading_ = false;
                  MaybePullRows();
                  MaybeReadAhead();
                  MaybeCompute();
                  MaybeEndEpoch();
                });
}

void Trainer::OnArrived(uint64_t tick, absl::Span<const uint32_t> partitions) {
  ReadyStages& ready = tick == tick_ ? ready_ : next_ready_;
  for (uint32_t partition : partitions) ready.OnPartition(partition);
  if (tick != tick_) return;
  // A run that is under way goes on with what has just arrived; but if the step has not been
  // prepared, that run is still the last step's.
  if (prepared_) job_->SetReady(ready_.count());
  MaybeCompute();
}

void Trainer::OnPulled(uint64_t tick, const PullResult& result) {
  if (tick != tick_) {
    next_pulled_ = result;  // this tick still has rows to push
    return;
  }
  pulled_ = true;
  NoteStaleness(result);
  if (rows_ > 0) return;
  PushNothing();
  EndTick();
}

// Tells the servers that nothing comes in this tick.
void Trainer::PushNothing() {
  std::vector<uint32_t> all(dense_->layout().partitions());
  std::iota(all.begin(), all.end(), 0);
  PushDense(0, all);
  if (sparse_ != nullptr) sparse_->Push(tick_, 0, {}, nullptr, nullptr);
}

void Trainer::MaybeCompute() {
  if (phase_ != Phase::kTraining || running_ || reading_ || tick_ >= epoch_end_) return;
  if (rows_ == 0 || !rows_pulled_) return;
  if (!prepared_ && ready_.count() > 0 && !PrepareStep()) return;
  if (!prepared_ || job_->finished() || ready_.count() <= job_->forward_done()) return;
  StartRun();
}

// False: there is no memory for it, and the trainer has failed.
bool Trainer::PrepareStep() {
  try {
    gradients_ = parameter_pool_->Allocate(dense_->layout().elements() * sizeof(float));
  } catch (const std::bad_alloc&) {
    Fail(absl::ResourceExhaustedError("no memory for the gradients of the dense table"));
    return false;
  }
  job_->Prepare({.tick = tick_,
                 .position = PositionOf(tick_),
                 .next = sparse_ == nullptr ? NextPosition() : std::nullopt,
                 .parameters = parameters_,
                 .gradients = gradients_,
                 .rows = row_values_,
                 .row_gradients = row_gradients_});
  job_->SetReady(ready_.count());
  prepared_ = true;
  return true;
}

void Trainer::StartRun() {
  running_ = true;
  Spend(EpochMeter::Activity::kCompute);
  env_->Offload(
      [this, env = env_, job = job_, plan = plan_, alive = std::weak_ptr<bool>(alive_)] {
        job->Run([&](size_t stage) {
          if (stage != StepJob::kEmbedding && plan->completes[stage].empty()) return;
          env->Post([this, stage, alive] {
            if (!alive.expired()) OnBackward(stage);
          });
        });
      },
      [this, alive = std::weak_ptr<bool>(alive_)] {
        if (!alive.expired()) OnRunDone();
      });
}

// At most one step is in backward, so the stage is one of the current tick: the next tick begins
// when all of this one's partitions are pushed.
void Trainer::OnBackward(size_t stage) {
  if (phase_ != Phase::kTraining) return;  // failed meanwhile
  if (options_.probe != nullptr) {
    options_.probe->OnGradient(options_.rank, tick_, epoch_, job_->samples());
  }
  if (stage == StepJob::kEmbedding) {
    sparse_->Push(tick_, static_cast<double>(rows_), keys_->keys, row_gradients_.floats(), nullptr);
    rows_pushed_ = true;
    MaybeEndTick();
    return;
  }
  const std::vector<uint32_t>& partitions = plan_->completes[stage];
  PushDense(static_cast<double>(rows_), partitions);
  MaybeEndTick();
}

void Trainer::MaybeEndTick() {
  if (pushed_ == dense_->layout().partitions() && rows_pushed_) EndTick();
}

void Trainer::EndTick() {
  Spend(EpochMeter::Activity::kWait);
  gradients_ = Buffer();
  samples_total_ += rows_;
  ++tick_;
  if (tick_ < epoch_end_) {
    BeginTick();
  } else {
    MaybeEndEpoch();
  }
}

void Trainer::OnRunDone() {
  running_ = false;
  if (phase_ == Phase::kFinished) return;
  if (!job_->status().ok()) {
    Fail(job_->status());
    return;
  }
  if (job_->finished()) {
    sums_.samples += job_->rows();
    sums_.loss_sum += job_->result().loss_sum;
    sums_.correct += job_->result().correct;
  } else if (ready_.count() <= job_->forward_done()) {
    Spend(EpochMeter::Activity::kWait);  // forward stands still until more weights come
  }
  MaybePullRows();
  MaybeReadAhead();
  MaybeCompute();
  MaybeEndEpoch();
}

void Trainer::MaybeEndEpoch() {
  if (phase_ != Phase::kTraining || tick_ < epoch_end_ || running_ || reading_) return;
  if (options_.experiment.training().evaluate()) {
    phase_ = Phase::kEvaluating;
    dense_->Pull(
        tick_, parameters_.mutable_floats(), [](absl::Span<const uint32_t>) {},
        [this](const PullResult& result) {
          NoteStaleness(result);
          Evaluate();
        });
  } else {
    sums_.train = env_->Now() - sums_.start;
    FinishEpoch(TrainReport());
  }
}

void Trainer::Evaluate() {
  // Waiting for the last step to be applied is part of training it.
  sums_.train = env_->Now() - sums_.start;
  Spend(EpochMeter::Activity::kEvaluate);
  const Range slice =
      ContiguousPart(workload_->data.test->samples(), options_.data_part, options_.data_parts);
  evaluator_.Run(/*train=*/false, slice, tick_, parameters_, [this](absl::StatusOr<EvalSums> test) {
    if (!test.ok()) {
      Fail(test.status());
      return;
    }
    pb::Report report = TrainReport();
    report.set_test_samples(test->samples);
    report.set_test_loss_sum(test->loss_sum);
    report.set_test_correct(test->correct);
    if (options_.experiment.training().evaluate_train()) {
      EvaluateTrain(std::move(report));
    } else {
      FinishEpoch(std::move(report));
    }
  });
}

// A full pass with the epoch's last weights in the place of the running sums.
void Trainer::EvaluateTrain(pb::Report report) {
  const Range slice =
      ContiguousPart(workload_->data.train->samples(), options_.data_part, options_.data_parts);
  evaluator_.Run(/*train=*/true, slice, tick_, parameters_,
                 [this, report = std::move(report)](absl::StatusOr<EvalSums> train) mutable {
                   if (!train.ok()) {
                     Fail(train.status());
                     return;
                   }
                   report.set_train_samples(train->samples);
                   report.set_train_loss_sum(train->loss_sum);
                   report.set_train_correct(train->correct);
                   FinishEpoch(std::move(report));
                 });
}

void Trainer::FinishEpoch(pb::Report report) {
  Spend(EpochMeter::Activity::kNone);
  report.set_compute_seconds(absl::ToDoubleSeconds(sums_.meter.compute));
  report.set_wait_seconds(absl::ToDoubleSeconds(sums_.meter.wait));
  report.set_eval_seconds(absl::ToDoubleSeconds(sums_.meter.evaluate));
  handlers_.on_report(std::move(report));
  ++epoch_;
  BeginEpoch();
}

pb::Report Trainer::TrainReport() const {
  pb::Report report;
  report.set_rank(options_.rank);
  report.set_data_epoch(epoch_);
  report.set_tick(tick_);
  report.set_train_samples(sums_.samples);
  report.set_train_loss_sum(sums_.loss_sum);
  report.set_train_correct(sums_.correct);
  report.set_train_seconds(absl::ToDoubleSeconds(sums_.train));
  report.set_max_staleness(sums_.max_staleness);
  return report;
}

void Trainer::Finish() {
  phase_ = Phase::kFinishing;
  client_->WhenAllAcknowledged([this] {
    client_->Leave(tick_, [this] {
      if (options_.rank != 0) {
        ReportFinished("");
        return;
      }
      dense_->Pull(
          DenseTable::kFinalTick, parameters_.mutable_floats(), [](absl::Span<const uint32_t>) {},
          [this](const PullResult&) { HashFinalWeights(); });
    });
  });
}

void Trainer::HashFinalWeights() {
  auto hash = std::make_shared<absl::StatusOr<std::string>>();
  env_->Offload([hash, workload = workload_,
                 weights = parameters_] { *hash = HashWeights(*workload, weights); },
                [this, hash, alive = std::weak_ptr<bool>(alive_)] {
                  if (alive.expired()) return;
                  if (hash->ok()) {
                    ReportFinished(**hash);
                  } else {
                    Fail(hash->status());
                  }
                });
}

void Trainer::ReportFinished(const std::string& weights_sha256) {
  phase_ = Phase::kFinished;
  const PsClient::Counters& counters = client_->counters();
  pb::Finished finished;
  finished.set_rank(options_.rank);
  finished.set_steps(tick_);
  finished.set_pushes_acked(counters.pushes_acked);
  finished.set_bytes_pushed(counters.bytes_pushed);
  finished.set_bytes_pulled(counters.bytes_pulled);
  if (!weights_sha256.empty()) finished.set_weights_sha256(weights_sha256);
  handlers_.on_finished(std::move(finished));
}

void Trainer::Fail(const absl::Status& status) {
  phase_ = Phase::kFinished;
  handlers_.on_error(status);
}

StepJob::Position Trainer::PositionOf(uint64_t tick) const {
  return {.epoch = epoch_, .index = tick - epoch_begin_};
}

// The position of tick_ + 1, which may be in the next epoch. Empty if there is nothing to read.
std::optional<StepJob::Position> Trainer::NextPosition() const {
  const pb::Training& training = options_.experiment.training();
  if (training.max_steps() > 0 && tick_ + 1 >= training.max_steps()) return std::nullopt;
  StepJob::Position next = PositionOf(tick_ + 1);
  if (tick_ + 1 >= epoch_end_) {
    if (epoch_ + 1 >= training.epochs()) return std::nullopt;
    next = {.epoch = uint64_t{epoch_} + 1, .index = 0};
  }
  if (sampler_.rows(next.index) == 0) return std::nullopt;
  return next;
}

void Trainer::NoteStaleness(const PullResult& result) {
  if (result.min_clock >= tick_) return;
  const uint64_t staleness = tick_ - result.min_clock;
  sums_.max_staleness = std::max(sums_.max_staleness, staleness);
  max_staleness_ = std::max(max_staleness_, staleness);
}

pb::Heartbeat Trainer::Progress() const {
  pb::Heartbeat heartbeat;
  heartbeat.set_tick(tick_);
  heartbeat.set_data_epoch(
      std::min(epoch_, std::max(1u, options_.experiment.training().epochs()) - 1));
  if (!running_) heartbeat.set_waiting_for(client_->WaitingFor());
  if (sums_.samples > 0) {
    heartbeat.set_loss(sums_.loss_sum / static_cast<double>(sums_.samples));
  }
  heartbeat.set_samples(samples_total_);
  heartbeat.set_staleness(max_staleness_);
  heartbeat.set_pushes_acked(client_->counters().pushes_acked);
  heartbeat.set_rank(options_.rank);
  heartbeat.set_compute_seconds(absl::ToDoubleSeconds(compute_before_ + sums_.meter.compute));
  return heartbeat;
}

}  // namespace parley
