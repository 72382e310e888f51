// SparsePartition: one hash range of a sparse table, rows of weights and optimizer state by key.
//
// Updates and reads go in batches: look up, then update or copy, so that the misses of a batch
// overlap. See docs/decisions/010-sparse-rows.md. Owned by one loop; not thread-safe (the Buffers
// that Read returns are).
#ifndef PARLEY_PS_TABLE_SPARSE_PARTITION_H_
#define PARLEY_PS_TABLE_SPARSE_PARTITION_H_

#include <memory>
#include <optional>
#include <string>

#include "ps/base/sparse_layout.h"
#include "ps/table/candidate_keys.h"
#include "ps/table/key_merger.h"
#include "ps/table/row_optimizer.h"
#include "ps/table/row_table.h"
#include "ps/table/table_partition.h"
#include "ps/table/touched_rows.h"

namespace parley {

class StateArrays;

class SparsePartition final : public TablePartition {
 public:
  // Keys that may wait for their row, over all partitions of a table; at least kMinCandidates in
  // one.
  static constexpr uint64_t kMaxCandidates = uint64_t{1} << 22;
  static constexpr uint64_t kMinCandidates = 4096;
  // An age sweep looks at this part of the rows in a step, or at all if max_age is small.
  static constexpr uint64_t kMaxSweepSteps = 256;

  // Errors as of TablePartition::Create. `pool` as there.
  static absl::StatusOr<std::unique_ptr<SparsePartition>> Create(const pb::TableSpec& table,
                                                                 uint32_t index, BufferPool* pool);

  uint64_t values(uint64_t keys) const override { return keys * layout_.dim(); }
  absl::Status CheckKeys(KeyList keys) const override;
  void Apply(absl::Span<const GradientView> gradients, StepInfo info) override;
  double SumOfSquares(absl::Span<const GradientView> gradients, double inverse_weight) override;
  Buffer Read(KeyList keys) override;
  // max_age: a row that was last pushed to in tick t is dropped by one of the calls for ticks
  // t + max_age .. t + max_age + n - 1, where n = max_age / 4 (rounded down to a power of two; 1 to
  // kMaxSweepSteps) and which one depends on the key's hash alone. max_rows: a call that finds more
  // rows drops the longest unused, of equally old ones those with the smallest hash, until a
  // sixteenth of max_rows is free. min_frequency: see CandidateKeys.
  void EndStep(uint64_t tick) override;
  uint64_t version() const override { return version_; }
  uint64_t memory_bytes() const override;

  // Of a single gradient a copy, keys that repeat included; else each key once, in order of first
  // occurrence.
  SummedGradient Sum(absl::Span<const GradientView> gradients) override;
  // Arrays, rows ascending by the hash of their key, so that equal partitions make equal bytes:
  //   keys              U64 [rows]
  //   rows              F32, F16 or BF16 [rows, dim]: the weights as they are stored
  //   slot0, slot1 ...  F32 [rows, dim], as the optimizer has them
  //   accumulators      F32 [rows]: row_adagrad's
  //   updates           U32 [rows]: updates of the row, where the optimizer counts them
  //   ticks             U32 [rows]: the last tick it was pushed to; with max_age or max_rows
  //   counters          U64 [2]: rows evicted; the largest tick that has ended
  //   candidates        U64 [n]: keys that have no row yet; with min_frequency
  //   candidate_counts  U32 [n]: how often they were pushed to
  //   removed           U64 [n]: of changes alone: keys that are gone
  TableState Save() override;
  // Changes have all of the arrays, those of rows for the rows touched and, since that is cheaper
  // to know (see TouchedRows), a few others. Everything, and not marked as changes, if MarkSaved
  // was not called since the last Load, or if more is gone than there were rows.
  TableState SaveChanges() override;
  void MarkSaved() override;
  // Rows, candidates and removed keys may come in any order. After an error everything is as it
  // was. Throws std::bad_alloc; then nobody may use the partition any more.
  absl::Status Load(const TableState& state) override;
  uint64_t Digest() const override;

  // Reads every row: for the end of a run, not for every heartbeat.
  void AddCounts(pb::ServerCounts::Rows* rows) const override;

 private:
  // What holds for all rows of one Apply.
  struct Step {
    RowUpdatePass pass;
    RowOptimizer::StepScalars scalars;
    uint32_t tick = 0;
  };

  SparsePartition(const pb::TableSpec& table, uint32_t index, SparseLayout layout,
                  RowOptimizer optimizer, BufferPool* pool);

  // One update of at most RowTable::kBatch rows, given as in RowUpdatePass.
  void UpdateBatch(Step& step, const uint64_t* hashes, uint32_t n, const float* const* gradients,
                   const uint32_t* first);
  // Creates what is missing in `row` /* [n] */ and may be created, then finds all again.
  void CreateMissing(uint32_t tick, const uint64_t* hashes, uint32_t n, uint8_t** row);
  // Marks rows as used in `tick`.
  void Touch(uint32_t tick, uint32_t n, uint8_t* const* row) const;
  void DropOld();
  void DropSurplus();
  uint32_t TickOf(const uint8_t* row) const;
  // For SaveChanges.
  void NoteDropped(uint64_t hash) {
    if (touched_.knows()) touched_.Remove(hash);
  }

  struct LoadedState;
  // What is saved beside the rows.
  void SaveTable(TableState* state);
  absl::Status CheckState(const TableState& state, LoadedState* loaded) const;
  // That keys are distinct and counts possible.
  absl::Status CheckLists(const StateArrays& arrays, LoadedState* loaded) const;

  const std::string table_;  // its name
  const uint32_t index_;
  const SparseLayout layout_;
  const pb::Eviction eviction_;
  BufferPool* const pool_;
  RowOptimizer optimizer_;
  const RowFormat format_;
  RowTable rows_;
  std::optional<CandidateKeys> candidates_;
  KeyMerger merger_;
  TouchedRows touched_;  // since MarkSaved
  uint64_t version_ = 0;
  uint64_t evicted_ = 0;
  uint64_t now_ = 0;  // the largest tick that has ended
};

}  // namespace parley

#endif  // PARLEY_PS_TABLE_SPARSE_PARTITION_H_
