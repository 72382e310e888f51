// TableState: arrays by name, and what a state from elsewhere must not be.
#include "ps/base/table_state.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace parley {
namespace {

using testing::HasSubstr;

TableState TwoArrays() {
  TableState state;
  state.Add("weights", "F32", {3}, Buffer::Copy("abcdefghijkl"));
  state.Add("rows", "BF16", {2, 0}, Buffer());
  return state;
}

pb::StateArray Array(const std::string& dtype, const std::vector<uint64_t>& shape) {
  pb::StateArray array;
  array.set_name("slot0");
  array.set_dtype(dtype);
  for (const uint64_t size : shape) array.add_shape(size);
  return array;
}

std::string Refusal(const absl::Status& status) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  return std::string(status.message());
}

TEST(TableStateTest, ArraysByName) {
  TableState state = TwoArrays();
  EXPECT_TRUE(state.Check().ok());
  EXPECT_EQ(state.total_bytes(), 12u);
  ASSERT_NE(state.Find("weights"), nullptr);
  EXPECT_EQ(static_cast<char>(state.Find("weights")->data()[1]), 'b');
  ASSERT_NE(state.Find("rows"), nullptr);
  EXPECT_EQ(state.Find("rows")->size(), 0u);
  EXPECT_EQ(state.Find("row"), nullptr);
  EXPECT_EQ(state.header.array(1).dtype(), "BF16");
  EXPECT_EQ(state.header.array(1).shape(0), 2u);
  // A name without bytes is not there.
  state.bytes.pop_back();
  EXPECT_EQ(state.Find("rows"), nullptr);
}

TEST(TableStateTest, WhatDoesNotFitIsRefused) {
  TableState state = TwoArrays();
  state.bytes.pop_back();
  EXPECT_THAT(Refusal(state.Check()), HasSubstr("2 arrays and bytes of 1"));
  state = TwoArrays();
  state.bytes[0] = Buffer::Copy("abcdefghijk");
  EXPECT_THAT(Refusal(state.Check()),
              HasSubstr("'weights' of F32 [3] has 11 bytes, allowed are 12"));
  state = TwoArrays();
  state.header.mutable_array(1)->set_name("weights");
  EXPECT_THAT(Refusal(state.Check()), HasSubstr("'weights' is there twice"));
  state = TwoArrays();
  state.header.mutable_array(1)->set_dtype("F33");
  EXPECT_THAT(Refusal(state.Check()), HasSubstr("'rows' is of dtype 'F33', allowed are U8, "));
}

TEST(TableStateTest, BytesOfDtypesAndArrays) {
  EXPECT_EQ(DtypeBytes("U8"), 1u);
  EXPECT_EQ(DtypeBytes("F16"), 2u);
  EXPECT_EQ(DtypeBytes("BF16"), 2u);
  EXPECT_EQ(DtypeBytes("F32"), 4u);
  EXPECT_EQ(DtypeBytes("U32"), 4u);
  EXPECT_EQ(DtypeBytes("U64"), 8u);
  EXPECT_EQ(DtypeBytes("f32"), 0u);
  EXPECT_EQ(DtypeBytes(""), 0u);

  const auto bytes = [](const std::string& dtype, const std::vector<uint64_t>& shape) {
    uint64_t of_array = 77;
    EXPECT_TRUE(ArrayBytes(Array(dtype, shape), &of_array).ok());
    return of_array;
  };
  EXPECT_EQ(bytes("F32", {}), 4u);
  EXPECT_EQ(bytes("F16", {3, 5}), 30u);
  EXPECT_EQ(bytes("U64", {0}), 0u);
  EXPECT_EQ(bytes("U8", {uint64_t{1} << 63}), uint64_t{1} << 63);
  // Whatever else is in the shape: nothing of it.
  EXPECT_EQ(bytes("U64", {uint64_t{1} << 63, uint64_t{1} << 63, 0}), 0u);

  uint64_t of_array = 0;
  EXPECT_THAT(Refusal(ArrayBytes(Array("U64", {uint64_t{1} << 61}), &of_array)),
              HasSubstr("'slot0' is of shape [2305843009213693952]"));
  EXPECT_THAT(Refusal(ArrayBytes(Array("U8", {uint64_t{1} << 32, uint64_t{1} << 32}), &of_array)),
              HasSubstr("slot0"));
  EXPECT_THAT(Refusal(ArrayBytes(Array("F4", {1}), &of_array)), HasSubstr("'F4'"));
}

}  // namespace
}  // namespace parley
