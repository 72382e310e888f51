#include "ps/base/shared_memory.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_format.h"

namespace parley {
namespace {

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL;
// Without these a peer could take pages away from under a reader. Whether the peer seals its own
// pen is its business.
constexpr int kNeededSeals = F_SEAL_SHRINK | F_SEAL_GROW;

absl::Status CheckForeign(int fd, size_t size) {
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0) return absl::InvalidArgumentError("shared memory: the descriptor is no memfd");
  if ((seals & kNeededSeals) != kNeededSeals) {
    return absl::InvalidArgumentError(
        absl::StrFormat("shared memory: seals are %#x, needed are %#x", seals, kNeededSeals));
  }
  // Memory of huge pages from the reserve (MFD_HUGETLB) has seals, too, but may lack pages.
  struct statfs system;
  if (fstatfs(fd, &system) != 0 || system.f_type != TMPFS_MAGIC) {
    return absl::InvalidArgumentError("shared memory: the memfd is of another kind than plain");
  }
  struct stat status;
  if (fstat(fd, &status) != 0) return absl::ErrnoToStatus(errno, "shared memory: fstat");
  if (size == 0 || static_cast<size_t>(status.st_size) != size) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "shared memory: size is said to be %d, the memfd has %d bytes", size, status.st_size));
  }
  return absl::OkStatus();
}

}  // namespace

SharedMemory::~SharedMemory() {
  if (data_ != nullptr) munmap(data_, size_);
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<SharedMemory> SharedMemory::Create(const std::string& name, size_t size) {
  const int fd = memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return absl::ErrnoToStatus(errno, "shared memory: memfd_create");
  SharedMemory memory(fd, nullptr, 0);  // closes it on the way out
  if (ftruncate(fd, static_cast<off_t>(size)) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrFormat("shared memory: ftruncate to %d", size));
  }
  void* const data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) {
    return absl::ErrnoToStatus(errno, absl::StrFormat("shared memory: mmap of %d bytes", size));
  }
  memory.data_ = static_cast<std::byte*>(data);
  memory.size_ = size;
  // Advice: many kernels give shared memory no huge pages, and small ones do as well, only slower.
  madvise(data, size, MADV_HUGEPAGE);
  // Now that it is mapped, nobody else can be.
  if (fcntl(fd, F_ADD_SEALS, kSeals) != 0) {
    return absl::ErrnoToStatus(errno, "shared memory: F_ADD_SEALS");
  }
  return memory;
}

absl::StatusOr<SharedMemory> SharedMemory::MapForeign(int fd, size_t size) {
  const SharedMemory closer(fd, nullptr, 0);
  absl::Status status = CheckForeign(fd, size);
  if (!status.ok()) return status;
  void* const data = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) {
    return absl::ErrnoToStatus(errno, absl::StrFormat("shared memory: mmap of %d bytes", size));
  }
  return SharedMemory(-1, static_cast<std::byte*>(data), size);
}

}  // namespace parley
