// StepJob: the computing of one training step after another, off the loop.
//
// A run goes through as many forward stages as have their weights, without ever waiting for more;
// it is started again when more has arrived. The run that finishes forward goes on through
// backward, telling which stages are done, and last reads the batch of the next step, in the time
// in which this step's gradients and the next step's weights are on their way. On an asynchronous
// device backward is enqueued as a whole; the next batch is then read, and copied to the device,
// piece by piece while nothing is done that could be told.
//
// With an embedding the model's input is looked up in rows that must be there before a run may
// begin, and the gradients of the rows come with the last Backward. Which rows a batch needs is
// known once it is read; so that they can be asked for early, the next batch is then not read by
// the run but by a Load of its own, while the rows of this one are on their way.
//
// Thread-safety: between Prepare and the end of a run only SetReady may be called, and, if the run
// reads no batch ahead, loaded and keys; the loop orders the rest by starting a run or a Load only
// when the last has ended. Holds all it touches, so that a run may
// outlive the trainer.
#ifndef PARLEY_WORKER_STEP_JOB_H_
#define PARLEY_WORKER_STEP_JOB_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "models/model.h"
#include "ps/base/buffer.h"
#include "worker/data/sampler.h"
#include "worker/embedding.h"
#include "worker/workload.h"

namespace parley {

class StepJob {
 public:
  struct Position {  // of a tick in the data
    uint64_t epoch = 0;
    uint64_t index = 0;
    bool operator==(const Position&) const = default;
  };
  struct Step {
    uint64_t tick = 0;
    Position position;
    std::optional<Position> next;  // whose batch to read ahead
    Buffer parameters;             // float32 [elements], filled as stages become ready
    Buffer gradients;              // float32 [elements], written
    // With an embedding, of the batch's keys:
    Buffer rows;           // float32 [keys, dim], filled
    Buffer row_gradients;  // float32 [keys, dim], written
  };
  // What on_backward is called with when row_gradients are complete; after all stages.
  static constexpr size_t kEmbedding = ~size_t{0};

  // Batches are made in memory of `pool`, which must outlive this; null: of a pool of its own.
  StepJob(std::shared_ptr<Workload> workload, const Sampler::Options& sampler, BufferPool* pool)
      : workload_(std::move(workload)),
        sampler_(sampler),
        pool_(pool != nullptr ? pool : &own_pool_) {}

  // REQUIRES: the step before is finished, and this one has at least one row.
  void Prepare(Step step);

  // Stages 0 .. stages-1 may go forward. Any time, also during a run.
  void SetReady(size_t stages) { ready_.store(stages, std::memory_order_release); }

  // Off the loop. `on_backward` is called on the running thread after each stage's Backward.
  void Run(absl::FunctionRef<void(size_t stage)> on_backward);

  // Off the loop, between runs: reads the batch of `position`, unless it is there. The one read
  // before stays, older ones go.
  void Load(Position position);
  // Not during a Load: whether the batch of `position` is there.
  bool loaded(Position position) const { return Find(position) != nullptr; }
  // With an embedding: its keys, which stay until the batch after the next is read.
  // REQUIRES: loaded(position), and the same.
  const KeyBatch& keys(Position position) const { return Find(position)->keys; }

  size_t forward_done() const { return forward_done_; }  // stages of the current step
  bool finished() const { return finished_; }            // or failed
  const absl::Status& status() const { return status_; }
  const BatchResult& result() const { return result_; }  // valid when finished
  uint64_t rows() const { return step_rows_; }
  // Of the step, from its first on_backward until the next is prepared.
  const std::vector<uint64_t>& samples() const { return step_batch_->ids; }

 private:
  struct Batch {
    std::optional<Position> position;
    WorkerBatch rows;
    uint64_t read = 0;  // of its rows
    Buffer values;      // float32 [rows, shape]
    Buffer labels;      // int32 [rows]
    KeyBatch keys;
    Lookup lookup;
    BatchView View() const;
    int32_t* mutable_labels() { return reinterpret_cast<int32_t*>(labels.mutable_data()); }
  };
  const Batch* Find(Position position) const {
    for (const Batch& batch : batches_) {
      if (batch.position == position) return &batch;
    }
    return nullptr;
  }
  bool complete() const { return batches_[last_].read == batches_[last_].rows.ids.size(); }
  absl::Status Begin();
  absl::Status RunStages(absl::FunctionRef<void(size_t stage)> on_backward);
  absl::Status Backward(absl::FunctionRef<void(size_t stage)> on_backward);
  void Open(Position position);
  bool ReadSome(uint64_t rows);
  bool ReadAhead();

  const std::shared_ptr<Workload> workload_;
  Sampler sampler_;
  std::atomic<size_t> ready_{0};

  // Of the run.
  Step step_;
  size_t forward_done_ = 0;
  uint64_t step_rows_ = 0;
  const WorkerBatch* step_batch_ = nullptr;  // in batches_
  bool begun_ = false;
  bool finished_ = true;
  absl::Status status_;
  BatchResult result_;

  // The two batches that were read last, in turn: one for the step, one ahead.
  Batch batches_[2];
  int last_ = 0;
  std::vector<uint64_t> raw_keys_;  // scratch
  BufferPool own_pool_;
  BufferPool* const pool_;
};

}  // namespace parley

#endif  // PARLEY_WORKER_STEP_JOB_H_
