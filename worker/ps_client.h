// PsClient: a worker's way to the parameters; the only place in it that talks to servers.
//
// A pull fetches every partition of the table into one arena, a push sends slices of a gradient
// arena without copying them. Both are grouped by the shard that owns the partitions, in the order
// of first use, into messages of at most max_request_bytes (one partition at least). Each shard has
// one queue, so that on every shard a pull comes after the pushes that were asked for before it.
//
// Exactly once: every push of a partition has a sequence, from 1, and says below which one all are
// acknowledged; Rpc resends a message as it is until it is answered. At most kMaxUnacknowledged
// sequences are open per partition, half of what the server's replay guard can tell apart
// (ReplayGuard::kWindow is 1024).
//
// The first error, a server's or a deadline's, goes to on_error; after it nothing is called back.
// Thread-safety: as Env, everything on the loop. Callbacks may call any method.
#ifndef PARLEY_WORKER_PS_CLIENT_H_
#define PARLEY_WORKER_PS_CLIENT_H_

#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "proto/cluster.pb.h"
#include "ps/base/buffer.h"
#include "ps/base/dense_layout.h"
#include "ps/net/rpc.h"

namespace parley {

class PsClient {
 public:
  // Partitions named in one message; well below what a transport takes.
  static constexpr size_t kMaxParts = 4096;
  static constexpr uint64_t kMaxUnacknowledged = 512;
  // Messages of a kind (push, pull) on their way to one shard; the rest waits its turn. Enough to
  // keep a link busy, few enough not to fill the transport's queue.
  static constexpr int kMaxInFlight = 16;
  // A pull of this tick is answered once every worker has left.
  static constexpr uint64_t kFinalTick = std::numeric_limits<uint64_t>::max();

  struct Options {
    uint64_t max_request_bytes = uint64_t{1} << 20;
    absl::Duration progress_timeout = absl::Seconds(60);  // for any one message to be answered
    absl::AnyInvocable<void(const absl::Status&)> on_error;
    absl::AnyInvocable<void(const std::string&)> log;  // one line; empty = silent
  };
  struct Counters {
    uint64_t pushes_acked = 0;  // parts
    uint64_t bytes_pushed = 0;  // payload, acknowledged
    uint64_t bytes_pulled = 0;  // payload, answered
  };
  struct PullResult {
    uint64_t min_clock = 0;  // the smallest over all partitions: ticks every live worker has closed
    uint64_t min_version = 0, max_version = 0;  // updates applied to the partitions
  };

  // For the table `table` of the assignment. `rpc` must outlive this and have its identity; the
  // transport must know the shards. kInvalidArgument: the assignment lacks the table, or its map
  // does not cover it.
  static absl::StatusOr<std::unique_ptr<PsClient>> Create(Rpc* rpc,
                                                          const pb::Assignment& assignment,
                                                          uint32_t table, Options options);
  ~PsClient();
  PsClient(const PsClient&) = delete;
  PsClient& operator=(const PsClient&) = delete;

  const DenseLayout& layout() const { return layout_; }

  // Fetches all partitions for `tick` into `parameters`, float32 [layout().elements()], which must
  // stay valid until `done` or the end of this client. `on_arrived` runs for each answer, with the
  // partitions that are in `parameters` now. One pull at a time. A pull of kFinalTick asks again
  // when its deadline passes, since others may have long to go; the scheduler watches over them.
  using OnArrived = absl::AnyInvocable<void(absl::Span<const uint32_t> partitions)>;
  using OnPulled = absl::AnyInvocable<void(const PullResult&)>;
  void Pull(uint64_t tick, float* parameters, OnArrived on_arrived, OnPulled done);

  // Sends the gradients of `partitions` for `tick`: slices of `gradients`, laid out as the table.
  // With weight 0 (no samples) there is no payload and `gradients` may be empty.
  void Push(uint64_t tick, double weight, absl::Span<const uint32_t> partitions,
            const Buffer& gradients);

  // Calls back once no push is waiting or unacknowledged. One at a time.
  void WhenAllAcknowledged(absl::AnyInvocable<void()> done);

  // Tells every shard that no tick >= after_tick will be pushed. REQUIRES: all is acknowledged.
  void Leave(uint64_t after_tick, absl::AnyInvocable<void()> done);

  // The request that has waited longest, "pull of step 7 from server 1 shard 0 (tcp://...)"; empty
  // if there is none.
  std::string WaitingFor() const;

  const Counters& counters() const { return counters_; }

 private:
  struct Message;  // a push or a pull that is queued or on its way
  struct Shard {
    Shard() = default;
    Shard(Shard&&) = default;  // and so no copies, which std::deque would claim to allow
    NodeId node = kNoNode;
    std::string name;  // "server 1 shard 0 (tcp://...)"
    std::deque<std::unique_ptr<Message>> queue;
    int pushes_in_flight = 0, pulls_in_flight = 0;
  };
  // What the replay guard of a partition knows of us.
  struct Stream {
    uint64_t next_sequence = 1;
    uint64_t acked_below = 1;                   // all below are acknowledged
    absl::flat_hash_set<uint64_t> acked_ahead;  // acknowledged, but not all before them
  };
  struct PullState {
    bool active = false;
    uint64_t tick = 0;
    float* parameters = nullptr;
    uint32_t missing = 0;  // partitions
    PullResult result;
    OnArrived on_arrived;
    OnPulled done;
  };

  PsClient(Rpc* rpc, DenseLayout layout, uint32_t table, uint64_t epoch, Options options);
  absl::Status AddShards(const pb::PartitionMap& map);
  std::vector<std::vector<uint32_t>> Group(const std::vector<uint32_t>& partitions) const;
  void Enqueue(uint32_t shard, std::unique_ptr<Message> message);
  void SendQueued(uint32_t shard);
  bool MaySend(const Shard& shard, const Message& message) const;
  void Send(uint32_t shard, std::unique_ptr<Message> message);
  Frame MakeFrame(const Message& message);
  void OnAnswer(uint32_t shard, uint64_t message_id, absl::StatusOr<Frame> answer);
  void OnPushed(const Message& message);
  void OnPullAnswer(const Message& message, const Frame& answer);
  absl::Status CheckPullAnswer(const Message& message, const Frame& answer) const;
  void Acknowledge(uint32_t partition, uint64_t sequence);
  void MaybeAllAcknowledged();
  std::string Describe(const Shard& shard, const Message& message) const;
  void Fail(const absl::Status& status);

  Rpc* const rpc_;
  const DenseLayout layout_;
  const uint32_t table_;
  const uint64_t epoch_;
  Options options_;
  std::vector<Shard> shards_;
  std::vector<uint32_t> owner_;  // by partition: index into shards_
  std::vector<Stream> streams_;  // by partition

  // In order of sending, so the front has waited longest.
  struct InFlight;
  std::deque<InFlight> in_flight_;
  uint64_t next_message_ = 1;
  uint64_t pushes_open_ = 0;  // messages queued or in flight
  PullState pull_;
  absl::AnyInvocable<void()> on_all_acknowledged_;
  uint32_t leaves_missing_ = 0;
  absl::AnyInvocable<void()> on_left_;
  bool failed_ = false;
  Counters counters_;
};

}  // namespace parley

#endif  // PARLEY_WORKER_PS_CLIENT_H_
