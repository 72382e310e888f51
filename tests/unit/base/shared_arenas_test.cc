// Shared memory that is sealed, arenas of it, and pools that take from them.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "ps/base/buffer.h"
#include "ps/base/payload_copy.h"
#include "ps/base/philox.h"
#include "ps/base/shared_arenas.h"
#include "ps/base/shared_memory.h"

namespace parley {
namespace {

using ::testing::HasSubstr;

constexpr size_t kMiB = size_t{1} << 20;

TEST(SharedMemory, AReaderSeesWhatTheOwnerWritesAndCanDoNothingToIt) {
  absl::StatusOr<SharedMemory> own = SharedMemory::Create("test", kMiB);
  ASSERT_TRUE(own.ok()) << own.status();
  const int fd = dup(own->fd());
  EXPECT_NE(ftruncate(fd, 0), 0);
  EXPECT_NE(ftruncate(fd, 2 * kMiB), 0);
  EXPECT_EQ(mmap(nullptr, kMiB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
  EXPECT_NE(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
  absl::StatusOr<SharedMemory> foreign = SharedMemory::MapForeign(fd, kMiB);
  ASSERT_TRUE(foreign.ok()) << foreign.status();
  std::memcpy(own->data() + 5, "hello", 5);
  EXPECT_EQ(std::memcmp(foreign->data() + 5, "hello", 5), 0);
  EXPECT_NE(mprotect(foreign->data(), kMiB, PROT_READ | PROT_WRITE), 0);
  // It outlives its owner.
  *own = SharedMemory();
  EXPECT_EQ(std::memcmp(foreign->data() + 5, "hello", 5), 0);
}

TEST(SharedMemory, WhatCouldShrinkOrIsOfAnotherSizeIsRefused) {
  const int open_fd = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  ASSERT_EQ(ftruncate(open_fd, kMiB), 0);
  const absl::Status unsealed = SharedMemory::MapForeign(open_fd, kMiB).status();
  EXPECT_THAT(std::string(unsealed.message()), HasSubstr("seals are 0"));
  absl::StatusOr<SharedMemory> own = SharedMemory::Create("test", kMiB);
  ASSERT_TRUE(own.ok());
  for (const size_t said : {size_t{0}, kMiB - 1, 2 * kMiB}) {
    EXPECT_EQ(SharedMemory::MapForeign(dup(own->fd()), said).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  int pipes[2];
  ASSERT_EQ(pipe(pipes), 0);
  EXPECT_FALSE(SharedMemory::MapForeign(pipes[0], kMiB).ok());
  close(pipes[1]);
}

TEST(SharedArenas, BlocksDoNotOverlapAndAreFoundWhereTheyLie) {
  SharedArenas arenas({.arena_bytes = 2 * kMiB, .max_bytes = 64 * kMiB});
  std::map<std::byte*, size_t> blocks;
  for (uint64_t step = 0; step < 20'000; ++step) {
    const auto words = Philox(3, 0, step);
    if (words[0] % 2 == 0 && !blocks.empty()) {
      auto block = blocks.lower_bound(blocks.begin()->first + words[1] % (8 * kMiB));
      if (block == blocks.end()) block = blocks.begin();
      arenas.Free(block->first, block->second);
      blocks.erase(block);
      continue;
    }
    const size_t size = 1 + words[2] % (words[3] % 64 == 0 ? 3 * kMiB : 5000);
    std::byte* const memory = arenas.Allocate(size);
    if (memory == nullptr) continue;
    ASSERT_EQ(reinterpret_cast<uintptr_t>(memory) % Buffer::kAlignment, 0);
    const auto next = blocks.lower_bound(memory);
    if (next != blocks.end()) {
      ASSERT_LE(memory + size, next->first);
    }
    if (next != blocks.begin()) {
      ASSERT_LE(std::prev(next)->first + std::prev(next)->second, memory);
    }
    blocks.emplace(memory, size);
    const auto place = arenas.Find(memory, size);
    ASSERT_TRUE(place.has_value());
    ASSERT_EQ(arenas.arena(place->arena).data + place->offset, memory);
  }
  // All comes together again: what was in small pieces is one.
  const uint32_t before = arenas.num_arenas();
  for (const auto& [memory, size] : blocks) arenas.Free(memory, size);
  std::vector<std::byte*> whole;
  for (uint32_t i = 0; i < before; ++i) whole.push_back(arenas.Allocate(2 * kMiB));
  EXPECT_EQ(arenas.num_arenas(), before);
  for (std::byte* memory : whole) EXPECT_NE(memory, nullptr);
}

TEST(SharedArenas, TheBoundHoldsAndForeignBytesAreNotFound) {
  SharedArenas arenas({.arena_bytes = 2 * kMiB, .max_bytes = 4 * kMiB});
  std::byte* const first = arenas.Allocate(2 * kMiB);
  ASSERT_NE(first, nullptr);
  ASSERT_NE(arenas.Allocate(kMiB), nullptr);
  EXPECT_EQ(arenas.Allocate(2 * kMiB), nullptr);
  EXPECT_EQ(arenas.Allocate(5 * kMiB), nullptr);
  EXPECT_NE(arenas.Allocate(kMiB), nullptr);
  int here = 0;
  EXPECT_FALSE(arenas.Find(&here, sizeof(here)).has_value());
  EXPECT_FALSE(arenas.Find(first + kMiB, 8 * kMiB).has_value()) << "past the arena's end";
}

TEST(SharedArenas, APoolTakesFromThemWhileTheyLastAndReusesWhatItHas) {
  const auto arenas = std::make_shared<SharedArenas>(
      SharedArenas::Options{.arena_bytes = 2 * kMiB, .max_bytes = 2 * kMiB});
  std::vector<Buffer> held;
  {
    BufferPool pool(kMiB, arenas);
    const std::byte* const first = pool.Allocate(300'000).data();
    EXPECT_EQ(pool.Allocate(300'000).data(), first) << "a touched block is taken again";
    for (int i = 0; i < 8; ++i) held.push_back(pool.Allocate(kMiB / 2));
    int shared = 0;
    for (const Buffer& buffer : held) shared += arenas->Find(buffer.data(), buffer.size()) ? 1 : 0;
    EXPECT_GE(shared, 2);
    EXPECT_LE(shared, 4) << "the rest is the heap's";
  }
  held.clear();  // Buffers may outlive their pool
  EXPECT_NE(arenas->Allocate(2 * kMiB), nullptr) << "all came back";
}

TEST(SharedArenas, BuffersComeHomeFromOtherThreads) {
  const auto arenas = std::make_shared<SharedArenas>();
  BufferPool pool(0, arenas);  // nothing is cached: every block goes through the arenas
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        Buffer buffer = pool.Allocate(static_cast<size_t>(1 + i % 70'000));
        buffer.mutable_data()[0] = std::byte{1};
        EXPECT_TRUE(arenas->Find(buffer.data(), buffer.size()).has_value());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(arenas->num_arenas(), 1);
}

TEST(PayloadCopy, IsCounted) {
  const PayloadCopies before = CountPayloadCopies();
  char to[16];
  CopyPayload(to, "0123456789", 10);
  CopyPayload(nullptr, nullptr, 0);
  EXPECT_EQ(std::memcmp(to, "0123456789", 10), 0);
  EXPECT_EQ(CountPayloadCopies().bytes - before.bytes, 10);
  EXPECT_EQ(CountPayloadCopies().calls - before.calls, 1);
}

}  // namespace
}  // namespace parley
