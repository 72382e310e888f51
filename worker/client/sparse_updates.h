// SparseUpdates: small pushes that belong to no step, gathered into few messages.
//
// Each shard has one batch that is being filled. It leaves when it is full, or at the end of the
// turn of the loop, or, while kPartial messages are on their way already, when one of those is
// acknowledged: so a lone update leaves at once, and under load messages grow instead of queueing
// (the idea of Nagle, RFC 896). Updates of a key stay in the order of the calls: within a batch its
// partition applies them one by one, and batches of a shard are sent in order.
//
// Owned by a SparseClient; everything on the loop. Values travel as plain floats, whatever the
// table's codec: error feedback has no steps to work over here.
#ifndef PARLEY_WORKER_CLIENT_SPARSE_UPDATES_H_
#define PARLEY_WORKER_CLIENT_SPARSE_UPDATES_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/types/span.h"
#include "worker/client/sparse_request.h"

namespace parley {

class SparseUpdates {
 public:
  using Done = absl::AnyInvocable<void()>;

  static constexpr uint64_t kBatchBytes = uint64_t{64} << 10;
  // Messages of a shard on their way up to which a batch leaves before it is full: one is looked at
  // there while the next travels.
  static constexpr uint32_t kPartial = 2;

  // `shared` must outlive this.
  explicit SparseUpdates(SparseShared* shared);

  // As SparseTable::Update.
  void Add(absl::Span<const uint64_t> keys, const float* gradients, Done done);

  uint64_t open() const { return open_; }  // calls not acknowledged

  // When partitions move: hands over what is gathered, by the owners it was gathered for; and makes
  // room for shards that are new.
  void FlushAll();
  void OnShards() { batches_.resize(shared_->core->queues->shards()); }

 private:
  // Gathered, not sent: the columns of a list of (key, values), in the order of the calls.
  struct Batch {
    std::vector<uint64_t> keys;
    std::vector<uint32_t> partitions;
    std::vector<float> values;  // [keys, dim]
    std::vector<Done> done;     // of calls that end with this batch; null where nobody waits
    uint64_t calls = 0;         // that end with it
    uint32_t on_the_way = 0;    // messages of this shard
  };
  // What an acknowledgement is owed.
  struct Owed {
    uint64_t calls = 0;
    std::vector<Done> done;
  };

  void AddMany(absl::Span<const uint64_t> keys, const float* gradients, Done done);
  void Append(uint32_t shard, uint32_t partition, uint64_t key, const float* gradient);
  void EndCall(uint32_t shard, Done done);
  void FlushIfFull(uint32_t shard);
  void Flush(uint32_t shard);
  void EndTurn();
  void OnAcknowledged(uint32_t shard, Owed& owed);

  SparseShared* const shared_;
  const uint32_t dim_;
  const uint64_t row_bytes_;             // key and values
  std::vector<Batch> batches_;           // by shard
  std::vector<uint32_t> touched_;        // shards with something gathered since the last turn
  std::vector<std::vector<Done>> idle_;  // their memory is used again
  std::vector<uint32_t> count_;          // scratch: by partition
  std::vector<uint32_t> runs_;           // scratch: partitions of a batch
  bool turn_posted_ = false;
  uint64_t open_ = 0;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // for late callbacks
};

}  // namespace parley

#endif  // PARLEY_WORKER_CLIENT_SPARSE_UPDATES_H_
