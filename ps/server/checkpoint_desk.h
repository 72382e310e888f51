// CheckpointDesk: what the scheduler asks a shard about checkpoints. One at a time; asked again,
// it says the same again; asked for another, it gives the one before up. Which is the other can be
// told by the request's id alone: a later one may be of an earlier step.
//
// Owned by one loop; not thread-safe.
#ifndef PARLEY_PS_SERVER_CHECKPOINT_DESK_H_
#define PARLEY_PS_SERVER_CHECKPOINT_DESK_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/checkpoint.pb.h"
#include "ps/base/env.h"
#include "ps/base/file_system.h"
#include "ps/net/rpc.h"
#include "ps/server/checkpoint_task.h"
#include "ps/server/hosted_table.h"

namespace parley {

class CheckpointDesk {
 public:
  // `env` and `rpc` must outlive this, `files` the Env.
  CheckpointDesk(Env* env, Rpc* rpc, FileSystem* files) : env_(env), rpc_(rpc), files_(files) {}

  // A CHECKPOINT of the generation that these tables are of; answered when the file is written.
  // The tables stay until Abandon.
  void OnRequest(NodeId from, const pb::FrameHeader& header, const pb::CheckpointRequest& request,
                 const std::string& file_name, const std::vector<HostedTable*>& tables, bool bsp);

  // Something went into the weights.
  void OnApplied() {
    if (task_ != nullptr) task_->OnApplied();
  }

  // Partitions are about to come or go: what is under way is answered with `why`, and forgotten, as
  // is what was done.
  void Abandon(const absl::Status& why);

 private:
  using Asker = std::pair<NodeId, pb::FrameHeader>;
  // Requests that were given up for another, newest last: so many that none comes later still.
  static constexpr size_t kMaxOver = 64;

  bool IsOver(uint64_t request_id) const;
  void NoteId(uint64_t request_id);
  void Supersede();
  void OnDone(absl::StatusOr<pb::CheckpointFile> result);
  void AnswerAll(const absl::StatusOr<pb::CheckpointFile>& result);

  Env* const env_;
  Rpc* const rpc_;
  FileSystem* const files_;
  std::unique_ptr<CheckpointTask> task_;  // null: none is under way
  std::vector<Asker> askers_;             // of it; the same one asks under few ids
  std::vector<uint64_t> ids_;  // that the present one was asked for with, or the last one
  std::deque<uint64_t> over_;  // those of the ones before
  // The last, if it was written.
  std::optional<std::pair<pb::CheckpointRequest, pb::CheckpointFile>> last_;
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_CHECKPOINT_DESK_H_
