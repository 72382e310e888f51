// TouchedRows: nothing that was touched or removed is missed, and memory is bounded.
#include "ps/table/touched_rows.h"

#include <set>

#include "gtest/gtest.h"
#include "ps/base/sparse_layout.h"

namespace parley {
namespace {

TEST(TouchedRowsTest, WhatWasTouchedIsKnown) {
  for (const int partition_bits : {0, 1, 16}) {
    TouchedRows touched(partition_bits);
    EXPECT_FALSE(touched.knows());
    touched.Begin(10000);
    ASSERT_TRUE(touched.knows());
    const uint64_t prefix = partition_bits == 0 ? 0 : uint64_t{1} << (64 - partition_bits);
    const auto hash = [&](uint64_t key) { return prefix | KeyHash(key) >> partition_bits; };
    for (uint64_t key = 0; key < 1000; ++key) EXPECT_FALSE(touched.IsTouched(hash(key)));
    for (uint64_t key = 0; key < 1000; ++key) {
      const uint64_t touch = hash(key);
      touched.Touch(&touch, 1);
    }
    for (uint64_t key = 0; key < 1000; ++key) EXPECT_TRUE(touched.IsTouched(hash(key)));
    int others = 0;
    for (uint64_t key = 1000; key < 10000; ++key) others += touched.IsTouched(hash(key));
    EXPECT_LE(others, 9000 / 8 / 10 * 11 / 10) << partition_bits;
    touched.Begin(10000);
    EXPECT_FALSE(touched.IsTouched(hash(0)));
    touched.Stop();
    EXPECT_FALSE(touched.knows());
    EXPECT_EQ(touched.memory_bytes(), 0u);
  }
}

TEST(TouchedRowsTest, GoneAreListedOnceAndBounded) {
  TouchedRows touched(0);
  touched.Begin(10);
  // The same keys come and go.
  for (int round = 0; round < 10; ++round) {
    for (uint64_t key = 0; key < TouchedRows::kMinGone / 4; ++key) {
      touched.Remove(KeyHash(key));
      ASSERT_TRUE(touched.knows());
    }
  }
  const std::vector<uint64_t>& gone = touched.Gone();
  EXPECT_EQ(gone.size(), TouchedRows::kMinGone / 4);
  EXPECT_TRUE(std::set<uint64_t>(gone.begin(), gone.end()).contains(KeyHash(77)));
  EXPECT_LE(touched.memory_bytes(), 8 * (2 * TouchedRows::kMinGone) + 4096 / 8);
  // Ever others.
  uint64_t key = 0;
  while (touched.knows() && key < 2 * TouchedRows::kMinGone) touched.Remove(KeyHash(key++));
  EXPECT_FALSE(touched.knows());
  EXPECT_EQ(touched.memory_bytes(), 0u);
}

}  // namespace
}  // namespace parley
