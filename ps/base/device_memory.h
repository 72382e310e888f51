// What those who know no GPU have to know of its memory: how a peer's is mapped, and who moves
// payload from and to it.
//
// A Buffer says whether its bytes lie there (Buffer::on_device). Nobody but ps/gpu and what is
// built on it can do anything with such bytes but pass them on.
#ifndef PARLEY_PS_BASE_DEVICE_MEMORY_H_
#define PARLEY_PS_BASE_DEVICE_MEMORY_H_

#include <cstddef>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ps/base/buffer.h"

namespace parley {

// Maps arenas of device memory that peers on this host lend. Thread-safe.
class DeviceMapper {
 public:
  virtual ~DeviceMapper() = default;

  // Memory of exactly so many bytes, of the GPU that is used here, to read. Leaves `fd` open.
  // kInvalidArgument: it is no such memory. kUnavailable: no GPU is used here.
  virtual absl::StatusOr<std::byte*> Map(int fd, size_t bytes) = 0;
  // REQUIRES: Map gave it.
  virtual void Unmap(std::byte* memory, size_t bytes) = 0;
};

// Copies payload to where it is wanted. Owned by one loop; not thread-safe.
class PayloadMover {
 public:
  virtual ~PayloadMover() = default;

  // Copies all of `from` to `to`, which is where this mover moves to: host or device memory. It may
  // be done later, and keeps its reference to `from` until then.
  virtual absl::Status Copy(void* to, Buffer from) = 0;
  // What was to be copied is there.
  virtual absl::Status Finish() = 0;
};

// Copies from host memory to host memory, at once. kInvalidArgument: `from` is device memory.
class HostMover : public PayloadMover {
 public:
  absl::Status Copy(void* to, Buffer from) override;
  absl::Status Finish() override { return absl::OkStatus(); }
};

}  // namespace parley

#endif  // PARLEY_PS_BASE_DEVICE_MEMORY_H_
