#include "ps/table/block_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <new>
#include <utility>

#include "ps/base/round_up.h"

namespace parley {

MappedMemory::MappedMemory(size_t size) {
  if (size < kHugePage) {
    // The number of mappings of a process is limited; that of small allocations is not.
    const size_t alignment = std::bit_floor(std::max<size_t>(size, 64));
    size_ = RoundUp(std::max<size_t>(size, 1), alignment);
    data_ = static_cast<uint8_t*>(std::aligned_alloc(alignment, size_));
    if (data_ == nullptr) throw std::bad_alloc();
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
  uint8_t* const block = AllocateIn(*pool, bytes);
  ++pool->live;
  return block;
}

uint8_t* BlockMemory::AllocateIn(Pool& pool, size_t bytes) {
  if (!pool.gaps.empty()) {
    uint8_t* const block = pool.gaps.back();
    pool.gaps.pop_back();
    return block;
  }
  if (pool.pages.empty() || pool.in_last == pool.pages.back().size / bytes) {
    pool.pages.push_back(bytes > kLargeBlock ? TakeLargePage(bytes) : TakePage(bytes));
    pool.in_last = 0;
  }
  return pool.pages.back().data + bytes * pool.in_last++;
}

void BlockMemory::Free(uint8_t* block, size_t bytes, Move move) {
  Pool& pool = *pools_.find(bytes)->second;
  --pool.live;
  pool.gaps.push_back(block);
  // A few gaps are left for the next blocks of this size; half at a time, so that a table that
  // neither grows nor shrinks moves little.
  const size_t allowed = std::min(kMaxGaps, pool.live / kGapShare);
  if (pool.gaps.size() > allowed) {
    while (pool.gaps.size() > allowed / 2) DropLast(pool, bytes, move);
  }
  if (!pool.pages.empty() && pool.pages.front().size * 8 <= pool.pages.back().size) {
    DropFirst(pool, bytes, move);
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
  GivePage(pool.pages.back());
  pool.pages.pop_back();
  if (!pool.pages.empty()) pool.in_last = pool.pages.back().size / bytes;
}

void BlockMemory::DropFirst(Pool& pool, size_t bytes, Move move) {
  const Page page = pool.pages.front();
  const auto in_page = [&](const uint8_t* block) {
    return block >= page.data && block < page.data + page.size;
  };
  std::set<uint8_t*> unused;
  for (uint8_t* gap : pool.gaps) {
    if (in_page(gap)) unused.insert(gap);
  }
  std::erase_if(pool.gaps, in_page);
  for (size_t at = 0; at + bytes <= page.size; at += bytes) {
    if (!unused.contains(page.data + at)) move(page.data + at, AllocateIn(pool, bytes));
  }
  pool.pages.erase(pool.pages.begin());
  GivePage(page);
}

// The free page with the lowest address of the smallest size there is in [least, most]; data is
// null if there is none.
BlockMemory::Page BlockMemory::TakeFree(size_t least, size_t most) {
  for (auto free = free_pages_.lower_bound(least); free != free_pages_.end() && free->first <= most;
       ++free) {
    if (free->second.empty()) continue;
    const Page page = {*free->second.begin(), free->first};
    free->second.erase(free->second.begin());
    return page;
  }
  return {nullptr, 0};
}

BlockMemory::Page BlockMemory::TakePage(size_t block_bytes) {
  // Large pages waste less at their end, small ones less in the last, half-empty page of each size.
  const size_t target =
      std::bit_floor(std::clamp<size_t>(carved_ / kPageShare, kMinPage, kMaxPage));
  const size_t several = std::bit_ceil((carved_ < kMaxPage ? 1 : 8) * block_bytes);
  size_t size = std::max(target, std::min(kMaxPage, several));
  // A size nearby may leave less over at its end.
  const auto waste = [&](size_t page) { return static_cast<double>(page % block_bytes) / page; };
  for (const size_t other : {size / 2, size * 2, size * 4}) {
    if (other >= several && other <= kMaxPage && waste(other) < waste(size)) size = other;
  }
  Page page = TakeFree(size, ~size_t{0});
  // Pages from when the memory was smaller serve before new ones do.
  for (size_t less = size / 2; page.data == nullptr && less >= several; less /= 2) {
    page = TakeFree(less, less);
  }
  if (page.data == nullptr) page = Carve(size);
  // The halves that are not needed.
  while (page.size / 2 >= size) {
    page.size /= 2;
    free_pages_[page.size].insert(page.data + page.size);
  }
  return page;
}

BlockMemory::Page BlockMemory::TakeLargePage(size_t block_bytes) {
  const size_t size = RoundUp(block_bytes, kMinPage);
  std::set<uint8_t*>& free = free_pages_[size];
  if (!free.empty()) {
    const Page page = {*free.begin(), size};
    free.erase(free.begin());
    return page;
  }
  large_pages_.emplace_back(size);
  carved_ += size;
  return {large_pages_.back().data(), size};
}

void BlockMemory::GivePage(Page page) {
  // Pages of large blocks stay as they are; of others, two halves of a page make one.
  while (page.size < kMaxPage && std::has_single_bit(page.size)) {
    uint8_t* const buddy =
        reinterpret_cast<uint8_t*>(reinterpret_cast<uintptr_t>(page.data) ^ page.size);
    const auto free = free_pages_.find(page.size);
    if (free == free_pages_.end() || free->second.erase(buddy) == 0) break;
    page = {std::min(page.data, buddy), page.size * 2};
  }
  free_pages_[page.size].insert(page.data);
}

// Of a small chunk all, of a large one its next kMaxPage bytes: no page is larger.
BlockMemory::Page BlockMemory::Carve(size_t at_least) {
  if (chunks_.empty() || in_chunk_ == chunks_.back().size()) {
    const size_t size = std::bit_floor(std::clamp<size_t>(carved_ / 4, kMinChunk, kMaxChunk));
    chunks_.emplace_back(std::max(size, at_least));
    in_chunk_ = 0;
  }
  const Page page = {chunks_.back().data() + in_chunk_, std::min(chunks_.back().size(), kMaxPage)};
  in_chunk_ += page.size;
  carved_ += page.size;
  return page;
}

}  // namespace parley
