// GpuPlace: where a shard keeps dense tables on a GPU. DeviceFailure: what becomes of a GPU that
// fails.
//
// A place belongs to one loop, as the stream does; the GPU and the pool are the process's.
#ifndef PARLEY_PS_TABLE_GPU_PLACE_H_
#define PARLEY_PS_TABLE_GPU_PLACE_H_

#include <functional>
#include <memory>
#include <new>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/experiment.pb.h"
#include "ps/base/buffer.h"
#include "ps/gpu/device_arenas.h"
#include "ps/gpu/gpu.h"

namespace parley {

struct GpuPlace {
  std::shared_ptr<Gpu> gpu;
  std::unique_ptr<GpuStream> stream;  // goes before the GPU
  BufferPool* pool = nullptr;         // device memory
};

// The GPU that `device` means, the first that is visible: CUDA, the simulated one, and for AUTO
// CUDA or an error that says what else there is. kInvalidArgument: CPU. Else as CreateCudaGpu.
absl::StatusOr<std::unique_ptr<Gpu>> CreateGpuFor(pb::Compute::Device device);

// A place on the process's GPU, which is made if this is the first. `memory` must outlive it.
absl::StatusOr<std::unique_ptr<GpuPlace>> MakeGpuPlace(GpuMemory* memory,
                                                       pb::Compute::Device device);

// The place of a shard, made when it is first asked for; the pointer stays good. Errors say why
// there is none.
using GetGpuPlace = std::function<absl::StatusOr<GpuPlace*>(const pb::Compute&)>;

// Thrown where a GPU fails. It is a bad_alloc because an update may be half applied, and whoever
// lives on after that one lives on after this.
class DeviceFailure : public std::bad_alloc {
 public:
  explicit DeviceFailure(const absl::Status& status) : text_(status.message()) {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

// kUnavailable with what the GPU said, if it is a DeviceFailure; else kResourceExhausted:
// `no_memory`.
absl::Status StatusOf(const std::bad_alloc& failure, const std::string& no_memory);

// Throws DeviceFailure unless it is OK.
inline void ThrowUnlessOk(const absl::Status& status) {
  if (!status.ok()) throw DeviceFailure(status);
}

}  // namespace parley

#endif  // PARLEY_PS_TABLE_GPU_PLACE_H_
