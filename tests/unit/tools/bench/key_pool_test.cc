#include "benchmarks/limits/key_pool.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

namespace parley {
namespace {

std::map<uint64_t, uint64_t> RowOfKey(uint64_t rows) {
  std::map<uint64_t, uint64_t> row_of;
  for (uint64_t row = 0; row < rows; ++row) row_of[KeyOfRow(row)] = row;
  return row_of;
}

TEST(KeyPoolTest, UniformKeysAreOfTheTableAndEven) {
  constexpr uint64_t kRows = 16, kDraws = 1 << 16;
  const std::map<uint64_t, uint64_t> row_of = RowOfKey(kRows);
  ASSERT_EQ(row_of.size(), kRows);
  KeyPool pool({.rows = kRows, .draws = kDraws});
  std::map<uint64_t, uint64_t> count;
  for (uint64_t key : pool.Next(kDraws)) {
    ASSERT_TRUE(row_of.contains(key));
    ++count[row_of.at(key)];
  }
  // 4096 each, with a standard deviation of 62.
  for (uint64_t row = 0; row < kRows; ++row) EXPECT_NEAR(count[row], kDraws / kRows, 400) << row;
}

TEST(KeyPoolTest, ZipfFollowsItsLaw) {
  constexpr uint64_t kRows = 1000, kDraws = 1 << 16;
  const double exponent = 1.05;
  const std::map<uint64_t, uint64_t> row_of = RowOfKey(kRows);
  KeyPool pool({.rows = kRows, .zipf = exponent, .draws = kDraws});
  std::map<uint64_t, uint64_t> count;
  for (uint64_t key : pool.Next(kDraws)) ++count[row_of.at(key)];
  double sum = 0;
  for (uint64_t row = 0; row < kRows; ++row) sum += std::pow(row + 1, -exponent);
  for (uint64_t row : {0, 1, 4, 30}) {
    const double expected = kDraws * std::pow(row + 1, -exponent) / sum;
    EXPECT_NEAR(count[row], expected, 6 * std::sqrt(expected)) << row;
  }
}

TEST(KeyPoolTest, RequestsAreNotAlike) {
  KeyPool pool({.rows = 1'000'000, .draws = 100'000});
  std::set<uint64_t> first;
  for (int i = 0; i < 50; ++i) {
    const absl::Span<const uint64_t> keys = pool.Next(100);
    ASSERT_EQ(keys.size(), 100);
    first.insert(keys[0]);
  }
  EXPECT_GT(first.size(), 45);
}

TEST(KeyPoolTest, DistributionsByName) {
  EXPECT_EQ(*KeyPool::ParseDistribution("uniform"), 0);
  EXPECT_EQ(*KeyPool::ParseDistribution("zipf:1.05"), 1.05);
  for (const char* text :
       {"", "zipf", "zipf:", "zipf:0", "zipf:-1", "zipf:nan", "zipf:11", "even"}) {
    EXPECT_EQ(KeyPool::ParseDistribution(text).status().code(), absl::StatusCode::kInvalidArgument)
        << text;
  }
}

}  // namespace
}  // namespace parley
