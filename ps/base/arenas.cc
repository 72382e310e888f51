#include "ps/base/arenas.h"

#include <algorithm>
#include <iterator>

#include "ps/base/round_up.h"

namespace parley {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

size_t BlockBytes(size_t capacity) {
  return RoundUp(std::max<size_t>(capacity, 1), Buffer::kAlignment);
}

}  // namespace

std::byte* Arenas::Allocate(size_t capacity) {
  if (capacity > options_.max_bytes) return nullptr;
  const size_t size = BlockBytes(capacity);
  std::lock_guard lock(mu_);
  auto found = by_size_.lower_bound({size, nullptr});
  if (found == by_size_.end()) {
    if (!AddArena(size)) return nullptr;
    found = by_size_.lower_bound({size, nullptr});
  }
  const auto [have, memory] = *found;
  TakeFree(free_.find(memory));
  if (have > size) AddFree(memory + size, have - size);
  return memory;
}

void Arenas::Free(std::byte* memory, size_t capacity) {
  size_t size = BlockBytes(capacity);
  std::lock_guard lock(mu_);
  // Two arenas may lie side by side in the address space; a block across both would be found in
  // neither, so neighbours merge within one only.
  const uint32_t home = Find(memory, size)->arena;
  auto next = free_.lower_bound(memory);
  if (next != free_.end() && next->first == memory + size &&
      Find(next->first, next->second)->arena == home) {
    size += next->second;
    TakeFree(next);
  }
  auto after = free_.lower_bound(memory);
  if (after != free_.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second == memory &&
        Find(before->first, before->second)->arena == home) {
      memory = before->first;
      size += before->second;
      TakeFree(before);
    }
  }
  AddFree(memory, size);
}

std::optional<Arenas::Place> Arenas::Find(const void* data, size_t size) const {
  const auto* const bytes = static_cast<const std::byte*>(data);
  const uint32_t count = num_arenas();
  // A job has a few arenas. The newest are the ones in use while it grows.
  for (uint32_t i = count; i-- > 0;) {
    const std::byte* const begin = arenas_[i].data;
    const size_t arena_size = arenas_[i].size;
    if (bytes < begin || bytes >= begin + arena_size) continue;
    const uint64_t offset = static_cast<uint64_t>(bytes - begin);
    if (size > arena_size - offset) return std::nullopt;
    return Place{i, offset};
  }
  return std::nullopt;
}

void Arenas::Watch(OnArena on_arena) {
  std::lock_guard lock(mu_);
  on_arena_ = std::move(on_arena);
  for (uint32_t id = 0; id < num_arenas(); ++id) on_arena_(arenas_[id].data, arenas_[id].size);
}

bool Arenas::AddArena(size_t capacity) {
  const uint32_t id = count_.load(std::memory_order_relaxed);
  const size_t size = std::max(options_.arena_bytes, RoundUp(capacity, kHugePage));
  if (id == kMaxArenas || total_bytes_ + size > options_.max_bytes) return false;
  const std::optional<Arena> arena = Make(id, size);
  if (!arena.has_value()) return false;
  arenas_[id] = *arena;
  total_bytes_ += arena->size;
  if (on_arena_) on_arena_(arena->data, arena->size);
  AddFree(arena->data, arena->size);
  count_.store(id + 1, std::memory_order_release);
  return true;
}

void Arenas::AddFree(std::byte* memory, size_t size) {
  free_.emplace(memory, size);
  by_size_.emplace(size, memory);
}

void Arenas::TakeFree(std::map<std::byte*, size_t>::iterator block) {
  by_size_.erase({block->second, block->first});
  free_.erase(block);
}

}  // namespace parley
