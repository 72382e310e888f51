#include "ps/table/block_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace parley {
namespace {

size_t RoundUp(size_t size, size_t unit) { return (size + unit - 1) / unit * unit; }

}  // namespace

MappedMemory::MappedMemory(size_t size) {
  if (size < kHugePage) {
    // The number of mappings of a process is limited; that of small allocations is not.
    size_ = RoundUp(std::max<size_t>(size, 1), 64);
    data_ = static_cast<uint8_t*>(std::aligned_alloc(64, size_));
    if (data_ == nullptr) throw std::bad_alloc();
    std::memset(data_, 0, size_);
    return;
  }
  size_ = RoundUp(size, kHugePage);
  void* mapped = mmap(nullptr, size_ + kHugePage, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  // The kernel chooses the address: cut off what lies before and after the aligned part.
  const uintptr_t begin = reinterpret_cast<uintptr_t>(mapped);
  const uintptr_t aligned = RoundUp(begin, kHugePage);
  if (aligned != begin) munmap(mapped, aligned - begin);
  const size_t after = begin + kHugePage - aligned;
  data_ = reinterpret_cast<uint8_t*>(aligned);
  if (after != 0) munmap(data_ + size_, after);
  // Advice: without it there are more misses in the page tables, and nothing else is different.
  madvise(data_, size_, MADV_HUGEPAGE);
}

MappedMemory& MappedMemory::operator=(MappedMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedMemory::~MappedMemory() {
  if (size_ < kHugePage) {
    std::free(data_);
  } else {
    munmap(data_, size_);
  }
}

uint8_t* BlockMemory::Allocate(size_t bytes) {
  std::unique_ptr<Pool>& pool = pools_[bytes];
  if (pool == nullptr) pool = std::make_unique<Pool>();
  if (!pool->gaps.empty()) {
    uint8_t* const block = pool->gaps.back();
    pool->gaps.pop_back();
    return block;
  }
  if (pool->pages.empty() || pool->in_last == pool->pages.back().size / bytes) {
    pool->pages.push_back(TakePage(bytes));
    pool->in_last = 0;
  }
  return pool->pages.back().data + bytes * pool->in_last++;
}

void BlockMemory::Free(uint8_t* block, size_t bytes, Move move) {
  Pool& pool = *pools_.find(bytes)->second;
  pool.gaps.push_back(block);
  // A few gaps are left for the next blocks of this size; half at a time, so that a table that
  // neither grows nor shrinks moves nothing.
  if (pool.gaps.size() > kMaxGaps) {
    while (pool.gaps.size() > kMaxGaps / 2) DropLast(pool, bytes, move);
  }
}

void BlockMemory::DropLast(Pool& pool, size_t bytes, Move move) {
  uint8_t* const last = pool.pages.back().data + bytes * (pool.in_last - 1);
  auto gap = std::find(pool.gaps.begin(), pool.gaps.end(), last);
  if (gap == pool.gaps.end()) {
    gap = pool.gaps.end() - 1;
    move(last, *gap);
  }
  *gap = pool.gaps.back();
  pool.gaps.pop_back();
  if (--pool.in_last > 0) return;
  free_pages_[pool.pages.back().size].push_back(pool.pages.back().data);
  pool.pages.pop_back();
  if (!pool.pages.empty()) pool.in_last = pool.pages.back().size / bytes;
}

BlockMemory::Page BlockMemory::TakePage(size_t block_bytes) {
  // Large pages waste less at their end, small ones less in the last, half-empty page of each size.
  const size_t target = std::bit_floor(std::clamp<size_t>(carved_ / 1024, kMinPage, kMaxPage));
  const size_t several = 16 * block_bytes;
  size_t size = target;
  if (several > target) {
    size = RoundUp(std::clamp<size_t>(target / block_bytes, 1, 16) * block_bytes, kMinPage);
  }
  // The largest free page that is not much too large; down to one with room for several.
  auto page = free_pages_.upper_bound(2 * size);
  if (page != free_pages_.begin() && (--page)->first >= std::min(size, several)) {
    const Page taken = {page->second.back(), page->first};
    page->second.pop_back();
    if (page->second.empty()) free_pages_.erase(page);
    return taken;
  }
  if (chunks_.empty() || chunks_.back().size() - in_chunk_ < size) NewChunk(size);
  uint8_t* const data = chunks_.back().data() + in_chunk_;
  in_chunk_ += size;
  carved_ += size;
  return {data, size};
}

void BlockMemory::NewChunk(size_t at_least) {
  if (!chunks_.empty()) {
    const size_t rest = (chunks_.back().size() - in_chunk_) / kMinPage * kMinPage;
    if (rest > 0) free_pages_[rest].push_back(chunks_.back().data() + in_chunk_);
    carved_ += rest;
  }
  const size_t size = std::bit_floor(std::clamp<size_t>(carved_ / 4, kMinChunk, kMaxChunk));
  chunks_.emplace_back(std::max(size, at_least));
  in_chunk_ = 0;
}

}  // namespace parley
