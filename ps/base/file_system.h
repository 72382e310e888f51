// FileSystem: the files that must survive a crash - checkpoints and the scheduler's journal - so
// that the simulation can tear, lose and fill them.
//
// What is promised is POSIX's: written bytes survive a crash once Sync of the file has returned OK,
// names once SyncDirectory of their directory has; Rename is atomic, and replaces.
//
// All calls may block: make them in Env::Offload, but for small files that nothing waits for.
// Thread-safety: all methods of FileSystem from any thread; a file from one at a time. Errors name
// the path and the system's reason; kResourceExhausted: the disk is full, kNotFound: no such file.
#ifndef PARLEY_PS_BASE_FILE_SYSTEM_H_
#define PARLEY_PS_BASE_FILE_SYSTEM_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "ps/base/buffer.h"

namespace parley {

class WritableFile {
 public:
  virtual ~WritableFile() = default;  // closes it without Sync
  virtual absl::Status Append(absl::Span<const std::byte> bytes) = 0;
  virtual absl::Status Sync() = 0;
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;

  // The real one. Lives as long as the process.
  static FileSystem* Posix();

  // A new, empty file; replaces one that is there, whose other names keep its bytes.
  virtual absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& path) = 0;
  virtual absl::StatusOr<uint64_t> Size(const std::string& path) = 0;
  // Exactly `size` bytes from `offset`; kDataLoss if the file is shorter.
  virtual absl::Status Read(const std::string& path, uint64_t offset, uint64_t size,
                            std::byte* to) = 0;
  // Names in a directory, sorted, without . and ..
  virtual absl::StatusOr<std::vector<std::string>> List(const std::string& directory) = 0;
  // Also true if it cannot be told (EIO, ESTALE, EACCES ...): whoever takes a checkpoint that it
  // cannot see for none at all begins anew, while what it does next with the path has the error.
  virtual bool Exists(const std::string& path) = 0;
  // With its parents; OK if it is there. It survives a crash, even if an earlier call failed to.
  virtual absl::Status MakeDirectory(const std::string& path) = 0;
  virtual absl::Status Rename(const std::string& from, const std::string& to) = 0;
  // A second name for a file's bytes. kAlreadyExists: something has the name.
  virtual absl::Status Link(const std::string& from, const std::string& to) = 0;
  // A file, or a directory with all that is in it; OK if it is not there.
  virtual absl::Status Remove(const std::string& path) = 0;
  virtual absl::Status SyncDirectory(const std::string& directory) = 0;

  // In terms of these.
  absl::StatusOr<std::string> ReadWhole(const std::string& path);
  // Beside it, synced, renamed over it, directory synced: after a crash the old content is there
  // or the new, whole.
  absl::Status WriteWhole(const std::string& path, absl::string_view content);
};

}  // namespace parley

#endif  // PARLEY_PS_BASE_FILE_SYSTEM_H_
