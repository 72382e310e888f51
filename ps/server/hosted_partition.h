// HostedPartition: one partition on its owner, dense or sparse - what a push or a pull meets after
// the network.
//
//   push -> replay guard -> aggregator -> [norm over all partitions] -> update -> operation ->
//   durable: consistency clocks; pull -> consistency policy -> weights, encoded if the table says
//   so
//
// What changes it is an operation, numbered from 1 (decision 014). A primary with backups hands
// each to its OpSink, and the clocks of readers move when it is told that the operation is durable;
// without backups everything is durable at once and no operation is made. A backup is a
// HostedPartition that is given nothing but Load and ApplyOp; to promote it, call Resume and go on
// with pushes.
//
// Owned by one loop; not thread-safe. Knows no network and no time. Throws std::bad_alloc: out of
// CheckPush, Read and Save it is as it was, out of anything else half an update may be done, and
// the partition is not to be used any more.
#ifndef PARLEY_PS_SERVER_HOSTED_PARTITION_H_
#define PARLEY_PS_SERVER_HOSTED_PARTITION_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/cluster.pb.h"
#include "proto/wire.pb.h"
#include "ps/base/buffer.h"
#include "ps/base/table_state.h"
#include "ps/codec/payload_codec.h"
#include "ps/server/overwritten_values.h"
#include "ps/server/published_weights.h"
#include "ps/server/server_probe.h"
#include "ps/sync/aggregator.h"
#include "ps/sync/consistency.h"
#include "ps/sync/replay_guard.h"
#include "ps/table/table_partition.h"

namespace parley {

// Gradients that are clipped together: those of a step under BSP, of one worker's tick otherwise.
struct NormGroup {
  uint64_t tick = 0;
  uint32_t worker = 0;  // 0 under BSP
  auto operator<=>(const NormGroup&) const = default;
};

// Parts of pushes. Taken for the first time: accepted = applied + dropped + those still held.
struct PushCounters {
  uint64_t accepted = 0, applied = 0, dropped = 0, duplicate = 0;
  uint64_t superseded = 0;  // of ticks that the worker's predecessor had pushed; not in `accepted`
  double samples = 0;       // weight of what was applied
};

// A partition as of one operation: what a backup begins with.
struct PartitionSnapshot {
  uint64_t index = 0;        // of the last operation in it
  TableState values;         // the table's arrays, then the server's own, named "server..."
  std::string server_state;  // pb::HostedState
  uint64_t digest = 0;
};

class HostedPartition {
 public:
  // A pull with this tick waits until every worker has left.
  static constexpr uint64_t kAfterAllLeft = ~uint64_t{0};

  // Asked for the norm of a group, with this partition's share; answered by OnNorm.
  using NormRequest =
      absl::AnyInvocable<void(uint32_t partition, NormGroup group, double sum_of_squares)>;

  // Given every operation, in order, while there are backups; `sum` is what a STEP's one gradient
  // is, empty otherwise. May call OnDurable, but nothing else that changes the partition.
  using OpSink = absl::AnyInvocable<void(uint32_t partition, pb::ReplicaOp op, SummedGradient sum)>;

  // What the acknowledgement of a push waits for.
  struct Ticket {
    uint32_t worker = 0;
    std::optional<uint64_t> tick;  // the worker's clock is past it; and
    uint64_t index = 0;            // the operation is durable
  };

  struct Setup {
    uint32_t table = 0;
    uint32_t index = 0;
    bool sparse = false;
    bool evicts = false;  // rows come or go at the end of steps
    pb::Consistency consistency;
    std::vector<uint32_t> worker_incarnations;  // by rank
    uint32_t check_every = 0;                   // operations from one digest to the next; 0: never
    // Under BSP, and not with backup workers or eviction: what the last step overwrote may be read
    // again, for a worker that begins with it. Costs that much memory.
    bool keeps_overwritten = false;
    // These outlive the partition.
    const Optimizer* clip = nullptr;           // clips by norm; null: no clipping by norm
    const PayloadCodec* pull_codec = nullptr;  // null: float32
    ServerProbe* probe = nullptr;              // may be null
    PushCounters* counters = nullptr;  // may be null: sums over partitions, kept beside counts()
    BufferPool* pool = nullptr;
  };
  // REQUIRES: `values` is partition setup.index of the table; a pull codec that keeps a residual
  // only for a dense table under BSP.
  HostedPartition(std::unique_ptr<TablePartition> values, Setup setup, NormRequest request_norm);

  // Whether this part of a push may be taken; changes nothing, so that a push is checked as a whole
  // first. A part that was seen before is kDuplicate, and nothing else of it matters. A header
  // without a tick is an update that belongs to no step. Errors as ReplayGuard::Check, and
  // kInvalidArgument for a wrong size, number of keys or tick. The keys are CheckKeys' matter.
  absl::Status CheckPush(const pb::FrameHeader& header, const pb::Part& part,
                         ReplayGuard::Verdict* verdict) const;

  // Takes it, or recognises it as seen before, and says what its acknowledgement waits for. Applies
  // whatever is complete. `values` are float32 [part.count()]. REQUIRES: CheckPush was OK, and
  // CheckKeys.
  absl::StatusOr<Ticket> TakePush(const pb::FrameHeader& header, const pb::Part& part, Buffer keys,
                                  Buffer values);
  // Once true it stays so, while this is the primary. Without backups always.
  bool MayAcknowledge(const Ticket& ticket) const;

  // The total over all partitions for a group this partition has asked for.
  void OnNorm(NormGroup group, double total);
  // The totals of the last kKnownNorms groups here, where groups are a worker's: of each worker's,
  // in their order: for a partition that lacks one after a move. Nobody asks for the norm of a
  // group before what is kKnownNorms groups back is in its weights, so no partition gets further
  // ahead of another than that, whatever the mode, and none forgets what another still lacks.
  std::vector<std::pair<NormGroup, double>> KnownNorms() const;
  static constexpr ptrdiff_t kKnownNorms = 2;

  // `worker` pushes no tick >= after_tick. Asked twice, answered twice, done once.
  void OnLeave(uint32_t worker, uint64_t after_tick);
  // Whether a LEAVE of `worker` may be answered: the same holds for it as for pushes.
  bool MayAcknowledgeLeave(uint32_t worker) const;

  // `worker` has `incarnation` from now on: pushes of the one before are refused, what is held of
  // them stays, and what the new one pushes of ticks that are here already is superseded:
  // acknowledged and forgotten. The present incarnation again changes nothing.
  void OnWorker(uint32_t worker, uint32_t incarnation);
  // The lowest tick of which nothing of `worker` is here: neither held nor in the weights; with
  // backups, since what is held may be lost with this server: the lowest that is not durable.
  uint64_t Missing(uint32_t worker) const;

  // Operations. last_index counts them whether or not there are backups.
  void SetOpSink(OpSink sink) { op_sink_ = std::move(sink); }
  // Whether there is any backup, synced or not; false at first. From true to false everything is
  // durable. REQUIRES: a sink, if true.
  void SetReplicated(bool any_backup);
  uint64_t last_index() const { return last_index_; }
  uint64_t durable_index() const { return durable_index_; }
  // All backups that count have all operations up to `index`: clocks move, so readers may be let
  // in and pushes acknowledged. A lower index than before changes nothing.
  void OnDurable(uint64_t index);

  // Backup: what the primary did. `keys` and `values` are the STEP's one gradient. kDataLoss: the
  // digest is another, and the partition is not to be used. kInvalidArgument: not the operation
  // after last_index(), or one that cannot be; nothing has changed.
  absl::Status ApplyOp(const pb::ReplicaOp& op, Buffer keys, Buffer values);
  // This is the primary, by a new map: what is complete goes on, and norms that lack are asked for
  // (again). A backup that is promoted, and a primary that stays one.
  void Resume();

  // Everything there is, as of last_index(). The Buffers are references or copies and stay as they
  // are.
  PartitionSnapshot Save();
  // Becomes what was saved. kInvalidArgument or kDataLoss (the digest) names what is wrong; then
  // the partition is not to be used. REQUIRES: a partition of the same table, index and experiment,
  // just made.
  absl::Status Load(PartitionSnapshot snapshot);

  // The part of it that a checkpoint holds: the values, of sparse tables maybe only those changed
  // since MarkSaved, and what readers of published weights hold. server_state is left empty.
  TableState SaveCheckpoint(bool changes_only);
  void MarkSaved() { values_->MarkSaved(); }
  // Becomes what was saved, all rows first and then the changes, as the state that every worker's
  // tick `step` reads. Errors and REQUIRES as Load.
  absl::Status LoadCheckpoint(std::vector<TableState> states, uint64_t step);
  // Whether tick `step` of every worker that has not left is in the weights: so a checkpoint of
  // step s may be saved from HasApplied(s - 1) on, under BSP until HasApplied(s).
  bool HasApplied(uint64_t step) const { return applied_clock() > step; }
  // Ticks of every worker that has not left that are in the weights (not: durable).
  uint64_t applied_clock() const;
  // BSP: `hook` is called once, right before step `step` goes into the weights, if it has not yet;
  // it may Save. A new one replaces the one before; null: none. Never called in other modes.
  void BeforeStep(uint64_t step, absl::AnyInvocable<void()> hook);

  bool MayRead(uint64_t tick) const;
  // What a reader of `tick` waits for: "worker 1 to push step 392".
  std::string WaitsFor(uint64_t tick) const;
  // What a reader of these keys (dense: none) that holds asked.base_version() gets to read: fills
  // every field of `answer`, and returns the values as they travel; empty if there are none. Values
  // for kAfterAllLeft are the true ones, in float32. With Setup::keeps_overwritten a reader of the
  // tick that was applied last gets what it overwrote.
  Buffer Read(uint32_t worker, uint64_t tick, const pb::Part& asked, const Buffer& keys,
              pb::Part* answer);

  // As TablePartition's.
  absl::Status CheckKeys(KeyList keys) const { return values_->CheckKeys(keys); }
  uint64_t values(uint64_t keys) const { return values_->values(keys); }
  void AddCounts(pb::ServerCounts::Rows* rows) const { values_->AddCounts(rows); }

  const PushCounters& counts() const { return counts_; }
  // By rank: parts taken from the worker's present incarnation, superseded ones among them.
  const std::vector<uint64_t>& acknowledged() const { return acknowledged_; }
  // The same for equal values, published weights and clocks.
  uint64_t Digest() const;

  uint32_t index() const { return setup_.index; }
  uint32_t workers() const { return policy_.workers(); }

 private:
  struct PendingStep {
    CompleteStep step;
    NormGroup group;
    double inverse_weight = 0;
    double share = 0;            // of this partition, in the norm
    bool asked = false;          // for the norm, by the present map
    std::optional<double> norm;  // sum of squares over all partitions, once known
  };
  // What an operation does to the clocks once it is durable.
  struct Effect {
    uint64_t index = 0;
    std::optional<uint64_t> tick;  // closed for
    std::vector<uint32_t> closed;  // these workers
    std::optional<uint32_t> left;
  };

  // Of the present incarnation, and the predecessor's gradient of the tick is not in the weights:
  // whoever loses that has to take this one. So copies hear of it together with the step.
  struct Superseding {
    uint32_t worker = 0;
    uint64_t tick = 0, sequence = 0, acked_below = 0;
  };

  absl::Status CheckSize(const pb::FrameHeader& header, const pb::Part& part) const;
  absl::Status CheckWithoutTick(const pb::FrameHeader& header) const;
  bool IsSuperseded(uint32_t worker, uint64_t tick) const;
  void TakeSuperseded(const pb::FrameHeader& header, const pb::Part& part);
  void Count(uint64_t PushCounters::*counter, int64_t n = 1);
  void CountSamples(double weight);
  void ApplyWithoutTick(const pb::FrameHeader& header, const pb::Part& part, Buffer keys,
                        Buffer values);
  void CollectGradients(const CompleteStep& step);
  void Advance();
  void AskNorms();
  PendingStep* NextToAsk();
  void ApplyReady();
  void Apply(PendingStep& pending);
  void KeepOverwritten(uint64_t tick);
  void UpdateWith(const StepInfo& info);
  void LetGo();
  void RememberNorm(NormGroup group, double total);
  bool HasLeft(uint32_t worker) const;
  bool keeps_overwritten() const;
  Buffer Encoded(Buffer raw, pb::Part* answer);

  // Operations, in hosted_partition_ops.cc. Each counts one; without backups that is all.
  SummedGradient Together(const CompleteStep& step);
  void PublishStep(const PendingStep& pending, const StepInfo& info, SummedGradient sum);
  void PublishWithoutTick(const pb::FrameHeader& header, const pb::Part& part, const StepInfo& info,
                          SummedGradient sum);
  void PublishDrop(const pb::FrameHeader& header, const pb::Part& part, bool superseded);
  void PublishLeave(uint32_t worker);
  void Publish(pb::ReplicaOp op, SummedGradient sum, Effect effect);
  void Take(const Effect& effect);
  void NewIncarnation(uint32_t worker, uint32_t incarnation);
  ConsistencyPolicy AppliedPolicy() const;
  // At a backup.
  absl::Status CheckOp(const pb::ReplicaOp& op, const Buffer& keys, const Buffer& values) const;
  absl::Status ApplyStepOp(const pb::ReplicaOp& op, const Buffer& keys, const Buffer& values);
  void NoteDropped(uint32_t worker, uint64_t tick);
  void ForgetClosed(uint64_t tick, absl::Span<const uint32_t> workers);
  void LearnPush(const pb::ReplicaOp& op, const pb::ReplicaOp::Push& push);

  // State, in hosted_partition_state.cc.
  void SaveWorkers(const Aggregator::State& gradients, pb::HostedState* state) const;
  absl::Status LoadWorkers(const pb::HostedState& state, Aggregator::State* gradients);
  absl::Status LoadHeld(const pb::HostedState& state, const TableState& arrays,
                        Aggregator::State* gradients) const;
  absl::Status LoadPushes(const pb::HostedState& state);
  absl::Status LoadCounts(const pb::HostedState& state);

  const Setup setup_;
  std::unique_ptr<TablePartition> values_;
  ReplayGuard guard_;
  std::unique_ptr<Aggregator> aggregator_;
  ConsistencyPolicy policy_;  // of what is durable
  NormRequest request_norm_;
  OpSink op_sink_;
  bool replicated_ = false;
  uint64_t last_index_ = 0, durable_index_ = 0;
  std::deque<Effect> effects_;       // of operations that are not durable, in order
  std::deque<PendingStep> pending_;  // complete, in order, but their norm is not known yet
  std::map<NormGroup, double> known_norms_;
  bool asking_ = false;         // in AskNorms
  std::set<uint32_t> leaving_;  // have said so, but still have gradients in pending_
  // By rank: below, all is closed, by the worker's predecessors or by itself.
  std::vector<uint64_t> here_below_;
  std::vector<Superseding> superseding_;
  // (tick, worker): dropped as late, and what it was late for is not in the weights. A copy may
  // have the DROP without the STEP, which waited for its norm; as primary it closes the step anew.
  std::set<std::pair<uint64_t, uint32_t>> dropped_ahead_;
  PushCounters counts_;
  std::vector<uint64_t> acknowledged_;         // by rank
  std::vector<GradientView> gradients_;        // scratch
  std::optional<PublishedWeights> published_;  // with a pull codec that keeps a residual
  OverwrittenValues overwritten_;
  uint64_t hook_step_ = 0;
  absl::AnyInvocable<void()> before_step_;  // null: none is wanted
  // Dense, with any other pull codec: encoded once a version, for all readers.
  Buffer encoded_;
  std::optional<uint64_t> encoded_version_;
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_HOSTED_PARTITION_H_
