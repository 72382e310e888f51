// HostedPartition: one partition on its owner - what a push or a pull meets after the network.
//
//   push -> replay guard -> aggregator -> [norm over all partitions] -> update -> consistency
//   clocks pull -> consistency policy -> weights
//
// Owned by one loop; not thread-safe. Knows no network and no time.
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
#include "ps/server/server_probe.h"
#include "ps/sync/aggregator.h"
#include "ps/sync/consistency.h"
#include "ps/sync/replay_guard.h"
#include "ps/table/dense_partition.h"

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
    pb::Consistency consistency;
    std::vector<uint32_t> worker_incarnations;  // by rank
    const Optimizer* optimizer = nullptr;       // outlives this, as the others
    ServerProbe* probe = nullptr;               // may be null
    PushCounters* counters = nullptr;
  };
  HostedPartition(const pb::TableSpec& table, const DenseLayout& layout, Setup setup,
                  BufferPool* pool, NormRequest request_norm);

  // Whether this part of a push may be taken; changes nothing, so that a push is checked as a whole
  // first. Errors as ReplayGuard::Check, and kInvalidArgument for a wrong size or tick.
  absl::Status CheckPush(const pb::FrameHeader& header, const pb::Part& part) const;

  // Takes it, or recognises it as seen before; afterwards it may be acknowledged. Applies whatever
  // is complete. REQUIRES: CheckPush was OK.
  absl::Status TakePush(const pb::FrameHeader& header, const pb::Part& part, Buffer gradient);

  // The total over all partitions for a group this partition has asked for.
  void OnNorm(NormGroup group, double total);

  // `worker` pushes no tick >= after_tick. Asked twice, answered twice, done once.
  void OnLeave(uint32_t worker, uint64_t after_tick);

  bool MayRead(uint64_t tick) const;
  // What a reader of `tick` waits for: "worker 1 to push step 392".
  std::string WaitsFor(uint64_t tick) const;
  // The weights, and what they are: fills count, version and min_clock of `part`.
  Buffer Read(uint32_t worker, uint64_t tick, pb::Part* part);

  uint32_t index() const { return setup_.index; }
  uint64_t size() const { return dense_.size(); }
  uint32_t workers() const { return policy_.workers(); }

 private:
  struct PendingStep {
    CompleteStep step;
    NormGroup group;
    double inverse_weight = 0;
    std::optional<double> norm;  // sum of squares over all partitions, once known
  };

  void Advance();
  void ApplyReady();
  void Apply(PendingStep& pending);
  void LetGo();

  const Setup setup_;
  DensePartition dense_;
  ReplayGuard guard_;
  std::unique_ptr<Aggregator> aggregator_;
  ConsistencyPolicy policy_;
  NormRequest request_norm_;
  std::deque<PendingStep> pending_;      // complete, in order, but their norm is not known yet
  std::set<uint32_t> leaving_;           // have said so, but still have gradients in pending_
  std::vector<const float*> gradients_;  // scratch
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_HOSTED_PARTITION_H_
