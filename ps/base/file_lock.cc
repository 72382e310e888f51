#include "ps/base/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"

namespace parley {
namespace {

absl::Status Failed(int error, const std::string& path, absl::string_view what) {
  return absl::ErrnoToStatus(error, absl::StrCat("'", path, "' cannot be ", what));
}

// Whether it is had now; false: another has it. Waits for nobody.
absl::StatusOr<bool> TryLock(int fd, const std::string& path) {
  int result = 0;
  do {
    result = flock(fd, LOCK_EX | LOCK_NB);
  } while (result != 0 && errno == EINTR);
  if (result != 0 && errno != EWOULDBLOCK) return Failed(errno, path, "locked");
  return result == 0;
}

}  // namespace

absl::StatusOr<FileLock> FileLock::Take(const std::string& path) {
  while (true) {
    const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) return Failed(errno, path, "opened");
    FileLock lock(path, fd);
    absl::StatusOr<bool> taken = TryLock(fd, path);
    if (!taken.ok()) return taken.status();
    if (!*taken) {
      return absl::UnavailableError(absl::StrCat("'", path, "' is held by another process"));
    }
    // The one who had it may have removed the file meanwhile, and a lock on what has no name keeps
    // nobody out.
    struct stat held, named;
    if (fstat(fd, &held) == 0 && stat(path.c_str(), &named) == 0 && held.st_ino == named.st_ino &&
        held.st_dev == named.st_dev) {
      return lock;
    }
  }
}

absl::StatusOr<bool> FileLock::IsHeld(const std::string& path) {
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0 && errno == ENOENT) return false;
  if (fd < 0) return Failed(errno, path, "opened");
  const FileLock tried(path, fd);
  absl::StatusOr<bool> taken = TryLock(fd, path);
  if (!taken.ok()) return taken.status();
  return !*taken;
}

FileLock::~FileLock() {
  if (fd_ >= 0) close(fd_);
}

absl::Status FileLock::Remove() {
  if (unlink(path_.c_str()) == 0 || errno == ENOENT) return absl::OkStatus();
  return Failed(errno, path_, "removed");
}

}  // namespace parley
