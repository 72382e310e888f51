#include "ps/gpu/device_arenas.h"

#include <algorithm>
#include <utility>

namespace parley {
namespace {

constexpr size_t kUnit = size_t{2} << 20;

}  // namespace

DeviceArenas::~DeviceArenas() {
  for (uint32_t id = 0; id < num_arenas(); ++id) gpu_->FreeShareable(memory_[id]);
}

void DeviceArenas::Use(std::shared_ptr<Gpu> gpu) {
  std::lock_guard lock(mu_);
  gpu_ = std::move(gpu);
}

std::shared_ptr<Gpu> DeviceArenas::gpu() const {
  std::lock_guard lock(mu_);
  return gpu_;
}

std::optional<Arenas::Arena> DeviceArenas::Make(uint32_t id, size_t size) {
  const std::shared_ptr<Gpu> gpu = this->gpu();
  if (gpu == nullptr) return std::nullopt;
  // There may be 256 arenas, whatever the GPU's memory: so they grow with what is in use.
  const size_t wanted = std::max(size, made_bytes_ / 4 / kUnit * kUnit);
  absl::StatusOr<ShareableMemory> memory = gpu->AllocateShareable(wanted);
  if (!memory.ok() && wanted > size) memory = gpu->AllocateShareable(size);
  if (!memory.ok()) return std::nullopt;
  memory_[id] = *memory;
  made_bytes_ += memory->bytes;
  return Arena{static_cast<std::byte*>(memory->device), memory->bytes, memory->fd};
}

absl::StatusOr<std::byte*> DeviceArenas::Map(int fd, size_t bytes) {
  const std::shared_ptr<Gpu> gpu = this->gpu();
  if (gpu == nullptr) return absl::UnavailableError("no GPU is used here");
  absl::StatusOr<void*> memory = gpu->MapShared(fd, bytes);
  if (!memory.ok()) return memory.status();
  return static_cast<std::byte*>(*memory);
}

void DeviceArenas::Unmap(std::byte* memory, size_t bytes) { gpu()->UnmapShared(memory, bytes); }

GpuMemory::GpuMemory(std::shared_ptr<DeviceArenas> arenas)
    : arenas_(std::move(arenas)), pool_(kCacheBytes, arenas_) {}

absl::StatusOr<std::shared_ptr<Gpu>> GpuMemory::Open(
    const std::function<absl::StatusOr<std::unique_ptr<Gpu>>()>& make) {
  std::lock_guard lock(mu_);
  if (gpu_ != nullptr) return gpu_;
  absl::StatusOr<std::unique_ptr<Gpu>> gpu = make();
  if (!gpu.ok()) return gpu.status();
  gpu_ = *std::move(gpu);
  arenas_->Use(gpu_);
  return gpu_;
}

absl::Status GpuMemory::CheckLending() {
  std::lock_guard lock(mu_);
  absl::StatusOr<ShareableMemory> memory = gpu_->AllocateShareable(kUnit);
  if (memory.ok()) gpu_->FreeShareable(*memory);
  return memory.status();
}

}  // namespace parley
