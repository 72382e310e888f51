// GpuClaim: which of a machine's GPUs a process takes, so that several spread over them by
// themselves.
//
// A claim is an abstract unix socket named by the GPU's uuid and a number: nobody can bind it
// twice, and it goes with its process, however that ends. The GPU with the fewest claims is taken.
// Claims count within one network namespace and are no lock: any number of processes may share a
// GPU.
//
// Thread-safety: a value of one thread.
#ifndef PARLEY_PS_GPU_GPU_CLAIM_H_
#define PARLEY_PS_GPU_GPU_CLAIM_H_

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "absl/types/span.h"

namespace parley {

class GpuClaim {
 public:
  // Of the GPUs with these uuids; at least one. Where sockets are not to be had, the first.
  explicit GpuClaim(absl::Span<const std::string> uuids);
  GpuClaim() = default;
  GpuClaim(GpuClaim&& other) noexcept { *this = std::move(other); }
  GpuClaim& operator=(GpuClaim&& other) noexcept {
    std::swap(fd_, other.fd_);
    std::swap(index_, other.index_);
    std::swap(others_, other.others_);
    return *this;
  }
  ~GpuClaim();

  size_t index() const { return index_; }  // into the uuids
  int others() const { return others_; }   // who claimed it earlier and are still there

 private:
  int fd_ = -1;
  size_t index_ = 0;
  int others_ = 0;
};

}  // namespace parley

#endif  // PARLEY_PS_GPU_GPU_CLAIM_H_
