// Owners of a GPU's memory, and of pinned memory for copies to and from it.
//
// Thread-safety: values of one thread. They must not outlive their Gpu.
#ifndef PARLEY_PS_GPU_GPU_MEMORY_H_
#define PARLEY_PS_GPU_GPU_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "ps/gpu/gpu.h"

namespace parley {

// Device memory that grows and never shrinks.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(DeviceMemory&& other) noexcept { *this = std::move(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(gpu_, other.gpu_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~DeviceMemory() { Release(); }

  // Contents are kept only if no growth was needed; growing may wait for the whole GPU.
  absl::Status Reserve(Gpu* gpu, size_t bytes) {
    if (bytes <= size_) return absl::OkStatus();
    Release();  // first, so that both need not fit
    absl::StatusOr<void*> data = gpu->Allocate(bytes);
    if (!data.ok()) return data.status();
    gpu_ = gpu;
    data_ = *data;
    size_ = bytes;
    return absl::OkStatus();
  }

  size_t size() const { return size_; }
  void* data() const { return data_; }
  float* floats() const { return static_cast<float*>(data_); }
  uint8_t* bytes() const { return static_cast<uint8_t*>(data_); }
  uint16_t* halves() const { return static_cast<uint16_t*>(data_); }
  uint32_t* words() const { return static_cast<uint32_t*>(data_); }

 private:
  void Release() {
    if (data_ != nullptr) gpu_->Free(data_);
    data_ = nullptr;
    size_ = 0;
  }
  Gpu* gpu_ = nullptr;
  void* data_ = nullptr;
  size_t size_ = 0;
};

// Host memory on pages of its own, pinned for `gpu` as long as this lives, if it can be.
class PinnedMemory {
 public:
  static absl::StatusOr<PinnedMemory> Create(Gpu* gpu, size_t bytes);
  PinnedMemory() = default;
  PinnedMemory(PinnedMemory&& other) noexcept { *this = std::move(other); }
  PinnedMemory& operator=(PinnedMemory&& other) noexcept {
    std::swap(gpu_, other.gpu_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~PinnedMemory();
  void* data() const { return data_; }

 private:
  Gpu* gpu_ = nullptr;
  void* data_ = nullptr;
};

}  // namespace parley

#endif  // PARLEY_PS_GPU_GPU_MEMORY_H_
