// Gpu: the seam to a graphics processor - its memory, streams, events, kernels and matrix products.
//
// Two things are behind it: CUDA with cuBLAS (cuda_gpu.h), and a simulation on the host
// (simulated_gpu.h) that runs the same kernels and shows a missing wait or a touched pointer where
// there is no GPU. What is built on it, the models' GPU device and the servers' GPU shards, does
// not know which.
//
// Work is enqueued on streams: in order within one, in any order between them but for events. All
// calls return at once unless they say that they wait. Host memory of a copy must be left alone
// until the copy is done; copies overlap with work only if it is pinned.
//
// Errors name the call, what the driver says, and file and line of the call:
//   cuda: cudaMemcpyAsync: invalid argument (ps/gpu/cuda_gpu.cc:123)
// After an error of a kernel everything that follows on that Gpu fails with the same error.
//
// Thread-safety: Gpu from any thread. A stream or an event from one thread at a time, but for
// GpuEvent::Await and done, which any thread may call once it is recorded.
#ifndef PARLEY_PS_GPU_GPU_H_
#define PARLEY_PS_GPU_GPU_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ps/gpu/kernel.h"

namespace parley {

// How products of float32 matrices are computed; sums are float32 in all.
enum class GemmMath : uint8_t {
  kFp32,
  kTf32,  // factors rounded to 10 bits of mantissa, on tensor cores
  kBf16,  // factors come as bfloat16
};
const char* ToString(GemmMath math);  // "FP32"

// C [m, n] = op(A) [m, k] op(B) [k, n] (+ C if `accumulate`), row-major and dense; op transposes if
// the flag is set, and then the matrix lies in memory as [k, m] or [n, k].
struct GemmCall {
  GemmMath math = GemmMath::kFp32;
  bool transpose_a = false, transpose_b = false, accumulate = false;
  int64_t m = 0, n = 0, k = 0;
  const void* a = nullptr;  // float32, or bfloat16 for kBf16
  const void* b = nullptr;
  float* c = nullptr;
  bool operator==(const GemmCall&) const = default;
};

struct GpuInfo {
  int index = 0;             // among those that this process sees (CUDA_VISIBLE_DEVICES)
  std::string name;          // "NVIDIA H200"
  std::string uuid;          // of the chip, wherever it is seen from
  int major = 0, minor = 0;  // compute capability
  uint64_t memory_bytes = 0;
  bool simulated = false;
};
std::string ToString(const GpuInfo& info);  // "NVIDIA H200 (sm_90, 140 GiB, GPU 0)"

// A point in a stream.
class GpuEvent {
 public:
  virtual ~GpuEvent() = default;
  // What was enqueued before the last Record is done; true if there was none.
  virtual bool done() = 0;
  virtual absl::Status Await() = 0;  // waits for it
};

// A recorded sequence of work that is enqueued as one.
class GpuGraph {
 public:
  virtual ~GpuGraph() = default;
};

class GpuStream {
 public:
  virtual ~GpuStream() = default;

  virtual absl::Status CopyIn(void* device, const void* host, size_t bytes) = 0;
  virtual absl::Status CopyOut(void* host, const void* device, size_t bytes) = 0;
  virtual absl::Status CopyWithin(void* to, const void* from, size_t bytes) = 0;
  virtual absl::Status Zero(void* device, size_t bytes) = 0;
  virtual absl::Status Gemm(const GemmCall& call) = 0;
  virtual absl::Status LaunchErased(const GpuKernel& kernel, uint32_t blocks, const void* args,
                                    size_t args_bytes) = 0;

  // What follows here waits for what has been enqueued before the event's last Record.
  virtual absl::Status WaitFor(const GpuEvent& event) = 0;
  virtual absl::Status Record(GpuEvent* event) = 0;

  virtual absl::Status Sync() = 0;  // waits for all of this stream

  template <typename Kernel>
  absl::Status Launch(const Kernel& kernel, uint32_t blocks) {
    return LaunchErased(GpuKernelOf<Kernel>::kKernel, blocks, &kernel, sizeof(kernel));
  }

  // Between these two what is enqueued here is not done but recorded, with its pointers and
  // numbers. Neither Record, WaitFor nor Sync may be in it.
  virtual absl::Status BeginGraph() = 0;
  virtual absl::StatusOr<std::unique_ptr<GpuGraph>> EndGraph() = 0;
  virtual absl::Status Launch(const GpuGraph& graph) = 0;
};

// Device memory that other processes of this machine may map.
struct ShareableMemory {
  void* device = nullptr;
  size_t bytes = 0;  // as asked for, rounded up
  int fd = -1;       // to lend; the owner closes it. Of no use to anybody but MapShared
};

class Gpu {
 public:
  virtual ~Gpu() = default;

  virtual const GpuInfo& info() const = 0;

  // Uninitialised, aligned to 256 bytes. kResourceExhausted.
  virtual absl::StatusOr<void*> Allocate(size_t bytes) = 0;
  // May wait for everything on this Gpu. Null is ignored.
  virtual void Free(void* device) = 0;

  // Pins host memory, once: slow, and the point of doing it for whole arenas. It must stay mapped
  // until Unpin.
  virtual absl::Status Pin(void* host, size_t bytes) = 0;
  virtual void Unpin(void* host) = 0;

  // kUnimplemented: this Gpu, or its driver, cannot.
  virtual absl::StatusOr<ShareableMemory> AllocateShareable(size_t bytes) = 0;
  virtual void FreeShareable(const ShareableMemory& memory) = 0;
  // Maps what another process made, of exactly so many bytes, on the same chip. Leaves `fd` open.
  // kInvalidArgument: it is no such memory.
  virtual absl::StatusOr<void*> MapShared(int fd, size_t bytes) = 0;
  virtual void UnmapShared(void* device, size_t bytes) = 0;

  // They must not outlive the Gpu.
  virtual absl::StatusOr<std::unique_ptr<GpuStream>> NewStream() = 0;
  virtual absl::StatusOr<std::unique_ptr<GpuEvent>> NewEvent() = 0;
};

}  // namespace parley

#endif  // PARLEY_PS_GPU_GPU_H_
