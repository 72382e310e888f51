#include "worker/client/key_split.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "worker/client/sparse_rows.h"

namespace parley {
namespace {

SparseLayout Layout(uint32_t partitions, uint32_t dim = 4) {
  pb::TableSpec table;
  table.mutable_sparse()->set_dim(dim);
  table.mutable_sparse()->set_partitions(partitions);
  return *SparseLayout::Create(table);
}

// Against a search through the whole call, with few and with many keys that repeat.
TEST(KeySplitTest, NamesEveryKeyOnceByPartitionInOrderOfFirstOccurrence) {
  std::mt19937_64 random(3);
  BufferPool pool;
  KeySplitter splitter;  // one for all, so that what it keeps is used again
  KeySplit split;
  for (uint32_t partitions : {1u, 2u, 16u, 1024u}) {
    for (uint64_t range : {1u, 7u, 300u, 1u << 30}) {
      for (size_t n : {0u, 1u, 2u, 50u, 700u}) {
        const SparseLayout layout = Layout(partitions);
        std::vector<uint64_t> keys(n);
        for (uint64_t& key : keys) key = random() % range == 0 ? ~uint64_t{0} : random() % range;
        splitter.Split(layout, keys, &pool, &split);
        ASSERT_EQ(split.begin.size(), partitions + 1);
        ASSERT_EQ(split.first.size(), split.unique() + 1);
        ASSERT_EQ(split.positions.size(), n);
        size_t before = 0;  // occurrences of keys before this one
        for (uint32_t p = 0; p < partitions; ++p) {
          uint32_t last_position = 0;
          for (uint32_t u = split.begin[p]; u < split.begin[p + 1]; ++u) {
            const uint64_t key = split.keys()[u];
            ASSERT_EQ(layout.PartitionOf(key), p);
            ASSERT_EQ(split.first[u], before);
            std::vector<uint32_t> positions;
            for (uint32_t i = 0; i < n; ++i) {
              if (keys[i] == key) positions.push_back(i);
            }
            ASSERT_TRUE(std::equal(positions.begin(), positions.end(),
                                   split.positions.begin() + split.first[u],
                                   split.positions.begin() + split.first[u + 1]));
            if (u > split.begin[p]) {
              ASSERT_GT(positions.front(), last_position);
            }
            last_position = positions.front();
            before += positions.size();
          }
        }
        ASSERT_EQ(before, n);
      }
    }
  }
}

TEST(SparseRowsTest, GathersSumsAndScattersToEveryOccurrence) {
  std::mt19937 random(5);
  BufferPool pool;
  KeySplitter splitter;
  for (uint32_t dim : {1u, 3u, 8u, 16u, 32u, 33u}) {
    const SparseLayout layout = Layout(4, dim);
    std::vector<uint64_t> keys(200);
    for (uint64_t& key : keys) key = random() % 90;
    std::vector<float> rows(keys.size() * dim);
    for (float& x : rows) x = static_cast<float>(random() % 1000) / 7;
    KeySplit split;
    splitter.Split(layout, keys, &pool, &split);
    // One byte off any alignment.
    std::vector<std::byte> memory(split.unique() * dim * sizeof(float) + 1);
    std::byte* const values = memory.data() + 1;
    GatherRows(split, 0, split.unique(), dim, rows.data(), values);
    std::vector<float> back(rows.size(), -1);
    ScatterRows(split, 0, split.unique(), dim, values, back.data());
    for (size_t i = 0; i < keys.size(); ++i) {
      for (uint32_t d = 0; d < dim; ++d) {
        float sum = 0;
        bool first = true;
        for (size_t j = 0; j < keys.size(); ++j) {
          if (keys[j] != keys[i]) continue;
          sum = first ? rows[j * dim + d] : sum + rows[j * dim + d];  // in order, to the bit
          first = false;
        }
        ASSERT_EQ(back[i * dim + d], sum) << "row " << i << " of dim " << dim;
      }
    }
  }
}

TEST(SparseRowsTest, TouchesNoRowOfOtherKeys) {
  const SparseLayout layout = Layout(2, 2);
  const std::vector<uint64_t> keys = {1, 2, 3, 4, 5, 6};
  BufferPool pool;
  KeySplitter splitter;
  KeySplit split;
  splitter.Split(layout, keys, &pool, &split);
  const std::vector<float> values(4, 7);
  std::vector<float> rows(12, -1);
  ScatterRows(split, 2, 4, 2, reinterpret_cast<const std::byte*>(values.data()), rows.data());
  EXPECT_EQ(std::count(rows.begin(), rows.end(), 7.0f), 4);
  EXPECT_EQ(std::count(rows.begin(), rows.end(), -1.0f), 8);
}

}  // namespace
}  // namespace parley
