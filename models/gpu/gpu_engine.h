// GpuEngine: how the GPU device enqueues - three streams, the order between them, the first
// failure, and scratch memory. Internal to models/gpu.
//
// Copies to the device, operations and copies back have a stream each, so that they go on beside
// each other. Operations wait for the copies that came before them; copies back wait for the
// operations before them; copies to the device wait only for what BeginStep says.
//
// With graphs, operations are held back until another stream has to do with them, and then enqueued
// as one graph if they are what they were in the step before (graph_cache.h).
//
// After a failure nothing is enqueued until TakeStatus. Thread-safety: as Device.
#ifndef PARLEY_MODELS_GPU_GPU_ENGINE_H_
#define PARLEY_MODELS_GPU_GPU_ENGINE_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "models/device.h"
#include "models/gpu/graph_cache.h"
#include "ps/gpu/gpu.h"
#include "ps/gpu/gpu_memory.h"

namespace parley {

class GpuEngine {
 public:
  static absl::StatusOr<std::unique_ptr<GpuEngine>> Create(std::shared_ptr<Gpu> gpu, GemmMath math,
                                                           bool graphs);

  Gpu* gpu() const { return gpu_.get(); }
  GemmMath math() const { return math_; }

  bool ok() const { return status_.ok(); }
  void Note(const absl::Status& status) {
    if (status_.ok()) status_ = status;
  }
  absl::Status TakeStatus() { return std::exchange(status_, absl::OkStatus()); }

  // False, and noted, if there is no memory. `what` it is for, for people.
  bool Reserve(DeviceMemory* memory, size_t bytes, const char* what);

  // Operations, on the compute stream.
  template <typename Kernel>
  void Launch(const Kernel& kernel, uint32_t blocks) {
    Enqueue(GpuKernelOf<Kernel>::kKernel, blocks, &kernel, sizeof(kernel));
  }
  template <typename Kernel>
  void LaunchOver(const Kernel& kernel, uint64_t n) {
    if (n > 0) Launch(kernel, BlocksFor<Kernel>(n));
  }
  void Gemm(const GemmCall& call);
  void CopyWithin(void* to, const void* from, size_t bytes);
  // Enqueues what is held back; forgets it.
  void Flush();
  void DropHeldBack() { held_back_.clear(); }

  void BeginStep();
  uint64_t step() const { return step_; }  // counts BeginStep
  // For operations that follow.
  void CopyIn(void* device, const void* host, size_t bytes);
  // Of what operations so far have written.
  void CopyOut(void* host, const void* device, size_t bytes);
  // Operations that follow wait for the copies out so far.
  void HoldOperations() { Order(out_.get(), copied_out_.get(), compute_.get()); }

  uint64_t graphs_launched() const { return graph_cache_.launched(); }

  Mark MarkHere();
  bool Reached(Mark mark);
  void Await(Mark mark);
  void SyncAll();

  // Scratch of one operation.
  DeviceMemory& spare() { return spare_; }      // the other half of a reordering
  DeviceMemory& columns() { return columns_; }  // an unfolded input
  DeviceMemory& rows() { return rows_; }        // weights as unfolded rows
  DeviceMemory& partial() { return partial_; }  // sums of chunks

 private:
  GpuEngine(std::shared_ptr<Gpu> gpu, GemmMath math, bool graphs)
      : gpu_(std::move(gpu)), math_(math), graphs_(graphs) {}
  absl::Status Init();
  void Enqueue(const GpuKernel& kernel, uint32_t blocks, const void* args, size_t args_bytes);
  // `later` waits for all that `earlier` has now.
  void Order(GpuStream* earlier, GpuEvent* event, GpuStream* later);

  const std::shared_ptr<Gpu> gpu_;
  const GemmMath math_;
  const bool graphs_;
  absl::Status status_;
  uint64_t step_ = 0;

  std::vector<GpuOperation> held_back_;
  GraphCache graph_cache_;
  DeviceMemory spare_, columns_, rows_, partial_;
  std::unique_ptr<GpuEvent> copied_in_, computed_, copied_out_;
  // Marks not awaited yet, and events for more.
  struct Pending {
    uint64_t mark;
    std::unique_ptr<GpuEvent> event;
  };
  uint64_t last_mark_ = 0;
  std::deque<Pending> pending_;
  std::vector<std::unique_ptr<GpuEvent>> free_events_;
  std::unique_ptr<GpuStream> in_, compute_, out_;
};

}  // namespace parley

#endif  // PARLEY_MODELS_GPU_GPU_ENGINE_H_
