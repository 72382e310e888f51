// RestoreTask: fills the partitions of a shard from a checkpoint, one after the other, with the
// files read off the loop.
//
// Owned by one loop; not thread-safe. What is still being read when it goes is thrown away.
#ifndef PARLEY_PS_SERVER_RESTORE_TASK_H_
#define PARLEY_PS_SERVER_RESTORE_TASK_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "proto/cluster.pb.h"
#include "ps/base/buffer.h"
#include "ps/base/env.h"
#include "ps/base/file_system.h"
#include "ps/server/hosted_partition.h"

namespace parley {

class RestoreTask {
 public:
  using Item = std::pair<uint32_t, HostedPartition*>;  // table, partition

  // Begins. `done` is called once, later: OK, or what could not be read or does not fit; then the
  // partitions are not to be used. The others must outlive this, and `files` and `pool` the Env.
  RestoreTask(Env* env, FileSystem* files, BufferPool* pool, const pb::Restore& restore,
              std::vector<Item> items, absl::AnyInvocable<void(absl::Status)> done);
  ~RestoreTask();
  RestoreTask(const RestoreTask&) = delete;
  RestoreTask& operator=(const RestoreTask&) = delete;

 private:
  struct Reading;
  void Next();
  void OnRead();

  Env* const env_;
  const std::vector<Item> items_;
  const uint64_t step_;
  absl::AnyInvocable<void(absl::Status)> done_;
  size_t next_ = 0;
  std::shared_ptr<Reading> reading_;  // shared with the work under way, and its sign of life
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_RESTORE_TASK_H_
