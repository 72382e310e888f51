#include "ps/base/sparse_layout.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace parley {
namespace {

pb::TableSpec Table(uint32_t dim, uint32_t partitions) {
  pb::TableSpec table;
  table.set_name("rows");
  table.mutable_sparse()->set_dim(dim);
  table.mutable_sparse()->set_partitions(partitions);
  return table;
}

TEST(SparseLayoutTest, TheHashIsABijection) {
  std::mt19937_64 random(1);
  for (uint64_t key : {uint64_t{0}, uint64_t{1}, ~uint64_t{0}})
    EXPECT_EQ(KeyOfHash(KeyHash(key)), key);
  for (int i = 0; i < 1000; ++i) {
    const uint64_t key = random();
    ASSERT_EQ(KeyOfHash(KeyHash(key)), key);
    ASSERT_EQ(KeyHash(KeyOfHash(key)), key);
  }
}

TEST(SparseLayoutTest, NeighbouringKeysAreSpreadEvenly) {
  const SparseLayout layout = *SparseLayout::Create(Table(4, 16));
  std::vector<int> counts(layout.partitions());
  for (uint64_t key = 0; key < 16000; ++key) ++counts[layout.PartitionOf(key)];
  for (int count : counts) EXPECT_NEAR(count, 1000, 150);
}

TEST(SparseLayoutTest, OnePartitionHoldsEverything) {
  const SparseLayout layout = *SparseLayout::Create(Table(4, 1));
  EXPECT_EQ(layout.partitions(), 1u);
  EXPECT_EQ(layout.PartitionOf(~uint64_t{0}), 0u);
}

TEST(SparseLayoutTest, RefusesWhatCannotBe) {
  for (auto [dim, partitions] :
       {std::pair{0u, 4u}, {4097u, 4u}, {4u, 0u}, {4u, 12u}, {4u, 131072u}}) {
    EXPECT_FALSE(SparseLayout::Create(Table(dim, partitions)).ok()) << dim << " " << partitions;
  }
  EXPECT_EQ(*TablePartitions(Table(4, 64)), 64u);
}

TEST(SparseLayoutTest, TheDigestDependsOnEveryKeyAndOnTheirOrder) {
  std::vector<uint64_t> keys = {3, 1, 2, 1u << 20};
  const auto digest = [&] {
    return KeyDigest({reinterpret_cast<const char*>(keys.data()), keys.size() * sizeof(uint64_t)});
  };
  const std::array<char, 16> first = digest();
  EXPECT_EQ(digest(), first);
  std::swap(keys[0], keys[1]);
  EXPECT_NE(digest(), first);
  std::swap(keys[0], keys[1]);
  keys[3] ^= 1;
  EXPECT_NE(digest(), first);
  keys[3] ^= 1;
  keys.push_back(0);
  EXPECT_NE(digest(), first);
}

TEST(SparseLayoutTest, TheDigestReadsKeysAtAnyAlignment) {
  const std::vector<uint64_t> keys = {7, 8, 9};
  std::string bytes(1, 'x');
  bytes.append(reinterpret_cast<const char*>(keys.data()), 24);
  EXPECT_EQ(KeyDigest(std::string_view(bytes).substr(1)),
            KeyDigest({reinterpret_cast<const char*>(keys.data()), 24}));
}

}  // namespace
}  // namespace parley
