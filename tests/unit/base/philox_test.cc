#include "ps/base/philox.h"

#include <set>

#include "gtest/gtest.h"

namespace parley {
namespace {

using Block = std::array<uint32_t, 4>;

// The known answers that come with Random123 (kat_vectors, philox4x32 with 10 rounds), in the order
// counter 0..3, key 0..1: index is the low half of the counter, stream the high one, seed the key.
TEST(PhiloxTest, KnownAnswers) {
  EXPECT_EQ(Philox(0, 0, 0), (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const uint64_t ones = ~uint64_t{0};
  EXPECT_EQ(Philox(ones, ones, ones), (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(PhiloxTest, IsAConstantExpression) {
  static_assert(Philox(1, 2, 3) == Philox(1, 2, 3));
  static_assert(Philox(1, 2, 3) != Philox(1, 3, 2));
}

TEST(PhiloxTest, PurposesHaveStreamsOfTheirOwn) {
  std::set<uint64_t> streams;
  for (const RandomPurpose purpose : {RandomPurpose::kInit, RandomPurpose::kShuffle,
                                      RandomPurpose::kDropout, RandomPurpose::kSynthetic}) {
    for (uint64_t number = 0; number < 100; ++number) streams.insert(Stream(purpose, number));
  }
  EXPECT_EQ(streams.size(), 400u);
}

TEST(PhiloxTest, UniformsFillTheUnitIntervalEvenly) {
  EXPECT_EQ(ToUnitFloat(0), 0.0f);
  EXPECT_LT(ToUnitFloat(0xffffffff), 1.0f);
  int bins[16] = {};
  for (uint64_t i = 0; i < 16000; ++i) {
    const float value = UniformAt(7, 8, i);
    ASSERT_GE(value, 0.0f);
    ASSERT_LT(value, 1.0f);
    ++bins[static_cast<int>(value * 16)];
  }
  // 1000 expected, standard deviation 31; fixed inputs, so this cannot flicker.
  for (const int count : bins) EXPECT_NEAR(count, 1000, 125);
}

TEST(PhiloxTest, FourNeighboursShareABlock) {
  const Block block = Philox(3, 4, 5);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(UniformAt(3, 4, 20 + i), ToUnitFloat(block[i]));
}

}  // namespace
}  // namespace parley
