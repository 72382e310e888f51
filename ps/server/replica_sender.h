// ReplicaSender: the primary's side of one copy of one partition. Brings the copy up with a
// snapshot, sends it every operation after that, and knows what it has acknowledged.
//
//   state     | event                                  | action                        | next
//   ----------+----------------------------------------+-------------------------------+----------
//   kWaiting  | its turn has come                      | snapshot; SYNC, one at a time | kSyncing
//   kSyncing  | the last SYNC is acknowledged          | send what came meanwhile;     | kFollowing
//             |                                        | from now on it counts, always |
//   kSyncing  | refused, or no memory for it here      | anew, a little later; if it   | kWaiting
//             |                                        | counts, tell UNSYNCED         |
//   kWaiting, | UNSYNCED is believed, and nothing was  | it counts no more             | same
//   kSyncing  | told since                             |                               |
//   kFollowing| it has all that is durable             | tell SYNCED                   | same
//   kFollowing| its checksum differs, or it lacks state| tell DIVERGED; bring it up    | kWaiting
//   kFollowing| an operation cannot be sent, or taken  | bring it up: it has what it   | kWaiting
//             |                                        | had                           |
//   any but   | more than kMaxQueued operations wait   | forget them; bring it up      | kWaiting
//   kWaiting  |                                        |                               |
//   kSyncing  | or, before it counts, more bytes wait  | the same; it holds operations | kWaiting
//             | than the snapshot has                  | back until it is brought up   |
//   any       | refused as stale (the fence)           | again with the next map       | same
//
// A copy that counts holds operations back from being durable until it has acknowledged them. Once
// it has counted it goes on to, whatever a map says: the scheduler may hear late that it is
// complete, and promote it. While it is brought up anew it has what it had. If that is in vain it
// would stop the partition for good; so the scheduler is told UNSYNCED, and once it has saved that
// it will not promote the copy before it hears SYNCED again: news are numbered, and what is older
// than what it knows it does not believe. Only then the copy counts no more. If the scheduler has
// given the partition to another meanwhile it does not believe it, and the copy goes on to count:
// or this would acknowledge what the heir does not have. What does not answer is tried again until
// a new map drops it: who is dead is the scheduler's to say. Owned by one loop; not thread-safe.
#ifndef PARLEY_PS_SERVER_REPLICA_SENDER_H_
#define PARLEY_PS_SERVER_REPLICA_SENDER_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "proto/cluster.pb.h"
#include "ps/base/env.h"
#include "ps/net/rpc.h"
#include "ps/server/partition_places.h"
#include "ps/server/snapshot_stream.h"

namespace parley {

// One operation as it travels; the same one for all copies.
struct SharedOp {
  uint64_t index = 0;
  std::string body;  // pb::ReplicaOp
  uint64_t count = 0;
  Buffer keys, values;
  uint64_t bytes() const { return body.size() + keys.size() + values.size(); }
};

// What a sender needs of its shard. Calls come on the loop, never from within a call of the
// sender's but for Enqueue's.
class ReplicaHost {
 public:
  virtual ~ReplicaHost() = default;
  virtual uint64_t epoch() const = 0;  // of the shard's map
  virtual uint64_t NextAttempt() = 0;  // ascending over all senders of the shard
  // Everything of the partition, now. Throws std::bad_alloc; then nothing has changed.
  virtual PartitionSnapshot Snapshot(uint32_t table, uint32_t partition) = 0;
  virtual uint64_t durable_index(uint32_t table, uint32_t partition) const = 0;
  // Calls `begin` when few enough copies are being brought up; Done gives the turn back.
  virtual void AwaitTurn(std::weak_ptr<void> alive, Task begin) = 0;
  virtual void GiveTurnBack() = 0;
  // What is acknowledged, or who counts, may have changed.
  virtual void OnProgress(uint32_t table, uint32_t partition) = 0;
  virtual uint64_t NextNews() = 0;  // ascending likewise
  // Tells the scheduler; `done` once it has answered: whether it believes that from now on, for
  // good, or knows something newer, or a map without this copy. Not after `alive` has gone.
  using Told = absl::AnyInvocable<void(bool believed)>;
  virtual void TellNews(pb::BackupNews news, std::weak_ptr<void> alive, Told done) = 0;
  virtual void Log(const std::string& line) = 0;
};

class ReplicaSender {
 public:
  // Operations that wait for one copy; past that a snapshot is cheaper, and bounded.
  static constexpr size_t kMaxQueued = 1024;
  // Their bytes while nothing waits for the copy, or as many as the snapshot has if that is more.
  static constexpr uint64_t kMaxQueuedBytes = uint64_t{64} << 20;
  // Of them on their way; at least one.
  static constexpr size_t kMaxInFlight = 64;
  static constexpr uint64_t kMaxInFlightBytes = uint64_t{8} << 20;
  // Of an operation's keys, and of its values, in one buffer of a frame: transports refuse larger
  // ones than 80 MiB. What is not larger is never copied to be put together.
  static constexpr uint64_t kMaxPieceBytes = uint64_t{32} << 20;

  // All must outlive this.
  ReplicaSender(Env* env, Rpc* rpc, ReplicaHost* host, uint32_t table, uint32_t partition,
                const BackupPlace& place);
  ~ReplicaSender();
  ReplicaSender(const ReplicaSender&) = delete;
  ReplicaSender& operator=(const ReplicaSender&) = delete;

  void Enqueue(std::shared_ptr<const SharedOp> op);

  // A new map names the same copy.
  void OnMap(bool synced);

  NodeId node() const { return place_.node; }
  uint64_t since() const { return place_.since; }
  bool counts() const { return counts_ || holds_back_; }
  uint64_t acknowledged() const { return acknowledged_; }  // this and all before

 private:
  enum class State { kWaiting, kSyncing, kFollowing };
  struct Pending {
    std::shared_ptr<const SharedOp> op;
    std::optional<CallId> call;
    uint64_t epoch = 0;    // that it was sent with
    bool refused = false;  // as stale: waits for a newer map
  };

  void Restart(absl::Duration delay);
  bool IsFull(const SharedOp& op) const;
  void OnRefused(const absl::Status& status);
  void LetGo();
  void BeginSync();
  void SendSync();
  void OnSyncAnswer(const absl::Status& status);
  void OnSynced();
  void SendOps();
  void Send(Pending& pending);
  void OnOpAnswer(uint64_t index, const absl::Status& status);
  bool MakeMessage();
  void Tell(pb::BackupNews::What what, const std::string& text);
  void TellNext();
  void OnTold(bool believed);
  void MaybeTellSynced();
  void CancelCalls();
  void GiveTurnBack();
  std::string Name() const;

  Env* const env_;
  Rpc* const rpc_;
  ReplicaHost* const host_;
  const uint32_t table_, partition_;
  const BackupPlace place_;

  State state_ = State::kWaiting;
  bool counts_;              // it may be believed to be complete
  bool holds_back_ = false;  // or it would never catch up
  bool told_synced_;         // and not in vain, as far as is known, nor anything else since
  uint64_t acknowledged_ = 0;
  // kSyncing: the snapshot, and its message that is on its way.
  std::optional<SnapshotReader> snapshot_;
  uint64_t snapshot_bytes_ = 0;
  uint64_t attempt_ = 0;
  Frame message_;
  uint64_t message_epoch_ = 0;
  bool message_refused_ = false;
  std::optional<CallId> sync_call_;
  bool has_turn_ = false;
  uint64_t announce_at_ = 0;   // SYNCED is told when this much is acknowledged
  std::deque<Pending> queue_;  // ascending by index, not yet acknowledged
  uint64_t queued_bytes_ = 0;
  size_t sent_ = 0;  // so many at the front of it are on their way, or refused
  uint64_t sent_bytes_ = 0;
  std::deque<pb::BackupNews> news_;  // the first one is being told
  TimerId timer_ = kNoTimer;
  std::shared_ptr<void> alive_;  // callbacks that cannot be cancelled look at this
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_REPLICA_SENDER_H_
