// FileLock: an empty file that one process at a time holds, by flock(2). The kernel gives it up for
// a process that ends, however it ends; the file may stay. Programs that the process starts do not
// have it.
//
// Thread-safety: one thread at a time.
#ifndef PARLEY_PS_BASE_FILE_LOCK_H_
#define PARLEY_PS_BASE_FILE_LOCK_H_

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace parley {

class FileLock {
 public:
  // Makes the file if need be; its directory must exist. kUnavailable: it is held already. Errors
  // name the file.
  static absl::StatusOr<FileLock> Take(const std::string& path);
  // Whether somebody holds it now; false if there is no such file. Errors as of
  // Take. Who takes it at the very moment may be told that it is held.
  static absl::StatusOr<bool> IsHeld(const std::string& path);

  ~FileLock();  // gives it up; the file stays
  FileLock(FileLock&& other) noexcept
      : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}
  FileLock& operator=(FileLock&&) = delete;

  // The file goes while it is held, so that nobody loses it; to be given up soon.
  absl::Status Remove();

 private:
  FileLock(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}

  const std::string path_;
  int fd_;
};

}  // namespace parley

#endif  // PARLEY_PS_BASE_FILE_LOCK_H_
