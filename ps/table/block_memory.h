// BlockMemory: blocks of many sizes that come and go, without leaving the memory full of holes.
//
// The buckets of a growing table all pass through the same sizes at about the same time, so free
// lists by size would hold as much as is in use. Blocks here may be moved instead: those of one
// size lie in pages of their own, packed towards the first page, and when more than a few are free
// the last ones are moved into the gaps. Pages are powers of two, larger the more memory there is,
// and those left go back to a buddy system (Knowlton 1965), where they join for other sizes. They
// are cut from chunks that ask for huge pages once they are large enough; chunks are kept until the
// end.
//
// Throws std::bad_alloc when the system has no memory. Not thread-safe.
#ifndef PARLEY_PS_TABLE_BLOCK_MEMORY_H_
#define PARLEY_PS_TABLE_BLOCK_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"

namespace parley {

// Uninitialised memory straight from the system, aligned to the power of two that is not above its
// size or, from there on, to a huge page, which it asks for.
class MappedMemory {
 public:
  static constexpr size_t kHugePage = size_t{2} << 20;

  MappedMemory() = default;
  explicit MappedMemory(size_t size);
  MappedMemory(MappedMemory&& other) noexcept { *this = std::move(other); }
  MappedMemory& operator=(MappedMemory&& other) noexcept;
  ~MappedMemory();

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

class BlockMemory {
 public:
  static constexpr size_t kUnit = 64;  // blocks are multiples of it, and aligned to it

  // Copies a live block and sees to it that everybody looks for it at `to`.
  using Move = absl::FunctionRef<void(uint8_t* from, uint8_t* to)>;

  // Uninitialised. REQUIRES: bytes is a positive multiple of kUnit.
  uint8_t* Allocate(size_t bytes);
  // Any live block of this size may be moved.
  void Free(uint8_t* block, size_t bytes, Move move);

  // Taken from the system; what was not touched yet of the last chunk is not counted.
  uint64_t bytes() const { return carved_; }

 private:
  struct Page {
    uint8_t* data;
    size_t size;
  };
  // The blocks of one size: all of pages but the last are full, but for the gaps.
  struct Pool {
    std::vector<Page> pages;
    size_t in_last = 0;          // blocks handed out of the last page, gaps included
    size_t live = 0;             // blocks in use
    std::vector<uint8_t*> gaps;  // at most kMaxGaps, and a kGapShare-th of those in use
  };
  static constexpr size_t kMaxGaps = 16;
  static constexpr size_t kGapShare = 32;
  static constexpr size_t kMinPage = 4096;
  static constexpr size_t kMaxPage = size_t{256} << 10;
  static constexpr size_t kPageShare = 2048;           // a page is about this part of the memory
  static constexpr size_t kLargeBlock = kMaxPage / 4;  // larger ones have a page each
  static constexpr size_t kMinChunk = size_t{16} << 10;
  static constexpr size_t kMaxChunk = size_t{32} << 20;

  uint8_t* AllocateIn(Pool& pool, size_t bytes);
  // Takes the last block out of its page, into a gap if it is not one itself.
  void DropLast(Pool& pool, size_t bytes, Move move);
  // Empties the first page, which dates from when the memory was smaller.
  void DropFirst(Pool& pool, size_t bytes, Move move);

  Page TakeFree(size_t least, size_t most);
  Page TakePage(size_t block_bytes);
  Page TakeLargePage(size_t block_bytes);
  void GivePage(Page page);
  Page Carve(size_t at_least);

  absl::flat_hash_map<size_t, std::unique_ptr<Pool>> pools_;  // by block size
  std::map<size_t, std::set<uint8_t*>> free_pages_;           // by page size
  std::vector<MappedMemory> large_pages_;
  std::vector<MappedMemory> chunks_;
  size_t in_chunk_ = 0;  // bytes carved from the last chunk
  uint64_t carved_ = 0;
};

}  // namespace parley

#endif  // PARLEY_PS_TABLE_BLOCK_MEMORY_H_
