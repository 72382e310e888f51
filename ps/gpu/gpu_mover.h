// GpuMover: moves payload where it or its place is in a GPU's memory.
//
// A copy within the GPU does not touch the host. Where it leads is told by the arenas: memory in
// them is the GPU's, all other is taken for the host's. What is copied from is held until Finish,
// which waits; a mover that is destroyed waits, too.
//
// Owned by one loop; not thread-safe.
#ifndef PARLEY_PS_GPU_GPU_MOVER_H_
#define PARLEY_PS_GPU_GPU_MOVER_H_

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "ps/base/device_memory.h"
#include "ps/gpu/device_arenas.h"
#include "ps/gpu/gpu.h"

namespace parley {

class GpuMover : public PayloadMover {
 public:
  // `stream` is of the GPU that the arenas use, and nobody else's.
  GpuMover(std::shared_ptr<const DeviceArenas> arenas, std::unique_ptr<GpuStream> stream)
      : arenas_(std::move(arenas)), stream_(std::move(stream)) {}
  ~GpuMover() override { Finish().IgnoreError(); }

  // Errors: the stream's.
  absl::Status Copy(void* to, Buffer from) override;
  absl::Status Finish() override;

 private:
  const std::shared_ptr<const DeviceArenas> arenas_;
  const std::unique_ptr<GpuStream> stream_;
  std::vector<Buffer> held_;
};

}  // namespace parley

#endif  // PARLEY_PS_GPU_GPU_MOVER_H_
