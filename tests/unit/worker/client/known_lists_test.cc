#include "worker/client/known_lists.h"

#include <gtest/gtest.h>

#include <cstring>

#include "ps/server/key_cache.h"

namespace parley {
namespace {

ListDigest Digest(uint64_t number) {
  ListDigest digest = {};
  std::memcpy(digest.data(), &number, sizeof(number));
  return digest;
}

TEST(KnownListsTest, WhatIsKnownHereFitsThere) {
  EXPECT_EQ(KnownLists::kOverheadBytes, KeyCache::kOverheadBytes);
  EXPECT_LE(2 * KnownLists::kMaxBytes, KeyCache::kMaxBytes);
  // The shortest lists of two tables: mostly overhead.
  KnownLists known;
  BufferPool pool;
  KeyCache cache(&pool);
  const uint64_t bytes = KnownLists::kMinKeys * sizeof(uint64_t);
  constexpr uint64_t kLists = 150'000;
  const Buffer keys = Buffer::Allocate(bytes);
  for (uint64_t i = 0; i < kLists; ++i) {
    const uint32_t table = 1 + i % 2;
    known.Remember(table, Digest(i), bytes);
    cache.Remember({.table = table, .partition = 0, .digest = Digest(i)}, keys);
  }
  EXPECT_LE(known.bytes(), KnownLists::kMaxBytes);
  EXPECT_LT(known.lists(), kLists);
  EXPECT_GT(known.lists(), 50'000u);
  uint64_t here = 0;
  for (uint64_t i = 0; i < kLists; ++i) {
    const uint32_t table = 1 + i % 2;
    if (!known.Contains(table, Digest(i))) continue;
    ++here;
    ASSERT_FALSE(cache.Find({.table = table, .partition = 0, .digest = Digest(i)}).empty()) << i;
  }
  EXPECT_EQ(here, known.lists());
}

TEST(KnownListsTest, AListOfOneTableIsNotKnownOfAnother) {
  KnownLists known;
  known.Remember(1, Digest(7), 100);
  EXPECT_TRUE(known.Contains(1, Digest(7)));
  EXPECT_FALSE(known.Contains(2, Digest(7)));
  known.Remember(2, Digest(7), 100);
  EXPECT_EQ(known.lists(), 2u);
  known.Forget(1, Digest(7));
  known.Forget(1, Digest(8));  // never known
  EXPECT_FALSE(known.Contains(1, Digest(7)));
  EXPECT_TRUE(known.Contains(2, Digest(7)));
  EXPECT_EQ(known.bytes(), 100 + KnownLists::kOverheadBytes);
}

TEST(KnownListsTest, TheLeastRecentlyUsedGoesAndOneTooLargePushesNobodyOut) {
  KnownLists known;
  const uint64_t third = KnownLists::kMaxBytes / 3 - KnownLists::kOverheadBytes;
  for (uint64_t i = 0; i < 3; ++i) known.Remember(1, Digest(i), third);
  known.Remember(1, Digest(0), third);  // used again
  known.Remember(1, Digest(9), KnownLists::kMaxBytes);
  EXPECT_FALSE(known.Contains(1, Digest(9)));
  EXPECT_EQ(known.lists(), 3u);
  known.Remember(1, Digest(3), third);
  EXPECT_TRUE(known.Contains(1, Digest(0)));
  EXPECT_FALSE(known.Contains(1, Digest(1)));
  EXPECT_TRUE(known.Contains(1, Digest(2)));
  EXPECT_TRUE(known.Contains(1, Digest(3)));
}

}  // namespace
}  // namespace parley
