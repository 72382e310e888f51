#include "ps/server/key_cache.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "ps/base/sparse_layout.h"

namespace parley {
namespace {

Buffer List(uint64_t first, size_t keys) {
  std::vector<uint64_t> list(keys);
  for (size_t i = 0; i < keys; ++i) list[i] = first + i;
  return Buffer::Copy({reinterpret_cast<const char*>(list.data()), keys * sizeof(uint64_t)});
}

KeyCache::Id IdOf(const Buffer& list, uint32_t table = 0, uint32_t partition = 0) {
  return {table, partition, KeyDigest(list.view())};
}

constexpr size_t kRoomForThree = 3 * (10 * sizeof(uint64_t) + KeyCache::kOverheadBytes);

TEST(KeyCache, FindsWhatWasRememberedAsACopyOfItsOwn) {
  BufferPool pool;
  KeyCache cache(&pool);
  Buffer list = List(1, 10);
  const KeyCache::Id id = IdOf(list);
  EXPECT_TRUE(cache.Find(id).empty());
  cache.Remember(id, list);
  cache.Remember(id, list);
  EXPECT_EQ(cache.lists(), 1u);
  const std::string before(list.view());
  EXPECT_TRUE(list.unique());  // the message that it came with is free to go
  list.mutable_data()[0] = std::byte{99};
  EXPECT_EQ(cache.Find(id).view(), before);
}

TEST(KeyCache, AListIsOfOnePartitionOfOneTable) {
  BufferPool pool;
  KeyCache cache(&pool);
  const Buffer list = List(1, 10);
  cache.Remember(IdOf(list, 1, 2), list);
  EXPECT_TRUE(cache.Find(IdOf(list, 1, 3)).empty());
  EXPECT_TRUE(cache.Find(IdOf(list, 2, 2)).empty());
  EXPECT_FALSE(cache.Find(IdOf(list, 1, 2)).empty());
}

TEST(KeyCache, TheLeastRecentlyUsedGoesFirst) {
  BufferPool pool;
  KeyCache cache(&pool, kRoomForThree);
  const Buffer lists[] = {List(0, 10), List(100, 10), List(200, 10), List(300, 10)};
  for (int i = 0; i < 3; ++i) cache.Remember(IdOf(lists[i]), lists[i]);
  const Buffer kept = cache.Find(IdOf(lists[0]));
  cache.Remember(IdOf(lists[3]), lists[3]);
  EXPECT_TRUE(cache.Find(IdOf(lists[1])).empty());
  for (int i : {0, 2, 3}) EXPECT_EQ(cache.Find(IdOf(lists[i])).view(), lists[i].view()) << i;
  // Used by remembering it again, too.
  cache.Remember(IdOf(lists[0]), lists[0]);
  cache.Remember(IdOf(lists[1]), lists[1]);
  EXPECT_TRUE(cache.Find(IdOf(lists[2])).empty());
  EXPECT_FALSE(cache.Find(IdOf(lists[0])).empty());
}

TEST(KeyCache, StaysWithinItsBoundWhateverIsSent) {
  BufferPool pool;
  KeyCache cache(&pool, kRoomForThree);
  cache.Remember(IdOf(List(7, 10)), List(7, 10));
  const Buffer huge = List(0, kRoomForThree / sizeof(uint64_t));
  cache.Remember(IdOf(huge), huge);
  EXPECT_TRUE(cache.Find(IdOf(huge)).empty());
  EXPECT_EQ(cache.lists(), 1u);  // and it has not driven out the others
  for (uint64_t i = 0; i < 1000; ++i) {
    const Buffer list = List(i, 1 + i % 12);
    cache.Remember(IdOf(list), list);
    ASSERT_LE(cache.bytes(), kRoomForThree);
    ASSERT_LE(cache.lists() * KeyCache::kOverheadBytes, cache.bytes());
  }
  EXPECT_GE(cache.lists(), 2u);
}

TEST(KeyCache, WhatWasFoundOutlivesItsBeingForgotten) {
  BufferPool pool;
  KeyCache cache(&pool, kRoomForThree);
  const Buffer first = List(42, 10);
  cache.Remember(IdOf(first), first);
  const Buffer found = cache.Find(IdOf(first));
  for (uint64_t i = 0; i < 5; ++i) cache.Remember(IdOf(List(i, 10)), List(i, 10));
  EXPECT_TRUE(cache.Find(IdOf(first)).empty());
  EXPECT_EQ(found.view(), first.view());
}

}  // namespace
}  // namespace parley
