// Buffer: a reference-counted run of bytes with slices; what payloads are made of.
//
// One Buffer follows a tensor from the wire into the aggregator, or from the weights out to the
// wire, without a copy: the bytes belong to a block (own memory, a ZeroMQ message, a mapping) that
// is given back when the last Buffer goes.
//
// Thread-safety: a Buffer object is not shared between threads, but Buffers of one block may live
// and die on different threads (a transport's I/O thread drops its reference when the bytes are
// sent). Whoever holds the only reference (unique()) may write through mutable_data(); with more
// than one the bytes are read-only by convention.
#ifndef PARLEY_PS_BASE_BUFFER_H_
#define PARLEY_PS_BASE_BUFFER_H_

#include <atomic>
#include <cstddef>
#include <memory>
#include <string_view>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/types/span.h"

namespace parley {

class BufferPool;

class Buffer {
 public:
  // Alignment of memory that Allocate and BufferPool hand out: a cache line, and one AVX-512
  // register.
  static constexpr size_t kAlignment = 64;

  Buffer() = default;
  Buffer(const Buffer& other);
  Buffer(Buffer&& other) noexcept
      : block_(std::exchange(other.block_, nullptr)),
        data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer other) noexcept {
    std::swap(block_, other.block_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer();

  // Fresh, aligned, uninitialised memory. Fresh pages cost more than a copy: in a loop take a
  // BufferPool.
  static Buffer Allocate(size_t size);

  // A copy of `bytes` in fresh memory.
  static Buffer Copy(std::string_view bytes);

  // Bytes that somebody else owns; `release` runs once, on whichever thread drops the last
  // reference. The bytes may be unaligned. REQUIRES: they stay valid until then.
  static Buffer Wrap(void* data, size_t size, absl::AnyInvocable<void()> release,
                     bool on_device = false);

  const std::byte* data() const { return data_; }
  std::byte* mutable_data() { return data_; }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  std::string_view view() const { return {reinterpret_cast<const char*>(data_), size_}; }

  // The bytes as floats. Received bytes may be unaligned: read them with memcpy or unaligned loads
  // only.
  const float* floats() const { return reinterpret_cast<const float*>(data_); }
  float* mutable_floats() { return reinterpret_cast<float*>(data_); }
  size_t num_floats() const { return size_ / sizeof(float); }

  // A part of the same block. REQUIRES: offset + size <= this->size().
  Buffer Slice(size_t offset, size_t size) const;

  // True if no other Buffer refers to the block; then nobody else can be reading it (acquires their
  // last access).
  bool unique() const;

  // The bytes lie in a GPU's memory (device_memory.h): the CPU must not touch them, and who could
  // be given such a Buffer looks here first.
  bool on_device() const;

 private:
  friend class BufferPool;
  struct Block;
  Buffer(Block* block, std::byte* data, size_t size) : block_(block), data_(data), size_(size) {}

  Block* block_ = nullptr;
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Where a BufferPool takes memory from, other than the heap: Arenas. Thread-safe.
class MemorySource {
 public:
  virtual ~MemorySource() = default;
  // It is a GPU's.
  virtual bool on_device() const { return false; }
  // `capacity` bytes, aligned to Buffer::kAlignment; null if there is no more.
  virtual std::byte* Allocate(size_t capacity) = 0;
  // Takes back what Allocate gave for this capacity.
  virtual void Free(std::byte* memory, size_t capacity) = 0;
};

// Recycles blocks, because writing fresh pages is several times slower than a copy. Sizes are
// rounded up to a size class; at most `max_cached_bytes` are kept for reuse, the rest goes back to
// where it came from. Thread-safe; Buffers may outlive the pool.
class BufferPool {
 public:
  // With a `source` the memory is that one's while it has any, and the heap's after that, which
  // cannot stand in for a device's; null: the heap's.
  explicit BufferPool(size_t max_cached_bytes = size_t{256} << 20,
                      std::shared_ptr<MemorySource> source = nullptr);
  ~BufferPool();
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

  Buffer Allocate(size_t size);  // uninitialised; throws std::bad_alloc

 private:
  friend class Buffer;
  struct Core;
  std::shared_ptr<Core> core_;
};

}  // namespace parley

#endif  // PARLEY_PS_BASE_BUFFER_H_
