// CheckpointTask: this shard's part of one checkpoint. Takes the state of every partition that it
// is primary of as step `step` reads it, and writes one file, off the loop.
//
// A partition is saved once step - 1 is in it: between requests, one a task, and at the latest when
// step `step` is about to go into it (under SSP and ASP, whose ticks may run ahead, no such moment
// matters). What is saved stays as it is while training goes on. Owned by one loop; not
// thread-safe. What is still being written when it goes is written to its end, and nobody is told.
#ifndef PARLEY_PS_SERVER_CHECKPOINT_TASK_H_
#define PARLEY_PS_SERVER_CHECKPOINT_TASK_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "proto/checkpoint.pb.h"
#include "proto/cluster.pb.h"
#include "ps/base/env.h"
#include "ps/base/file_system.h"
#include "ps/checkpoint/checkpoint_files.h"
#include "ps/server/hosted_table.h"

namespace parley {

class CheckpointTask {
 public:
  using Done = absl::AnyInvocable<void(absl::StatusOr<pb::CheckpointFile>)>;

  // kOutOfRange: a partition of these tables is past the step already; the message says where.
  static absl::Status Check(uint64_t step, const std::vector<HostedTable*>& tables);

  // Begins. `done` is called once, later: the file (without a name if there is nothing to save
  // here), or why there is none. REQUIRES: Check was OK. The tables, and the partitions of which
  // this shard is primary, must outlive this; `files` must outlive the Env.
  CheckpointTask(Env* env, FileSystem* files, pb::CheckpointRequest request, std::string file_name,
                 const std::vector<HostedTable*>& tables, bool bsp, Done done);
  ~CheckpointTask();
  CheckpointTask(const CheckpointTask&) = delete;
  CheckpointTask& operator=(const CheckpointTask&) = delete;

  // Something went into the weights.
  void OnApplied();

  const pb::CheckpointRequest& request() const { return request_; }
  // "3 of 16 partitions to reach step 100", for who waits.
  std::string WaitsFor() const;

 private:
  struct Item {
    HostedTable* table;
    HostedPartition* partition;
    bool saved = false;
  };
  struct Writing;

  bool IsReady(const Item& item) const;
  void SaveNext();
  void Save(Item& item);
  void Write();
  void Finish(absl::StatusOr<pb::CheckpointFile> result);

  Env* const env_;
  const pb::CheckpointRequest request_;
  Done done_;
  std::vector<Item> items_;
  size_t unsaved_ = 0;
  absl::Status status_;  // of what was saved so far
  TimerId timer_ = kNoTimer;
  std::shared_ptr<Writing> writing_;  // as RestoreTask's
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_CHECKPOINT_TASK_H_
