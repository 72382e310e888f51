// The memory of a simulated GPU: one reserved range of addresses, so that a pointer tells where it
// belongs and all of it can be shut from the host at once. Internal to ps/gpu.
//
// Thread-safety: none, the GPU's lock.
#ifndef PARLEY_PS_GPU_SIMULATED_MEMORY_H_
#define PARLEY_PS_GPU_SIMULATED_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <map>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace parley {

class SimulatedMemory {
 public:
  // `guard`: only between Open and Shut may the host touch it.
  SimulatedMemory(uint64_t max_bytes, bool guard);
  ~SimulatedMemory();
  SimulatedMemory(const SimulatedMemory&) = delete;
  SimulatedMemory& operator=(const SimulatedMemory&) = delete;

  // Filled with NaN. kResourceExhausted past max_bytes.
  absl::StatusOr<void*> Allocate(size_t bytes);
  void Free(void* memory);

  // Puts the file at a place in the range, to be written if it is its owner's.
  absl::StatusOr<void*> Map(int fd, size_t bytes, bool writable);
  void Unmap(void* memory, size_t bytes);

  // All of the bytes lie in one block, so that an operation may touch them.
  bool Contains(const void* memory, size_t bytes) const;

  void Open();
  void Shut();

 private:
  struct Block {
    size_t bytes = 0;  // whole pages
    int protection = 0;
    bool mapped = false;  // from a file
  };
  absl::StatusOr<std::byte*> TakeAddresses(size_t bytes);
  void Protect(std::byte* memory, const Block& block, bool open);

  const uint64_t max_bytes_;
  const bool guard_;
  uint64_t used_ = 0;
  bool open_ = false;
  std::byte* base_ = nullptr;  // of the reserved addresses
  std::map<std::byte*, Block> blocks_;
};

}  // namespace parley

#endif  // PARLEY_PS_GPU_SIMULATED_MEMORY_H_
