// SharedMemory: a piece of memory that other processes may be lent to read, and never to write.
//
// The owner makes it with memfd_create(2), maps it read-write and then seals it: from then on
// nobody can shrink it (a reader that touches a page that is gone is killed by SIGBUS), grow it, or
// map it for writing anew (F_SEAL_FUTURE_WRITE). The descriptor travels over a unix socket; the
// reader checks the seals and the size before it maps. The memory goes when the last process has
// let go of it, also when they are killed: nothing is left in any file system.
//
// Thread-safety: a value that one thread moves around; the memory is whoever's it is agreed to be.
#ifndef PARLEY_PS_BASE_SHARED_MEMORY_H_
#define PARLEY_PS_BASE_SHARED_MEMORY_H_

#include <cstddef>
#include <string>
#include <utility>

#include "absl/status/statusor.h"

namespace parley {

class SharedMemory {
 public:
  SharedMemory() = default;
  SharedMemory(SharedMemory&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)),
        data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  SharedMemory& operator=(SharedMemory&& other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~SharedMemory();  // unmaps and closes

  // `size` zero bytes, writable here, with huge pages where the kernel gives them to shared memory.
  // `name` is for /proc/PID/maps alone. The system's error, if it has no more memory or
  // descriptors.
  static absl::StatusOr<SharedMemory> Create(const std::string& name, size_t size);

  // Maps what a peer made by Create, read-only; takes `fd` over and closes it in any case.
  // kInvalidArgument: it is no such memory, is not sealed, or does not have `size` bytes.
  static absl::StatusOr<SharedMemory> MapForeign(int fd, size_t size);

  // The descriptor to lend to others; -1 for foreign memory, whose descriptor is closed.
  int fd() const { return fd_; }
  std::byte* data() const { return data_; }  // REQUIRES to write: Create made it
  size_t size() const { return size_; }

 private:
  SharedMemory(int fd, std::byte* data, size_t size) : fd_(fd), data_(data), size_(size) {}

  int fd_ = -1;
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace parley

#endif  // PARLEY_PS_BASE_SHARED_MEMORY_H_
