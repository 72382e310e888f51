// DeviceArenas: Arenas of a GPU's memory, and the way to map those of peers.
// GpuMemory: the one GPU of a process, as soon as it is needed, and a pool on its arenas.
//
// A transport is made before it is known whether there will be a GPU. So both begin without one:
// then Allocate gives null and Map says kUnavailable.
//
// Buffers of the pool, and those over mapped memory, keep the GPU for as long as they live.
//
// Thread-safety: all methods from any thread.
#ifndef PARLEY_PS_GPU_DEVICE_ARENAS_H_
#define PARLEY_PS_GPU_DEVICE_ARENAS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ps/base/arenas.h"
#include "ps/base/buffer.h"
#include "ps/base/device_memory.h"
#include "ps/gpu/gpu.h"

namespace parley {

class DeviceArenas final : public Arenas, public DeviceMapper {
 public:
  // As large as the GPU, and the larger the more there are.
  DeviceArenas() : DeviceArenas({.arena_bytes = size_t{64} << 20, .max_bytes = size_t{1} << 48}) {}
  explicit DeviceArenas(Options options) : Arenas(options) {}
  ~DeviceArenas() override;

  // Once.
  void Use(std::shared_ptr<Gpu> gpu);

  bool on_device() const override { return true; }

  absl::StatusOr<std::byte*> Map(int fd, size_t bytes) override;
  void Unmap(std::byte* memory, size_t bytes) override;

 private:
  std::optional<Arena> Make(uint32_t id, size_t size) override;
  std::shared_ptr<Gpu> gpu() const;

  mutable std::mutex mu_;  // guards gpu_, which is set once
  std::shared_ptr<Gpu> gpu_;
  std::array<ShareableMemory, kMaxArenas> memory_;  // as Make is called
  size_t made_bytes_ = 0;
};

class GpuMemory {
 public:
  GpuMemory() : GpuMemory(std::make_shared<DeviceArenas>()) {}
  explicit GpuMemory(std::shared_ptr<DeviceArenas> arenas);

  // The GPU of this process: the first call makes it, others get the same. `make`'s error, and then
  // the next call tries again.
  absl::StatusOr<std::shared_ptr<Gpu>> Open(
      const std::function<absl::StatusOr<std::unique_ptr<Gpu>>()>& make);

  // Whether there can be memory of the pool's kind: it must be of a kind that peers can map.
  // REQUIRES: Open was OK.
  absl::Status CheckLending();

  const std::shared_ptr<DeviceArenas>& arenas() const { return arenas_; }
  BufferPool* pool() { return &pool_; }  // REQUIRES to allocate: Open was OK

 private:
  // Freed blocks kept at hand. What goes past it returns to the arenas, and stays there.
  static constexpr size_t kCacheBytes = size_t{256} << 20;

  const std::shared_ptr<DeviceArenas> arenas_;
  BufferPool pool_;
  std::mutex mu_;  // guards gpu_; held while it is made
  std::shared_ptr<Gpu> gpu_;
};

}  // namespace parley

#endif  // PARLEY_PS_GPU_DEVICE_ARENAS_H_
