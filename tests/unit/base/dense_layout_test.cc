#include "ps/base/dense_layout.h"

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace parley {
namespace {

using ::testing::HasSubstr;

pb::TableSpec Table(uint64_t partition_elements, const std::vector<std::vector<uint32_t>>& shapes) {
  pb::TableSpec table;
  table.set_name("net");
  table.set_partition_elements(partition_elements);
  for (const auto& shape : shapes) {
    pb::TensorSpec* tensor = table.add_tensor();
    tensor->set_name(absl::StrCat("t", table.tensor_size()));
    for (const uint32_t extent : shape) tensor->add_shape(extent);
  }
  return table;
}

void ExpectRefused(const pb::TableSpec& table, const std::string& word) {
  const absl::StatusOr<DenseLayout> layout = DenseLayout::Create(table);
  ASSERT_FALSE(layout.ok());
  EXPECT_EQ(layout.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(layout.status().message()), HasSubstr(word));
}

TEST(DenseLayoutTest, TensorsLieEndToEndAndPartitionsCoverThemOnce) {
  const absl::StatusOr<DenseLayout> layout = DenseLayout::Create(Table(10, {{3, 4}, {4}, {7, 1}}));
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(layout->elements(), 23u);
  EXPECT_EQ(layout->tensors(), 3u);
  EXPECT_EQ(layout->tensor(1).begin, 12u);
  EXPECT_EQ(layout->tensor(2).end, 23u);
  ASSERT_EQ(layout->partitions(), 3u);
  uint64_t next = 0;
  for (uint32_t p = 0; p < layout->partitions(); ++p) {
    EXPECT_EQ(layout->partition(p).begin, next);
    next = layout->partition(p).end;
  }
  EXPECT_EQ(next, 23u);
  EXPECT_EQ(layout->partition(2).size(), 3u);
}

TEST(DenseLayoutTest, AFullLastPartitionIsNotFollowedByAnEmptyOne) {
  const absl::StatusOr<DenseLayout> layout = DenseLayout::Create(Table(4, {{8}}));
  ASSERT_TRUE(layout.ok());
  EXPECT_EQ(layout->partitions(), 2u);
  EXPECT_EQ(DenseLayout::Create(Table(4, {{9}}))->partitions(), 3u);
}

TEST(DenseLayoutTest, PartitionsOfARange) {
  const absl::StatusOr<DenseLayout> layout = DenseLayout::Create(Table(10, {{35}}));
  ASSERT_TRUE(layout.ok());
  const auto of = [&layout](uint64_t begin, uint64_t end) {
    const Range range = layout->PartitionsOf({begin, end});
    return std::make_pair(range.begin, range.end);
  };
  EXPECT_EQ(of(0, 10), std::make_pair(uint64_t{0}, uint64_t{1}));
  EXPECT_EQ(of(9, 11), std::make_pair(uint64_t{0}, uint64_t{2}));
  EXPECT_EQ(of(30, 35), std::make_pair(uint64_t{3}, uint64_t{4}));
  EXPECT_EQ(layout->PartitionsOf({12, 12}).size(), 0u);
}

TEST(DenseLayoutTest, RefusesWhatCannotBeHeld) {
  ExpectRefused(Table(0, {{4}}), "partition_elements is 0");
  ExpectRefused(Table((uint64_t{1} << 34) + 1, {{4}}), "partition_elements");
  ExpectRefused(Table(4, {}), "no tensors");
  ExpectRefused(Table(4, {{2}, {3, 0}}), "'t2'");
  ExpectRefused(Table(1 << 20, {{1u << 31, 16}}), "'t1'");
  // The product of these overflows 64 bits to 0.
  ExpectRefused(Table(1 << 20, {{1u << 31, 1u << 31, 4}}), "'t1'");
  ExpectRefused(Table(1 << 20, {{1u << 31, 8}, {1}}), "'t2'");
  ExpectRefused(Table(1, {{(1 << 20) + 1}}), "partitions");
}

TEST(DenseLayoutTest, TakesTheLargestAllowed) {
  const absl::StatusOr<DenseLayout> layout = DenseLayout::Create(Table(1 << 20, {{1u << 31, 8}}));
  ASSERT_TRUE(layout.ok()) << layout.status();
  EXPECT_EQ(layout->elements(), DenseLayout::kMaxElements);
  EXPECT_EQ(layout->partitions(), 1u << 14);
}

TEST(DenseLayoutTest, ATensorWithoutShapeIsAScalar) {
  EXPECT_EQ(DenseLayout::Create(Table(4, {{}}))->elements(), 1u);
}

}  // namespace
}  // namespace parley
