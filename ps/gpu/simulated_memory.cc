#include "ps/gpu/simulated_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_format.h"

namespace parley {
namespace {

constexpr size_t kAddresses = size_t{256} << 30;  // reserved, not used
constexpr size_t kPage = 4096;

size_t Pages(size_t bytes) { return (bytes < 1 ? 1 : (bytes + kPage - 1) / kPage) * kPage; }

}  // namespace

SimulatedMemory::SimulatedMemory(uint64_t max_bytes, bool guard)
    : max_bytes_(max_bytes), guard_(guard) {
  void* base =
      mmap(nullptr, kAddresses, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base != MAP_FAILED) base_ = static_cast<std::byte*>(base);
}

SimulatedMemory::~SimulatedMemory() {
  if (base_ != nullptr) munmap(base_, kAddresses);
}

// The first gap that is large enough; a page beside each block stays shut.
absl::StatusOr<std::byte*> SimulatedMemory::TakeAddresses(size_t bytes) {
  std::byte* at = base_;
  for (const auto& [begin, block] : blocks_) {
    if (begin >= at + bytes + kPage) break;
    at = begin + block.bytes + kPage;
  }
  if (base_ == nullptr || at + bytes + kPage > base_ + kAddresses) {
    return absl::ResourceExhaustedError("simulated gpu: out of addresses");
  }
  return at;
}

void SimulatedMemory::Protect(std::byte* memory, const Block& block, bool open) {
  mprotect(memory, block.bytes, open ? block.protection : PROT_NONE);
}

absl::StatusOr<void*> SimulatedMemory::Allocate(size_t bytes) {
  const size_t size = Pages(bytes);
  if (used_ + size > max_bytes_) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "simulated gpu: out of memory: %d bytes are in use, %d more are wanted, there are %d",
        used_, size, max_bytes_));
  }
  absl::StatusOr<std::byte*> at = TakeAddresses(size);
  if (!at.ok()) return at.status();
  void* mapped = mmap(*at, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) {
    return absl::ResourceExhaustedError("simulated gpu: no memory on the host");
  }
  std::memset(*at, 0xFF, size);
  const Block block{size, PROT_READ | PROT_WRITE, false};
  blocks_.emplace(*at, block);
  used_ += size;
  if (guard_ && !open_) Protect(*at, block, false);
  return *at;
}

void SimulatedMemory::Free(void* memory) {
  auto found = blocks_.find(static_cast<std::byte*>(memory));
  if (found == blocks_.end()) return;
  const size_t bytes = found->second.bytes;
  if (!found->second.mapped) used_ -= bytes;
  mmap(memory, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
  blocks_.erase(found);
}

absl::StatusOr<void*> SimulatedMemory::Map(int fd, size_t bytes, bool writable) {
  const size_t size = Pages(bytes);
  absl::StatusOr<std::byte*> at = TakeAddresses(size);
  if (!at.ok()) return at.status();
  const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  if (mmap(*at, size, protection, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
    const int error = errno;
    mmap(*at, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    return absl::InvalidArgumentError(
        absl::StrFormat("simulated gpu: %d bytes cannot be mapped: %s", bytes, strerror(error)));
  }
  const Block block{size, protection, true};
  blocks_.emplace(*at, block);
  if (guard_ && !open_) Protect(*at, block, false);
  return *at;
}

void SimulatedMemory::Unmap(void* memory, size_t) { Free(memory); }

bool SimulatedMemory::Contains(const void* memory, size_t bytes) const {
  auto* at = static_cast<const std::byte*>(memory);
  auto after = blocks_.upper_bound(const_cast<std::byte*>(at));
  if (after == blocks_.begin()) return false;
  const auto& [begin, block] = *std::prev(after);
  return at + bytes <= begin + block.bytes;
}

void SimulatedMemory::Open() {
  if (!guard_ || open_) return;
  open_ = true;
  for (const auto& [memory, block] : blocks_) Protect(memory, block, true);
}

void SimulatedMemory::Shut() {
  if (!guard_ || !open_) return;
  open_ = false;
  for (const auto& [memory, block] : blocks_) Protect(memory, block, false);
}

}  // namespace parley
