#include "ps/base/file_system.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

namespace parley {
namespace {

namespace fs = std::filesystem;

// Some kernels transfer no more than 2 GiB in one call.
constexpr uint64_t kMaxTransfer = uint64_t{1} << 30;

absl::Status Failed(int error, absl::string_view path, absl::string_view what) {
  return absl::ErrnoToStatus(error, absl::StrCat("'", path, "' cannot be ", what));
}

// Calls `call` until a signal does not get in between.
template <typename Call>
auto Retried(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  const int fd_;
};

std::string ParentOf(const std::string& path) {
  fs::path whole = fs::path(path).lexically_normal();
  if (!whole.has_filename()) whole = whole.parent_path();  // "a/b/"
  const fs::path parent = whole.parent_path();
  return parent.empty() ? "." : parent.string();
}

class PosixFile final : public WritableFile {
 public:
  PosixFile(std::string path, int fd) : path_(std::move(path)), file_(fd) {}

  absl::Status Append(absl::Span<const std::byte> bytes) override {
    while (!bytes.empty()) {
      const size_t size = std::min<uint64_t>(bytes.size(), kMaxTransfer);
      const ssize_t n = Retried([&] { return write(file_.get(), bytes.data(), size); });
      if (n < 0) return Failed(errno, path_, "written");
      bytes.remove_prefix(static_cast<size_t>(n));
    }
    return absl::OkStatus();
  }

  absl::Status Sync() override {
    if (Retried([&] { return fsync(file_.get()); }) != 0) return Failed(errno, path_, "synced");
    return absl::OkStatus();
  }

 private:
  const std::string path_;
  const Descriptor file_;
};

class PosixFileSystem final : public FileSystem {
 public:
  absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& path) override {
    // Not truncated: the bytes may have another name, which keeps them.
    if (unlink(path.c_str()) != 0 && errno != ENOENT) return Failed(errno, path, "replaced");
    const int fd =
        Retried([&] { return open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666); });
    if (fd < 0) return Failed(errno, path, "made");
    return std::make_unique<PosixFile>(path, fd);
  }

  absl::StatusOr<uint64_t> Size(const std::string& path) override {
    struct stat info;
    if (stat(path.c_str(), &info) != 0) return Failed(errno, path, "read");
    if (!S_ISREG(info.st_mode)) {
      return absl::InvalidArgumentError(absl::StrCat("'", path, "' is no regular file"));
    }
    return static_cast<uint64_t>(info.st_size);
  }

  absl::Status Read(const std::string& path, uint64_t offset, uint64_t size,
                    std::byte* to) override {
    const Descriptor file(Retried([&] { return open(path.c_str(), O_RDONLY | O_CLOEXEC); }));
    if (file.get() < 0) return Failed(errno, path, "read");
    uint64_t done = 0;
    while (done < size) {
      const size_t want = std::min(size - done, kMaxTransfer);
      const ssize_t n = Retried(
          [&] { return pread(file.get(), to + done, want, static_cast<off_t>(offset + done)); });
      if (n < 0) return Failed(errno, path, "read");
      if (n == 0) {
        return absl::DataLossError(absl::StrCat("'", path, "' has ", offset + done,
                                                " bytes; expected at least ", offset + size));
      }
      done += static_cast<uint64_t>(n);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<std::string>> List(const std::string& directory) override {
    std::error_code error;
    std::vector<std::string> names;
    fs::directory_iterator entry(directory, error);
    for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
      names.push_back(entry->path().filename().string());
    }
    if (error) return Failed(error.value(), directory, "listed");
    std::sort(names.begin(), names.end());
    return names;
  }

  bool Exists(const std::string& path) override {
    struct stat info;
    return stat(path.c_str(), &info) == 0 || (errno != ENOENT && errno != ENOTDIR);
  }

  // Whoever made what is there may have been unable to sync its name, or died before: nothing is
  // made in a directory that a crash could take away.
  absl::Status MakeDirectory(const std::string& path) override {
    const std::string parent = ParentOf(path);
    std::error_code error;
    const fs::file_status found = fs::status(path, error);
    if (fs::is_directory(found)) {
      absl::Status kept = SyncDirectory(parent);
      // Made by another, if the names beside it are not ours to read.
      return absl::IsPermissionDenied(kept) ? absl::OkStatus() : kept;
    }
    if (fs::exists(found)) {  // and no error: mkdir will have that
      return absl::AlreadyExistsError(
          absl::StrCat("directory '", path, "' cannot be made: a file has this name"));
    }
    if (parent != path && parent != ".") {
      if (absl::Status status = MakeDirectory(parent); !status.ok()) return status;
    }
    // Another may have made it meanwhile.
    if (mkdir(path.c_str(), 0777) != 0 && errno != EEXIST) return Failed(errno, path, "made");
    return SyncDirectory(parent);
  }

  absl::Status Rename(const std::string& from, const std::string& to) override {
    if (rename(from.c_str(), to.c_str()) != 0) {
      return Failed(errno, from, absl::StrCat("renamed to '", to, "'"));
    }
    return absl::OkStatus();
  }

  absl::Status Link(const std::string& from, const std::string& to) override {
    if (link(from.c_str(), to.c_str()) != 0) {
      return Failed(errno, from, absl::StrCat("linked as '", to, "'"));
    }
    return absl::OkStatus();
  }

  absl::Status Remove(const std::string& path) override {
    std::error_code error;
    fs::remove_all(path, error);
    if (error && error != std::errc::no_such_file_or_directory) {
      return Failed(error.value(), path, "removed");
    }
    return absl::OkStatus();
  }

  absl::Status SyncDirectory(const std::string& directory) override {
    const Descriptor file(
        Retried([&] { return open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
    if (file.get() < 0) return Failed(errno, directory, "synced");
    // EINVAL: a file system that knows no such thing, because its names are safe at once.
    if (Retried([&] { return fsync(file.get()); }) != 0 && errno != EINVAL) {
      return Failed(errno, directory, "synced");
    }
    return absl::OkStatus();
  }
};

}  // namespace

FileSystem* FileSystem::Posix() {
  static PosixFileSystem* const kPosix = new PosixFileSystem;
  return kPosix;
}

absl::StatusOr<std::string> FileSystem::ReadWhole(const std::string& path) {
  absl::StatusOr<uint64_t> size = Size(path);
  if (!size.ok()) return size.status();
  std::string content(*size, '\0');
  absl::Status status = Read(path, 0, *size, reinterpret_cast<std::byte*>(content.data()));
  if (!status.ok()) return status;
  return content;
}

absl::Status FileSystem::WriteWhole(const std::string& path, absl::string_view content) {
  const std::string beside = path + ".new";
  {
    absl::StatusOr<std::unique_ptr<WritableFile>> file = Create(beside);
    if (!file.ok()) return file.status();
    absl::Status status = (*file)->Append(
        absl::MakeConstSpan(reinterpret_cast<const std::byte*>(content.data()), content.size()));
    if (status.ok()) status = (*file)->Sync();
    if (!status.ok()) return status;
  }
  if (absl::Status status = Rename(beside, path); !status.ok()) return status;
  return SyncDirectory(ParentOf(path));
}

}  // namespace parley
