// Arenas: a source of memory that peers on this host can be lent to read without a copy.
//
// Memory comes in arenas, made one by one as they are needed: of shared memory (shared_arenas.h) or
// of a GPU's (ps/gpu/device_arenas.h). A block is known to others by its arena's number and its
// offset; the transport sends an arena's descriptor before the first reference into it. What has
// been taken is never given back to the system: pages that have been touched are the point (fresh
// ones are written at 2.4 GB/s, used ones at 14), and peers have them mapped anyway. Freed blocks
// merge with free neighbours; the smallest that fits is handed out.
//
// Whoever is lent one block of an arena can read all of it. So only the same user's processes are
// lent any (shm_transport.h), and nothing but tensors belongs in here.
//
// Thread-safety: all methods from any thread; Find and arena take no lock.
#ifndef PARLEY_PS_BASE_ARENAS_H_
#define PARLEY_PS_BASE_ARENAS_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <utility>

#include "ps/base/buffer.h"

namespace parley {

class Arenas : public MemorySource {
 public:
  static constexpr uint32_t kMaxArenas = 256;

  struct Options {
    // Of one arena; a larger block gets one of its own. Smaller ones waste less at the end of a
    // small job, larger ones mean fewer mappings. A multiple of 2 MiB.
    size_t arena_bytes = size_t{64} << 20;
    // Of all together; past it (or past kMaxArenas) Allocate returns null. It bounds what is never
    // given back. 0: none at all.
    size_t max_bytes = size_t{16} << 30;
  };
  struct Place {
    uint32_t arena;
    uint64_t offset;
    bool operator==(const Place&) const = default;
  };
  struct Arena {
    std::byte* data = nullptr;
    size_t size = 0;
    int fd = -1;  // to lend to others; the arena's
  };

  // Null if the bound is reached or the system has no more.
  std::byte* Allocate(size_t capacity) override;
  void Free(std::byte* memory, size_t capacity) override;

  // Is told of every arena, those there are at once and each later one as it is made, before memory
  // of it is handed out: a GPU pins them. Called with a lock held, on whichever thread allocates;
  // once at most.
  using OnArena = std::function<void(std::byte* memory, size_t size)>;
  void Watch(OnArena on_arena);

  // Where the bytes lie; nullopt if they are not, as a whole, in one arena.
  std::optional<Place> Find(const void* data, size_t size) const;

  // REQUIRES: id < num_arenas(). It stays until this object goes.
  const Arena& arena(uint32_t id) const { return arenas_[id]; }
  uint32_t num_arenas() const { return count_.load(std::memory_order_acquire); }

 protected:
  explicit Arenas(Options options) : options_(options) {}

  // Makes arena `id`, of at least `size` bytes, which stays until this object goes; nullopt if the
  // system has no more. One call at a time.
  virtual std::optional<Arena> Make(uint32_t id, size_t size) = 0;

 private:
  bool AddArena(size_t capacity);
  void AddFree(std::byte* memory, size_t size);
  void TakeFree(std::map<std::byte*, size_t>::iterator block);

  const Options options_;
  // An entry is complete before the count includes it and does not change afterwards.
  std::array<Arena, kMaxArenas> arenas_;
  std::atomic<uint32_t> count_{0};

  std::mutex mu_;  // guards the rest; held for a look-up in a tree, rarely for making an arena
  OnArena on_arena_;
  size_t total_bytes_ = 0;
  std::map<std::byte*, size_t> free_;  // by address; neighbours are merged
  std::set<std::pair<size_t, std::byte*>> by_size_;
};

}  // namespace parley

#endif  // PARLEY_PS_BASE_ARENAS_H_
