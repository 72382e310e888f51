#include "ps/gpu/gpu_memory.h"

#include <cstdlib>
#include <cstring>

namespace parley {

absl::StatusOr<PinnedMemory> PinnedMemory::Create(Gpu* gpu, size_t bytes) {
  constexpr size_t kPage = 4096;
  bytes = (bytes + kPage - 1) / kPage * kPage;
  PinnedMemory memory;
  void* data = std::aligned_alloc(kPage, bytes);
  if (data == nullptr) return absl::ResourceExhaustedError("no memory to pin");
  std::memset(data, 0, bytes);
  // What cannot be pinned does as well, more slowly.
  if (gpu->Pin(data, bytes).ok()) memory.gpu_ = gpu;
  memory.data_ = data;
  return memory;
}

PinnedMemory::~PinnedMemory() {
  if (data_ == nullptr) return;
  if (gpu_ != nullptr) gpu_->Unpin(data_);
  std::free(data_);
}

}  // namespace parley
