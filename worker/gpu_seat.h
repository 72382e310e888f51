// GpuSeat: the GPU of a worker process, found when the first workload is built and shared by all.
//
// Thread-safety: one call at a time; the thread that builds workloads.
#ifndef PARLEY_WORKER_GPU_SEAT_H_
#define PARLEY_WORKER_GPU_SEAT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "models/device.h"
#include "proto/experiment.pb.h"
#include "ps/base/device_memory.h"
#include "ps/base/shared_arenas.h"
#include "ps/gpu/device_arenas.h"
#include "ps/gpu/gpu.h"
#include "ps/gpu/gpu_claim.h"

namespace parley {

class GpuSeat {
 public:
  struct Options {
    // Among those that the process sees; else the one with the fewest of this host's workers.
    std::optional<uint32_t> index;
    // Where gradients, weights and batches are made: pinned for the GPU, each arena once.
    std::shared_ptr<SharedArenas> arenas;
    // The process's, with what its transport lends; null: one of its own. Must outlive the seat.
    GpuMemory* memory = nullptr;
  };

  GpuSeat() : GpuSeat(Options{}) {}
  explicit GpuSeat(Options options)
      : options_(std::move(options)),
        memory_(options_.memory != nullptr ? options_.memory : &own_memory_) {}

  // The device that `experiment` asks for. With AUTO and no GPU it is the CPU's. kUnavailable:
  // it asks for CUDA, and there is none; says why. kInvalidArgument: the index, the threads.
  absl::StatusOr<std::unique_ptr<Device>> MakeDevice(const pb::Experiment& experiment);

  // Where weights and gradients of dense tables are made: device memory for placement GPU, else
  // null. After MakeDevice.
  BufferPool* parameter_pool(const pb::Compute& config) {
    const bool on_gpu = gpu_ != nullptr && config.placement() == pb::Compute::GPU;
    return on_gpu ? memory_->pool() : nullptr;
  }

  // Moves payload to and from the device memory of parameter_pool. After MakeDevice.
  absl::StatusOr<std::unique_ptr<PayloadMover>> MakeMover();

  // What the log should say beside the device's description: why it is the CPU, who else is on the
  // GPU, that memory could not be pinned. May be empty.
  const std::string& note() const { return note_; }

 private:
  absl::Status Find(pb::Compute::Device wanted);
  absl::Status FindCuda();
  absl::Status Open(const std::function<absl::StatusOr<std::unique_ptr<Gpu>>()>& make);
  void Pin();

  const Options options_;
  GpuMemory own_memory_;
  GpuMemory* const memory_;
  bool looked_ = false;
  GpuClaim claim_;
  std::shared_ptr<Gpu> gpu_;  // null: the CPU
  std::string note_;
};

}  // namespace parley

#endif  // PARLEY_WORKER_GPU_SEAT_H_
