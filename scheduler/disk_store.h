// DiskStore: a StateStore in a directory of this machine, or of one that it mounts.
//
//   DIR/state   the last one saved, with a checksum: replaced whole, by rename, and synced
//   DIR/lock    held by flock(2) from Open until this process ends, however it ends
//
// Errors name the file; what the disk says is never kFailedPrecondition, kAborted or kCancelled.
// Open: kUnavailable if another process holds the lock, kDataLoss if the file is torn or damaged,
// kInvalidArgument if it is something else. Thread-safety: as OffloadedStore.
#ifndef PARLEY_SCHEDULER_DISK_STORE_H_
#define PARLEY_SCHEDULER_DISK_STORE_H_

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ps/base/file_lock.h"
#include "ps/base/file_system.h"
#include "scheduler/offloaded_store.h"

namespace parley {

class DiskStore : public OffloadedStore {
 public:
  struct Options {
    std::string directory;                    // made if it is missing
    FileSystem* files = FileSystem::Posix();  // outlives the store
    bool lock = true;                         // false: on a simulated disk
  };
  explicit DiskStore(Options options) : options_(std::move(options)) {}
  DiskStore(const DiskStore&) = delete;
  DiskStore& operator=(const DiskStore&) = delete;

  absl::Status Forget() override;

 protected:
  absl::StatusOr<std::optional<std::string>> OpenNow() override;
  absl::Status SaveNow(const std::string& state) override;

 private:
  std::string StatePath() const { return options_.directory + "/state"; }
  std::string LockPath() const { return options_.directory + "/lock"; }
  absl::Status Lock();

  const Options options_;
  std::optional<FileLock> lock_;  // touched by OpenNow and Forget, of which one runs at a time
};

}  // namespace parley

#endif  // PARLEY_SCHEDULER_DISK_STORE_H_
