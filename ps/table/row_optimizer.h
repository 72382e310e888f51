// RowOptimizer: an optimizer's rule for the rows of a sparse table, and how such a row lies in
// memory.
//
// Only rows that a step brings gradients for are touched ("lazy"). Where a rule looks at the number
// of updates (Adam's bias correction, Adagrad's lr_decay, the first step of a dampened momentum) it
// is the row's own, kept beside it: a row that appears late is corrected as one that was there from
// the start, and the bits do not depend on how the table is cut into partitions.
//
// Thread-safety: const after construction but for a table of scalars that grows; used by one loop.
#ifndef PARLEY_PS_TABLE_ROW_OPTIMIZER_H_
#define PARLEY_PS_TABLE_ROW_OPTIMIZER_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/cluster.pb.h"
#include "ps/table/optimizer_rules.h"
#include "ps/table/row_kernels.h"
#include "ps/table/schedule.h"

namespace parley {

// Bytes from the begin of a row; what a rule or an option does not need takes none and is kNone.
struct RowFormat {
  static constexpr uint32_t kNone = ~uint32_t{0};

  uint32_t dim = 0;
  RowStorage storage = RowStorage::kFloat32;
  uint32_t weight_bytes = 0;        // without padding
  uint32_t slots = 0;               // float32 [slots, dim]
  uint32_t slots_at = 0;            // the weights' end, rounded up to 4
  uint32_t accumulator_at = kNone;  // float: kRowAdagrad
  uint32_t updates_at = kNone;      // uint32: updates of this row
  uint32_t tick_at = kNone;         // uint32: low bits of the last tick it was pushed to; eviction
  uint32_t bytes = 0;               // of a row; a multiple of 4
};

class RowOptimizer {
 public:
  // kInvalidArgument names the field of table.optimizer(), its value and what is allowed.
  // REQUIRES: SparseLayout::Create(table) is OK.
  static absl::StatusOr<RowOptimizer> Create(const pb::TableSpec& table);

  const RowFormat& format() const { return format_; }

  // Values /* [dim] */ that the row of `key` begins with, as float32 before they are rounded to the
  // row's type: uniform in [-bound, bound) from Philox of (table seed, key), or 0.
  void InitialValues(uint64_t key, float* values) const;
  // A new row: initial weights and slots, no updates.
  void InitialiseRow(uint64_t key, uint8_t* row) const;
  // What reading a row of `key` would give if there were one that nobody has pushed to.
  void ReadInitial(uint64_t key, float* values /* [dim] */) const;

  // What the kernels need for a step, but for rows, gradients and scalars.
  RowUpdatePass Pass(double inverse_weight) const;
  // The scalars of step `step` for rows in their first update and for those beyond it; where
  // format().updates_at is set, ForUpdate makes them those of a row's own count.
  struct StepScalars {
    double lr = 0;
    RuleScalars first, later;
  };
  StepScalars ScalarsOfStep(uint64_t step) const;
  // `update`: of the row, this one included; from 1.
  RuleScalars ForUpdate(const StepScalars& step, uint32_t update);

  // Beside the object itself; at most kMaxBiases entries of 16 bytes.
  uint64_t memory_bytes() const { return biases_.capacity() * sizeof(Bias); }

 private:
  // What depends on a row's count alone.
  struct Bias {
    double divisor = 1;  // of the learning rate
    float bias2_sqrt = 1;
  };
  // Remembered, by each partition; beyond, they are made anew.
  static constexpr uint32_t kMaxBiases = 2048;

  RowOptimizer() = default;
  Bias BiasOf(uint32_t update) const;

  pb::Optimizer config_;
  LearningRates learning_rates_;
  RuleNumbers numbers_;
  RowFormat format_;
  UpdateRule rule_ = UpdateRule::kSgd;
  uint64_t seed_ = 0;
  float bound_ = 0;  // 0: rows begin as zeros
  double beta1_ = 0, beta2_ = 0, lr_decay_ = 0;
  std::vector<Bias> biases_;  // [update - 1], grown as rows get older
};

}  // namespace parley

#endif  // PARLEY_PS_TABLE_ROW_OPTIMIZER_H_
