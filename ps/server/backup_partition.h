// BackupPartition: a copy of a partition whose primary is elsewhere. Puts snapshots together,
// applies operations in the order of their index, and is ready to be promoted.
//
//   has state | follows | what comes                        | what becomes of it
//   ----------+---------+-----------------------------------+---------------------------------------
//   any       | any     | SYNC, a newer attempt, from 0 on  | a new assembly; the state stays
//   any       | any     | SYNC, the last piece              | the state is replaced; follows
//   any       | no      | an operation                      | kDataLoss: it has to be brought up
//   yes       | yes     | the next operation                | applied, acknowledged, and who waited
//   yes       | yes     | one of those before               | acknowledged again
//   yes       | yes     | one further on, up to kMaxAhead   | kept until those between have come
//   yes       | yes     | one that does not fit the state   | kDataLoss; does not follow any more
//
// Whom to believe is its owner's to check: calls come with what the primary of the present map
// said. Owned by one loop; not thread-safe. Throws std::bad_alloc out of OnOp alone; then the state
// is not to be used.
#ifndef PARLEY_PS_SERVER_BACKUP_PARTITION_H_
#define PARLEY_PS_SERVER_BACKUP_PARTITION_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "ps/base/buffer.h"
#include "ps/base/ids.h"
#include "ps/server/hosted_partition.h"
#include "ps/server/snapshot_stream.h"
#include "ps/wire/frame.h"

namespace parley {

class BackupPartition {
 public:
  // Operations that are kept because one before them has not come yet.
  static constexpr uint64_t kMaxAhead = 1024;
  static constexpr uint64_t kMaxAheadBytes = uint64_t{256} << 20;

  // A partition of the same table and index, with its first weights.
  using Make = absl::AnyInvocable<absl::StatusOr<std::unique_ptr<HostedPartition>>()>;
  // Answers a request; of `request` only what Rpc::Reply uses matters.
  using Answer =
      absl::AnyInvocable<void(NodeId to, const pb::FrameHeader& request, const absl::Status&)>;

  // Without a state, until `primary` has brought it up. `pool` must outlive this.
  BackupPartition(NodeId primary, Make make, Answer answer, BufferPool* pool);

  // By a new map. Another one than before has to bring this up anew, since the two may have done
  // different things last; until it has, the state stays what it was.
  void SetPrimary(NodeId primary);

  // A REPLICATE, or a piece of a SYNC, from the primary; answered now or later.
  void OnOp(const Frame& request);
  void OnSync(const Frame& request);

  NodeId primary() const { return primary_; }
  // Whether there is anything to be promoted.
  bool has_state() const { return state_ != nullptr; }
  // What is here, to be a primary from now on. REQUIRES: has_state(). This is over then.
  std::unique_ptr<HostedPartition> TakeState() { return std::move(state_); }

 private:
  struct Waiting {
    pb::ReplicaOp op;
    Buffer keys, values;
    pb::FrameHeader request;
  };

  absl::Status CheckOp(const Frame& request, Waiting* op) const;
  void ApplyWaiting();
  void Lose(const absl::Status& status);
  absl::Status TakeSync(const Frame& request);
  absl::Status FinishSync();

  NodeId primary_;
  std::unique_ptr<HostedPartition> state_;
  Make make_;
  Answer answer_;
  BufferPool* const pool_;
  bool follows_ = false;
  std::map<uint64_t, Waiting> waiting_;  // by index, after the last one applied
  uint64_t waiting_bytes_ = 0;
  uint64_t attempt_ = 0;                      // to bring this up, the newest that was seen; 0: none
  uint64_t loaded_ = 0;                       // the one that state_ is from
  std::optional<SnapshotAssembly> assembly_;  // none: it is complete, or given up
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_BACKUP_PARTITION_H_
