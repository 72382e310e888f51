// Evaluator: loss and accuracy over a slice of a data set, a batch at a time off the loop, so that
// the node answers and beats in between. With an embedding it pulls the rows of each batch.
//
// Thread-safety: as Env, everything on the loop.
#ifndef PARLEY_WORKER_EVALUATOR_H_
#define PARLEY_WORKER_EVALUATOR_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "ps/base/buffer.h"
#include "ps/base/dense_layout.h"
#include "ps/base/env.h"
#include "worker/client/sparse_table.h"
#include "worker/embedding.h"
#include "worker/workload.h"

namespace parley {

struct EvalSums {
  uint64_t samples = 0;
  double loss_sum = 0;
  uint64_t correct = 0;
};

class Evaluator {
 public:
  using Done = absl::AnyInvocable<void(absl::StatusOr<EvalSums>)>;

  // `env` and `rows` must outlive this. `rows`: the table of the workload's embedding; null if it
  // has none. `batch_rows` >= 1.
  Evaluator(Env* env, std::shared_ptr<Workload> workload, SparseTable* rows, uint64_t batch_rows);

  // Samples slice.begin .. slice.end - 1 of the workload's training or test set with `parameters`,
  // float32 [elements], and rows of `tick`. Nobody else may use the workload until `done`. One at a
  // time. The sums are added up in the order of the samples.
  void Run(bool train, Range slice, uint64_t tick, Buffer parameters, Done done);

 private:
  // Held by the work, which may outlive the evaluator.
  struct Pass {
    std::shared_ptr<Workload> workload;
    const Dataset* set = nullptr;
    uint64_t tick = 0;
    Buffer parameters;
    uint64_t next = 0, end = 0, batch_rows = 1;
    EvalSums sums;
    absl::Status status;
    std::vector<uint64_t> ids;
    std::vector<float> x;
    std::vector<int32_t> labels;
    // With an embedding.
    std::vector<uint64_t> raw_keys;
    KeyBatch keys;
    std::vector<float> rows;  // [keys, dim]
    void Load();
    absl::Status Compute();
  };
  void Next();
  void PullRows();
  void Compute();

  Env* const env_;
  const std::shared_ptr<Workload> workload_;
  SparseTable* const rows_;
  const uint64_t batch_rows_;
  std::shared_ptr<Pass> pass_;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // for late callbacks
  Done done_;
};

}  // namespace parley

#endif  // PARLEY_WORKER_EVALUATOR_H_
