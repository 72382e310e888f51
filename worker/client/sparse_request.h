// SparseRequest: one message about rows of a sparse table, a push or a pull.
//
// Its bytes are laid out once: for a push keys and values of each partition in turn, for a pull the
// keys. A list of keys that the shard knows by its digest is left out when the message leaves; if
// the shard has forgotten it, the message is sent again with all lists, as the same push.
#ifndef PARLEY_WORKER_CLIENT_SPARSE_REQUEST_H_
#define PARLEY_WORKER_CLIENT_SPARSE_REQUEST_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "ps/base/buffer.h"
#include "ps/base/sparse_layout.h"
#include "worker/client/client_core.h"
#include "worker/client/known_lists.h"
#include "worker/client/push_stream.h"
#include "worker/client/shard_queues.h"

namespace parley {

// What the requests of one sparse table share.
struct SparseShared {
  ClientCore* core = nullptr;
  TableRoute route;
  SparseLayout layout;
  std::vector<PushStream> streams;  // by partition
};

class SparseRequest : public ShardRequest {
 public:
  // Rows of one partition.
  struct Run {
    uint32_t partition = 0;
    uint32_t keys = 0;
    uint64_t key_offset = 0;    // of its keys, in `bytes`
    uint64_t value_offset = 0;  // pushes: of its values
    uint64_t value_bytes = 0;   // as they travel
    uint32_t from = 0;          // pulls: its first key in the caller's split
    std::optional<ListDigest> digest = std::nullopt;
    bool list_sent = false;
  };
  // `last`: nothing of what was asked is missing now. A request that is cut since its partitions
  // have moved is answered piece by piece.
  using Answered =
      absl::AnyInvocable<absl::Status(const SparseRequest& request, Frame answer, bool last)>;

  // `shared` must outlive this. `answered` runs once, or once a piece, after a push is counted as
  // acknowledged.
  SparseRequest(SparseShared* shared, Kind kind, uint32_t shard, Answered answered)
      : SparseRequest(shared, kind, shard,
                      std::make_shared<Whole>(Whole{.answered = std::move(answered)})) {}

  std::optional<uint64_t> tick;  // pushes: absent for updates that belong to no step
  double weight = 0;
  bool encoded = false;  // values are not plain floats
  Buffer bytes;
  std::vector<Run> runs;

  // Once bytes and runs are there: its place in the queue, and the digests of its lists.
  void Seal(uint64_t answer_bytes);

  bool MayLeave() const override;
  Frame MakeFrame() override;
  std::string What(const std::string& shard) const override;
  bool TryAgain(const absl::Status& error) override;
  bool BelongsTo(uint32_t shard) const override;
  std::vector<Piece> SplitByOwner() override;
  absl::Status OnAnswer(Frame answer) override;

 private:
  // What its pieces share.
  struct Whole {
    Answered answered;
    uint64_t missing = 1;  // answers
  };

  SparseRequest(SparseShared* shared, Kind kind, uint32_t shard, std::shared_ptr<Whole> whole)
      : ShardRequest(kind), shared_(shared), shard_(shard), whole_(std::move(whole)) {}

  KnownLists& KnownThere() { return shared_->core->known[shard_]; }
  void AddKeys(Run& run, pb::Part* part, std::vector<Buffer>* payload);
  void Append(uint64_t offset, uint64_t size, std::vector<Buffer>* payload);

  SparseShared* const shared_;
  const uint32_t shard_;
  const std::shared_ptr<Whole> whole_;
  std::vector<uint64_t> sequences_;  // pushes, by run; given once
  bool with_lists_ = false;          // a digest was not known there
  uint64_t appended_ = 0;            // end of the last slice of the payload being made
  uint64_t sent_bytes_ = 0;
};

}  // namespace parley

#endif  // PARLEY_WORKER_CLIENT_SPARSE_REQUEST_H_
