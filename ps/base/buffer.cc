#include "ps/base/buffer.h"

#include <bit>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "ps/base/round_up.h"

namespace parley {

struct BufferPool::Core {
  Core(size_t max, std::shared_ptr<MemorySource> from)
      : max_cached_bytes(max), source(std::move(from)) {}
  ~Core() {
    for (auto& [capacity, list] : free) {
      for (std::byte* memory : list) GiveBack(memory, capacity);
    }
  }
  void GiveBack(std::byte* memory, size_t capacity) {
    if (source) {
      source->Free(memory, capacity);
    } else {
      std::free(memory);
    }
  }

  const size_t max_cached_bytes;
  const std::shared_ptr<MemorySource> source;  // null: the heap
  std::mutex mu;  // held for a list push or pop only; blocks come home from I/O threads
  absl::flat_hash_map<size_t, std::vector<std::byte*>> free;
  size_t cached_bytes = 0;
};

struct Buffer::Block {
  std::atomic<uint32_t> refs{1};
  std::byte* memory = nullptr;  // owned, unless `release` is set
  size_t capacity = 0;
  bool on_device = false;
  absl::AnyInvocable<void()> release;      // wrapped bytes
  std::shared_ptr<BufferPool::Core> pool;  // pooled bytes

  void Destroy() {
    if (release) {
      release();
    } else if (pool) {
      std::unique_lock lock(pool->mu);
      if (pool->cached_bytes + capacity <= pool->max_cached_bytes) {
        pool->cached_bytes += capacity;
        pool->free[capacity].push_back(memory);
        memory = nullptr;
      }
      lock.unlock();
      if (memory != nullptr) pool->GiveBack(memory, capacity);
    } else {
      std::free(memory);
    }
    delete this;
  }
};

namespace {

std::byte* AllocateAligned(size_t capacity) {
  void* memory = std::aligned_alloc(Buffer::kAlignment, capacity);
  if (memory == nullptr) throw std::bad_alloc();
  return static_cast<std::byte*>(memory);
}

// Quarter steps of powers of two: at most 25% is wasted, and a tensor's size finds the same class
// every step.
size_t SizeClass(size_t size) {
  if (size <= 4096) return std::max<size_t>(Buffer::kAlignment, std::bit_ceil(size));
  return RoundUp(size, std::bit_floor(size) / 4);
}

}  // namespace

Buffer::Buffer(const Buffer& other) : block_(other.block_), data_(other.data_), size_(other.size_) {
  if (block_ != nullptr) block_->refs.fetch_add(1, std::memory_order_relaxed);
}

Buffer::~Buffer() {
  if (block_ != nullptr && block_->refs.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    block_->Destroy();
  }
}

Buffer Buffer::Allocate(size_t size) {
  auto* block = new Block;
  block->capacity = RoundUp(std::max<size_t>(size, 1), kAlignment);
  block->memory = AllocateAligned(block->capacity);
  return Buffer(block, block->memory, size);
}

Buffer Buffer::Copy(std::string_view bytes) {
  Buffer buffer = Allocate(bytes.size());
  if (!bytes.empty()) std::memcpy(buffer.data_, bytes.data(), bytes.size());
  return buffer;
}

Buffer Buffer::Wrap(void* data, size_t size, absl::AnyInvocable<void()> release, bool on_device) {
  auto* block = new Block;
  block->on_device = on_device;
  block->release = std::move(release);
  return Buffer(block, static_cast<std::byte*>(data), size);
}

Buffer Buffer::Slice(size_t offset, size_t size) const {
  Buffer slice = *this;
  slice.data_ += offset;
  slice.size_ = size;
  return slice;
}

bool Buffer::unique() const {
  return block_ != nullptr && block_->refs.load(std::memory_order_acquire) == 1;
}

bool Buffer::on_device() const { return block_ != nullptr && block_->on_device; }

BufferPool::BufferPool(size_t max_cached_bytes, std::shared_ptr<MemorySource> source)
    : core_(std::make_shared<Core>(max_cached_bytes, std::move(source))) {}
BufferPool::~BufferPool() = default;

Buffer BufferPool::Allocate(size_t size) {
  auto block = std::make_unique<Buffer::Block>();
  block->capacity = SizeClass(size);
  block->pool = core_;
  block->on_device = core_->source != nullptr && core_->source->on_device();
  {
    std::lock_guard lock(core_->mu);
    auto found = core_->free.find(block->capacity);
    if (found != core_->free.end() && !found->second.empty()) {
      block->memory = found->second.back();
      found->second.pop_back();
      core_->cached_bytes -= block->capacity;
    }
  }
  if (block->memory == nullptr && core_->source) {
    block->memory = core_->source->Allocate(block->capacity);
    if (block->memory == nullptr && block->on_device) throw std::bad_alloc();
    // From the heap instead; it must not come back as if it were the source's.
    if (block->memory == nullptr) block->pool = nullptr;
  }
  if (block->memory == nullptr) block->memory = AllocateAligned(block->capacity);
  std::byte* const memory = block->memory;
  return Buffer(block.release(), memory, size);
}

}  // namespace parley
