// HostedPartition: one partition on its owner, dense or sparse - what a push or a pull meets after
// the network.
//
//   push -> replay guard -> aggregator -> [norm over all partitions] -> update -> consistency
//   clocks; pull -> consistency policy -> weights, encoded if the table says so
//
// Owned by one loop; not thread-safe. Knows no network and no time. Throws std::bad_alloc: out of
// CheckPush and Read it is as it was, out of anything else half an update may be done, and the
// partition is not to be used any more.
#ifndef PARLEY_PS_SERVER_HOSTED_PARTITION_H_
#define PARLEY_PS_SERVER_HOSTED_PARTITION_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "proto/cluster.pb.h"
#include "proto/wire.pb.h"
#include "ps/base/buffer.h"
#include "ps/codec/payload_codec.h"
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

struct PushCounters {
  uint64_t accepted = 0, applied = 0, dropped = 0, duplicate = 0;
};

class HostedPartition {
 public:
  // A pull with this tick waits until every worker has left.
  static constexpr uint64_t kAfterAllLeft = ~uint64_t{0};

  // Asked for the norm of a group, with this partition's share; answered by OnNorm.
  using NormRequest =
      absl::AnyInvocable<void(uint32_t partition, NormGroup group, double sum_of_squares)>;

  struct Setup {
    uint32_t table = 0;
    uint32_t index = 0;
    bool sparse = false;
    bool evicts = false;  // rows come or go at the end of steps
    pb::Consistency consistency;
    std::vector<uint32_t> worker_incarnations;  // by rank
    // These outlive the partition.
    const Optimizer* clip = nullptr;           // clips by norm; null: no clipping by norm
    const PayloadCodec* pull_codec = nullptr;  // null: float32
    ServerProbe* probe = nullptr;              // may be null
    PushCounters* counters = nullptr;
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

  // Takes it, or recognises it as seen before; afterwards it may be acknowledged. Applies whatever
  // is complete. `values` are float32 [part.count()]. REQUIRES: CheckPush was OK, and CheckKeys.
  absl::Status TakePush(const pb::FrameHeader& header, const pb::Part& part, Buffer keys,
                        Buffer values);

  // The total over all partitions for a group this partition has asked for.
  void OnNorm(NormGroup group, double total);

  // `worker` pushes no tick >= after_tick. Asked twice, answered twice, done once.
  void OnLeave(uint32_t worker, uint64_t after_tick);

  bool MayRead(uint64_t tick) const;
  // What a reader of `tick` waits for: "worker 1 to push step 392".
  std::string WaitsFor(uint64_t tick) const;
  // What a reader of these keys (dense: none) that holds asked.base_version() gets to read: fills
  // every field of `answer`, and returns the values as they travel; empty if there are none. Values
  // for kAfterAllLeft are the true ones, in float32.
  Buffer Read(uint32_t worker, uint64_t tick, const pb::Part& asked, const Buffer& keys,
              pb::Part* answer);

  // As TablePartition's.
  absl::Status CheckKeys(KeyList keys) const { return values_->CheckKeys(keys); }
  uint64_t values(uint64_t keys) const { return values_->values(keys); }
  void AddCounts(pb::ServerCounts::Rows* rows) const { values_->AddCounts(rows); }

  uint32_t index() const { return setup_.index; }
  uint32_t workers() const { return policy_.workers(); }

 private:
  struct PendingStep {
    CompleteStep step;
    NormGroup group;
    double inverse_weight = 0;
    std::optional<double> norm;  // sum of squares over all partitions, once known
  };

  absl::Status CheckSize(const pb::FrameHeader& header, const pb::Part& part) const;
  absl::Status CheckWithoutTick(const pb::FrameHeader& header) const;
  void ApplyWithoutTick(const pb::FrameHeader& header, const pb::Part& part, const Buffer& keys,
                        const Buffer& values);
  void CollectGradients(const CompleteStep& step);
  void Advance();
  void ApplyReady();
  void Apply(PendingStep& pending);
  void UpdateWith(const StepInfo& info);
  void LetGo();
  Buffer Encoded(Buffer raw, pb::Part* answer);

  const Setup setup_;
  std::unique_ptr<TablePartition> values_;
  ReplayGuard guard_;
  std::unique_ptr<Aggregator> aggregator_;
  ConsistencyPolicy policy_;
  NormRequest request_norm_;
  std::deque<PendingStep> pending_;      // complete, in order, but their norm is not known yet
  std::set<uint32_t> leaving_;           // have said so, but still have gradients in pending_
  std::vector<GradientView> gradients_;  // scratch
  std::optional<PublishedWeights> published_;  // with a pull codec that keeps a residual
  // Dense, with any other pull codec: encoded once a version, for all readers.
  Buffer encoded_;
  std::optional<uint64_t> encoded_version_;
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_HOSTED_PARTITION_H_
