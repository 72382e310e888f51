// Trainer: what a worker does from its assignment to its end, tick by tick.
//
//   for each epoch:
//     for each tick:   pull -> forward as weights arrive -> backward, pushing as gradients complete
//     if evaluating:   pull -> evaluate this worker's slices
//     report
//   all pushes acknowledged -> leave -> [rank 0: pull the final weights, hash them] -> finished
//
// With push_pull the pushes of a tick bring the weights of the next, partition by partition, while
// backward goes on; otherwise, and for the first tick of an epoch, the pull of a tick goes out as
// soon as all pushes of the tick before are queued, not acknowledged.
// Per tick and while the weights are there, one hand-over to another thread and back.
//
// With an embedding a tick also pulls the rows of its batch's keys before it computes, and pushes
// their gradients after the last Backward. The batch of the next tick is read while these rows are
// on their way, so that its rows are asked for right behind the push of this tick's gradients.
//
// A tick in which this worker has no samples (a small last batch) is pushed with weight 0 and no
// payload: the servers need to hear that nothing comes.
//
// One that takes the place of another begins with `start_tick`, wherever in an epoch that is: what
// a tick does depends on its number alone. Where it takes over at the end of an epoch, it evaluates
// and reports that epoch, since the other may have died before; reports of the same epoch count
// once.
//
// May be destroyed at any time. What it has off the loop goes on, on its own workload, in memory
// that it holds, and nobody looks at the result.
//
// Thread-safety: as Env, everything on the loop; computing goes through Env::Offload.
#ifndef PARLEY_WORKER_TRAINER_H_
#define PARLEY_WORKER_TRAINER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "proto/cluster.pb.h"
#include "proto/experiment.pb.h"
#include "ps/base/buffer.h"
#include "ps/base/env.h"
#include "worker/client/ps_client.h"
#include "worker/data/sampler.h"
#include "worker/epoch_meter.h"
#include "worker/evaluator.h"
#include "worker/stage_plan.h"
#include "worker/step_job.h"
#include "worker/worker_probe.h"
#include "worker/workload.h"

namespace parley {

class Trainer {
 public:
  struct Options {
    pb::Experiment experiment;  // resolved
    uint32_t rank = 0;
    uint32_t data_part = 0, data_parts = 1;
    uint64_t first_tick = 0;  // with which everybody began: that of a checkpoint, or 0
    uint64_t start_tick = 0;  // with which this one begins; past its last: it only finishes
    uint64_t skip_below = 0;  // ticks from start_tick up to here are pushed with weight 0, unpulled
    BufferPool* pool = nullptr;    // of the arenas; null: one of its own. Must outlive this
    WorkerProbe* probe = nullptr;  // may be null. Must outlive this
  };
  // All required; on_finished or on_error is the last to be called.
  struct Handlers {
    absl::AnyInvocable<void(pb::Report)> on_report;
    // Everything is done. rpc_retries is not filled in: the trainer does not see them.
    absl::AnyInvocable<void(pb::Finished)> on_finished;
    absl::AnyInvocable<void(const absl::Status&)> on_error;
  };

  // `env` and `client` must outlive this. REQUIRES: client->dense(kModelTable) has the
  // layout of the workload's model; with an embedding client->sparse(kEmbeddingTable) has its dim.
  Trainer(Env* env, PsClient* client, std::shared_ptr<Workload> workload, Options options,
          Handlers handlers);

  void Start();

  // For the next heartbeat: all but waiting_for while computing.
  pb::Heartbeat Progress() const;

 private:
  enum class Phase { kTraining, kEvaluating, kFinishing, kFinished };
  struct EpochSums {
    uint64_t samples = 0;
    double loss_sum = 0;
    uint64_t correct = 0;
    uint64_t max_staleness = 0;
    absl::Duration start, train;
    EpochMeter meter;
  };

  uint64_t TotalTicks() const;
  void BeginEpoch();
  void EnterEpoch();
  void BeginTick();
  void SkipTicks();
  void PushNothing();
  void MaybePullRows();
  void MaybeReadAhead();
  void Read(StepJob::Position position);
  bool Fuses() const;
  void OpenNextPull();
  void PushDense(double weight, absl::Span<const uint32_t> partitions);
  void OnArrived(uint64_t tick, absl::Span<const uint32_t> partitions);
  void OnPulled(uint64_t tick, const PullResult& result);
  void MaybeCompute();
  bool PrepareStep();
  void StartRun();
  void OnBackward(size_t stage);
  void MaybeEndTick();
  void OnRunDone();
  void EndTick();
  void MaybeEndEpoch();
  void Evaluate();
  void EvaluateTrain(pb::Report report);
  void FinishEpoch(pb::Report report);
  void Finish();
  void HashFinalWeights();
  void ReportFinished(const std::string& weights_sha256);
  void Fail(const absl::Status& status);

  StepJob::Position PositionOf(uint64_t tick) const;
  std::optional<StepJob::Position> NextPosition() const;
  pb::Report TrainReport() const;
  void NoteStaleness(const PullResult& result);
  void Spend(EpochMeter::Activity activity) { sums_.meter.Switch(env_->Now(), activity); }

  // Constant after construction.
  Env* const env_;
  PsClient* const client_;
  DenseTable* const dense_;
  SparseTable* const sparse_;  // of the embedding; null if there is none
  const std::shared_ptr<Workload> workload_;
  const Options options_;
  Handlers handlers_;
  BufferPool own_pool_;
  BufferPool* const pool_;
  BufferPool* const parameter_pool_;  // of weights and gradients of the dense table
  const Sampler sampler_;             // only for its counts; StepJob has one of its own
  const uint64_t ticks_per_epoch_;
  const uint64_t total_ticks_;
  const std::shared_ptr<const StagePlan> plan_;
  const std::shared_ptr<StepJob> job_;
  Buffer parameters_;  // one arena for the whole run

  Evaluator evaluator_;
  Phase phase_ = Phase::kTraining;
  uint32_t epoch_ = 0;
  uint64_t tick_ = 0;           // the next one to be completed
  uint64_t epoch_begin_ = 0;    // its first tick
  uint64_t epoch_end_ = 0;      // one past its last
  uint64_t samples_total_ = 0;  // trained on
  uint64_t max_staleness_ = 0;
  EpochSums sums_;                 // of this epoch
  absl::Duration compute_before_;  // in the epochs before it

  // The current tick.
  uint64_t rows_ = 0;
  bool prepared_ = false;  // the job has been given this tick
  bool pulled_ = false;    // all weights are there
  uint32_t pushed_ = 0;    // partitions
  ReadyStages ready_;
  // Of the next tick's pull, while it comes with this one's pushes.
  bool next_open_ = false;
  ReadyStages next_ready_;
  std::optional<PullResult> next_pulled_;
  Buffer gradients_;      // fresh for each tick: pushes refer to it until acknowledged
  bool running_ = false;  // a run of the job is off the loop
  bool reading_ = false;  // so is a Load of it, for an embedding; never both
  // With an embedding; without, as if all were there.
  bool rows_asked_ = false, rows_pulled_ = false, rows_pushed_ = false;
  const KeyBatch* keys_ = nullptr;     // the job's
  Buffer row_values_, row_gradients_;  // [keys, dim]

  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // for late callbacks
};

}  // namespace parley

#endif  // PARLEY_WORKER_TRAINER_H_
