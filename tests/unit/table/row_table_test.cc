// RowTable beside a map: growth through many splits, erasure, and keys chosen to do harm.
#include "ps/table/row_table.h"

#include <sys/resource.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <new>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "ps/base/sparse_layout.h"

namespace parley {
namespace {

constexpr uint64_t kAll = ~uint64_t{0};

// Writes to the whole row something that only this hash has.
void Fill(uint64_t hash, uint8_t* row, uint32_t bytes) {
  for (uint32_t i = 0; i < bytes; ++i)
    row[i] = static_cast<uint8_t>(KeyOfHash(hash) >> (i % 8 * 8));
}
bool IsFilled(uint64_t hash, const uint8_t* row, uint32_t bytes) {
  std::vector<uint8_t> expected(bytes);
  Fill(hash, expected.data(), bytes);
  return std::memcmp(row, expected.data(), bytes) == 0;
}

uint8_t* FindOne(const RowTable& table, uint64_t hash) {
  uint8_t* row = nullptr;
  table.Find(&hash, 1, &row);
  return row;
}

void Insert(RowTable& table, uint64_t hash, uint32_t bytes) {
  ASSERT_EQ(FindOne(table, hash), nullptr);
  Fill(hash, table.Insert(hash), bytes);
}

// Every hash of `hashes` has its row, and ForEach visits each once.
void ExpectHolds(const RowTable& table, const std::vector<uint64_t>& hashes, uint32_t bytes) {
  ASSERT_EQ(table.rows(), hashes.size());
  std::vector<uint8_t*> rows(hashes.size());
  for (size_t at = 0; at < hashes.size(); at += RowTable::kBatch) {
    const size_t n = std::min<size_t>(RowTable::kBatch, hashes.size() - at);
    table.Find(hashes.data() + at, static_cast<uint32_t>(n), rows.data() + at);
  }
  for (size_t i = 0; i < hashes.size(); ++i) {
    ASSERT_NE(rows[i], nullptr) << i;
    ASSERT_TRUE(IsFilled(hashes[i], rows[i], bytes)) << i;
  }
  std::map<uint64_t, int> visits;
  table.ForEach(0, kAll, [&](uint64_t hash, const uint8_t* row) {
    ++visits[hash];
    EXPECT_TRUE(IsFilled(hash, row, bytes));
  });
  ASSERT_EQ(visits.size(), hashes.size());
  for (const uint64_t hash : hashes) ASSERT_EQ(visits[hash], 1);
}

TEST(RowTableTest, GrowsThroughManySplits) {
  for (const uint32_t bytes : {4u, 12u, 64u, 68u, 196u, 3000u, 65536u}) {
    for (const int bits : {0, 4, 16}) {
      RowTable table(bits, bits == 0 ? 0 : 9, bytes);
      std::vector<uint64_t> hashes;
      const size_t n = bytes > 1000 ? 400 : 20000;
      for (uint64_t key = 0; hashes.size() < n; ++key) {
        uint64_t hash = KeyHash(key);
        if (bits > 0) hash = hash >> bits | uint64_t{9} << (64 - bits);
        hashes.push_back(hash);
        Insert(table, hash, bytes);
        if (hashes.size() % (n / 3) == 0) ExpectHolds(table, hashes, bytes);
      }
      ExpectHolds(table, hashes, bytes);
      EXPECT_EQ(table.overflow_rows(), 0u);
      for (uint64_t key = n; key < n + 1000; ++key) {
        ASSERT_EQ(FindOne(table, KeyHash(key * 3 + 77777777)), nullptr);
      }
    }
  }
}

TEST(RowTableTest, ErasesAndGivesMemoryBackToUse) {
  for (const uint32_t bytes : {4u, 64u, 200u}) {
    RowTable table(2, 3, bytes);
    std::mt19937_64 random(bytes);
    std::map<uint64_t, bool> model;
    uint64_t most = 0;
    for (int round = 0; round < 30; ++round) {
      for (int i = 0; i < 2000; ++i) {
        const uint64_t hash = random() | uint64_t{3} << 62;
        if (model.try_emplace(hash, true).second) Insert(table, hash, bytes);
      }
      // Half of a part of the range.
      uint64_t first = random() | uint64_t{3} << 62, last = random() | uint64_t{3} << 62;
      if (round % 3 == 0) first = 0, last = kAll;
      const auto drop = [](uint64_t hash) { return hash % 2 == 0; };
      const uint64_t erased = table.EraseIf(first, last, [&](uint64_t hash, const uint8_t* row) {
        EXPECT_TRUE(IsFilled(hash, row, bytes));
        EXPECT_TRUE(hash >= first && hash <= last);
        return drop(hash);
      });
      EXPECT_EQ(erased, std::erase_if(model, [&](const auto& entry) {
                  return entry.first >= first && entry.first <= last && drop(entry.first);
                }));
      std::vector<uint64_t> hashes;
      for (const auto& [hash, unused] : model) hashes.push_back(hash);
      ExpectHolds(table, hashes, bytes);
      most = std::max(most, table.memory_bytes());
    }
    table.EraseIf(0, kAll, [](uint64_t, const uint8_t*) { return true; });
    EXPECT_EQ(table.rows(), 0u);
    ExpectHolds(table, {}, bytes);
    // What was freed serves again.
    for (uint64_t i = 0; i < 20000; ++i) Insert(table, KeyHash(i) | uint64_t{3} << 62, bytes);
    EXPECT_LT(table.memory_bytes(), 2 * most);
  }
}

TEST(RowTableTest, KeysWithOneTagAndSpecialKeys) {
  RowTable table(0, 0, 16);
  std::vector<uint64_t> hashes;
  for (uint64_t i = 0; i < 3000; ++i) hashes.push_back(KeyHash(i) << 8 | 0x5A);
  for (const uint64_t key : {uint64_t{0}, kAll, uint64_t{1} << 63}) hashes.push_back(KeyHash(key));
  hashes.push_back(kAll);  // as hashes
  hashes.push_back(1);
  for (const uint64_t hash : hashes) Insert(table, hash, 16);
  ExpectHolds(table, hashes, 16);
}

// Hashes that differ in their lowest bits alone: no directory that fits into memory separates them.
TEST(RowTableTest, KeysChosenForOneBucketGoToTheOverflow) {
  RowTable table(4, 5, 16);
  std::vector<uint64_t> hashes;
  for (uint64_t i = 0; i < 20000; ++i) hashes.push_back(uint64_t{5} << 60 | i);
  for (const uint64_t hash : hashes) Insert(table, hash, 16);
  EXPECT_LE(table.directory_size(), RowTable::kMinDirectory);
  EXPECT_GT(table.overflow_rows(), 19000u);
  ExpectHolds(table, hashes, 16);
  // The table goes on as usual beside them, and they can be erased.
  for (uint64_t i = 0; i < 5000; ++i) {
    hashes.push_back(uint64_t{5} << 60 | KeyHash(i) >> 4 | uint64_t{1} << 59);
    Insert(table, hashes.back(), 16);
  }
  ExpectHolds(table, hashes, 16);
  EXPECT_EQ(table.EraseIf(uint64_t{5} << 60, (uint64_t{5} << 60) + 19999,
                          [](uint64_t, const uint8_t*) { return true; }),
            20000u);
  EXPECT_EQ(table.overflow_rows(), 0u);
  EXPECT_EQ(table.rows(), 5000u);
}

// In a process that may not grow by more than 32 MiB: 0 if, when that is used up, the rows that are
// counted are those that are found.
int InsertUntilThereIsNoMemory(uint32_t bytes) {
  uint64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  const rlimit limit = {(pages << 12) + (32 << 20), RLIM_INFINITY};
  RowTable table(0, 0, bytes);
  if (setrlimit(RLIMIT_AS, &limit) != 0) return 1;
  uint64_t inserted = 0;
  try {
    for (;; ++inserted) Fill(KeyHash(inserted), table.Insert(KeyHash(inserted)), bytes);
  } catch (const std::bad_alloc&) {
  }
  if (table.rows() != inserted || inserted * bytes < (4 << 20)) return 2;
  uint64_t visited = 0;
  table.ForEach(0, kAll, [&](uint64_t, const uint8_t*) { ++visited; });
  if (visited != inserted) return 3;
  for (uint64_t key = 0; key < inserted; ++key) {
    if (FindOne(table, KeyHash(key)) == nullptr) return 4;
  }
  return FindOne(table, KeyHash(inserted)) == nullptr ? 0 : 5;
}

TEST(RowTableDeathTest, ARowThereIsNoMemoryForIsNotCounted) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the sanitizer ends a process that has no memory";
#endif
  for (const uint32_t bytes : {64u, 4096u, 65536u}) {
    EXPECT_EXIT(std::_Exit(InsertUntilThereIsNoMemory(bytes)), testing::ExitedWithCode(0), "")
        << bytes;
  }
}

TEST(RowTableTest, MemoryStaysNearThePayload) {
  for (const uint64_t rows : {100000u, 150000u, 200000u, 300000u, 400000u}) {
    RowTable table(0, 0, 64);
    for (uint64_t i = 0; i < rows; ++i) table.Insert(KeyHash(i));
    EXPECT_LT(static_cast<double>(table.memory_bytes()) / static_cast<double>(rows),
              64 * (rows < 200000 ? 1.45 : 1.3))
        << rows;
  }
}

TEST(KeyHashTest, RoundTrip) {
  for (const uint64_t key : {uint64_t{0}, uint64_t{1}, kAll, uint64_t{1} << 63}) {
    EXPECT_EQ(KeyOfHash(KeyHash(key)), key);
  }
  std::mt19937_64 random(1);
  for (int i = 0; i < 100000; ++i) {
    const uint64_t key = random();
    ASSERT_EQ(KeyOfHash(KeyHash(key)), key);
  }
}

TEST(BlockMemoryTest, KeepsWhatIsAliveWhereItIsTold) {
  BlockMemory memory;
  std::mt19937_64 random(3);
  std::map<uint64_t, std::pair<uint8_t*, size_t>> blocks;  // by what is written in them
  std::map<uint8_t*, uint64_t> owner;
  uint64_t next = 1, in_use = 0;
  for (int i = 0; i < 60000; ++i) {
    const bool grow = random() % 100 < (i / 10000 % 2 == 0 ? 70 : 30);
    if (grow || blocks.empty()) {
      const size_t bytes = 64 * (1 + random() % 6) * (random() % 8 == 0 ? 20 : 1);
      uint8_t* const block = memory.Allocate(bytes);
      ASSERT_EQ(reinterpret_cast<uintptr_t>(block) % 64, 0u);
      ASSERT_TRUE(owner.emplace(block, next).second);
      std::memcpy(block, &next, sizeof(next));
      std::memcpy(block + bytes - sizeof(next), &next, sizeof(next));
      blocks[next++] = {block, bytes};
      in_use += bytes;
      continue;
    }
    auto victim = blocks.lower_bound(random() % next);
    if (victim == blocks.end()) victim = blocks.begin();
    const auto [block, bytes] = victim->second;
    blocks.erase(victim);
    owner.erase(block);
    in_use -= bytes;
    memory.Free(block, bytes, [&, bytes = bytes](uint8_t* from, uint8_t* to) {
      const uint64_t id = owner.at(from);
      owner.erase(from);
      ASSERT_TRUE(owner.emplace(to, id).second);
      ASSERT_EQ(blocks.at(id).second, bytes);
      blocks.at(id).first = to;
      std::memcpy(to, from, bytes);
    });
  }
  for (const auto& [id, block] : blocks) {
    uint64_t begin = 0, end = 0;
    std::memcpy(&begin, block.first, sizeof(begin));
    std::memcpy(&end, block.first + block.second - sizeof(end), sizeof(end));
    ASSERT_EQ(begin, id);
    ASSERT_EQ(end, id);
  }
  EXPECT_GT(memory.bytes(), in_use);
}

// As a saved state brings them.
TEST(RowTableTest, RowsThatComeInOrderFindRoom) {
  constexpr uint64_t kRows = 60000;
  std::vector<uint64_t> hashes;
  for (uint64_t key = 0; key < kRows; ++key) hashes.push_back(KeyHash(key));
  RowTable any_order(0, 0, 8), in_order(0, 0, 8), unexpected(0, 0, 8);
  for (const uint64_t hash : hashes) std::memcpy(any_order.Insert(hash), &hash, 8);
  std::sort(hashes.begin(), hashes.end());
  in_order.Expect(kRows);
  for (const uint64_t hash : hashes) std::memcpy(in_order.Insert(hash), &hash, 8);
  in_order.Expect(0);
  for (const uint64_t hash : hashes) std::memcpy(unexpected.Insert(hash), &hash, 8);
  EXPECT_EQ(any_order.overflow_rows(), 0u);
  EXPECT_EQ(in_order.overflow_rows(), 0u);
  EXPECT_GT(unexpected.overflow_rows(), 0u);
  EXPECT_EQ(in_order.directory_size(), any_order.directory_size());
  for (const RowTable* table : {&any_order, &in_order, &unexpected}) {
    std::vector<uint64_t> visited;
    table->ForEachInOrder([&](uint64_t hash, const uint8_t* row) {
      EXPECT_EQ(std::memcmp(row, &hash, 8), 0);
      visited.push_back(hash);
    });
    EXPECT_EQ(visited, hashes);
  }
}

}  // namespace
}  // namespace parley
