// What each codec promises of values: bounds, feedback, determinism, what is not finite.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tests/unit/codec/codec_testing.h"

namespace parley {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class CodecTest : public testing::Test {
 protected:
  ~CodecTest() override { ForceCodecKernelIsa(""); }
};

std::vector<float> RoundTrip(const PayloadCodec& codec, const std::vector<float>& values) {
  std::vector<float> residual;
  return Decode(codec, Encode(codec, values, &residual), values.size());
}

TEST_F(CodecTest, EncodedSizesAreWhatTheProtocolSays) {
  for (const uint64_t n : {0, 1, 15, 16, 17, 1000, 65536, 65537, 200000}) {
    EXPECT_EQ(MakeCodec("fp16")->MaxEncodedBytes(n), 2 * n);
    EXPECT_EQ(MakeCodec("bf16")->MaxEncodedBytes(n), 2 * n);
    EXPECT_EQ(MakeCodec("int8", 16)->MaxEncodedBytes(n), n + 4 * ((n + 15) / 16));
  }
  EXPECT_EQ(MakeCodec("one_bit", 16)->MaxEncodedBytes(17), 8u + 2 + 8 + 1);
  EXPECT_EQ(MakeCodec("one_bit", 1024)->MaxEncodedBytes(65536), 64u * (8 + 128));
  // 1311 of 65536 and 1 of 1 are two hundredths, rounded up.
  EXPECT_EQ(MakeCodec("top_k")->MaxEncodedBytes(65537), 2u + 1311 * 4 + 2 + 4);
  EXPECT_EQ(MakeCodec("top_k", 64, 1)->MaxEncodedBytes(100), 2u + 100 * 4);
  EXPECT_EQ(MakeCodec("fp16", 64, 1, 3)->MaxEncodedBytes(100), 201u);
  EXPECT_EQ(MakeCodec("none", 64, 1, 3)->MaxEncodedBytes(100), 401u);
  EXPECT_EQ(MakeCodec("none", 64, 1, 3)->MaxEncodedBytes(0), 0u);
}

TEST_F(CodecTest, HalvesAreNearWithinTheirPrecision) {
  const std::vector<float> values = Generator().Vector(5000);
  const std::vector<float> fp16 = RoundTrip(*MakeCodec("fp16"), values);
  const std::vector<float> bf16 = RoundTrip(*MakeCodec("bf16"), values);
  for (size_t i = 0; i < values.size(); ++i) {
    // Below 2^-14 the spacing of binary16 is 2^-24.
    ASSERT_LE(std::abs(fp16[i] - values[i]), std::max(std::abs(values[i]) * 0x1p-11f, 0x1p-25f));
    ASSERT_LE(std::abs(bf16[i] - values[i]), std::abs(values[i]) * 0x1p-8f);
  }
}

TEST_F(CodecTest, HalvesRoundTiesToEvenAndSaturate) {
  const float max = std::numeric_limits<float>::max();
  EXPECT_THAT(RoundTrip(*MakeCodec("fp16"), {2049, 2051, 65504, 65519, 65536, 1e30f, -1e30f,
                                             kInfinity, -kInfinity, 0x1p-24f, 0x1p-26f, -0.0f}),
              testing::ElementsAre(2048, 2052, 65504, 65504, 65504, 65504, -65504, kInfinity,
                                   -kInfinity, 0x1p-24f, 0, -0.0f));
  EXPECT_THAT(
      RoundTrip(*MakeCodec("bf16"), {257, 259, max, -max, kInfinity, -kInfinity, 0x1p-133f}),
      testing::ElementsAre(256, 260, 0x1.fep127f, -0x1.fep127f, kInfinity, -kInfinity, 0x1p-133f));
  for (const char* name : {"fp16", "bf16"}) {
    // A NaN whose payload is all in the bits that are cut off stays one.
    uint32_t bits = 0x7f800001;
    float nan;
    std::memcpy(&nan, &bits, 4);
    for (const float value : RoundTrip(*MakeCodec(name), {kNan, nan, -nan})) {
      EXPECT_TRUE(std::isnan(value)) << name;
    }
  }
}

TEST_F(CodecTest, Int8IsWithinHalfAStepOfItsBlocksLargest) {
  const std::vector<float> values = Generator().Vector(1000);
  const std::vector<float> decoded = RoundTrip(*MakeCodec("int8", 100), values);
  for (size_t begin = 0; begin < values.size(); begin += 100) {
    float largest = 0;
    for (size_t i = begin; i < begin + 100; ++i) largest = std::max(largest, std::abs(values[i]));
    for (size_t i = begin; i < begin + 100; ++i) {
      ASSERT_LE(std::abs(decoded[i] - values[i]), largest / 127 / 2 * 1.0001f) << i;
    }
  }
}

TEST_F(CodecTest, OneBitSendsTheMeanOfEachSide) {
  EXPECT_THAT(RoundTrip(*MakeCodec("one_bit", 16), {1, -1, 2, -3, 3, 0}),
              testing::ElementsAre(1.5, -2, 1.5, -2, 1.5, 1.5));
  EXPECT_THAT(RoundTrip(*MakeCodec("one_bit", 16), {-2, -4}), testing::ElementsAre(-3, -3));
  EXPECT_THAT(RoundTrip(*MakeCodec("one_bit", 16), {0, 0}), testing::ElementsAre(0, 0));
}

TEST_F(CodecTest, TopKKeepsTheLargestAndOfEqualOnesTheFirst) {
  EXPECT_THAT(RoundTrip(*MakeCodec("top_k", 64, 0.4f), {1, -8, 2, 4, -2}),
              testing::ElementsAre(0, -8, 0, 4, 0));
  EXPECT_THAT(RoundTrip(*MakeCodec("top_k", 64, 0.4f), {2, 1, -2, 2, 2}),
              testing::ElementsAre(2, 0, -2, 0, 0));
  // Tiny shares keep one, zeros are kept like anything else.
  EXPECT_THAT(RoundTrip(*MakeCodec("top_k", 64, 1e-6f), {0.5, 0.25, -3}),
              testing::ElementsAre(0, 0, -3));
  EXPECT_THAT(RoundTrip(*MakeCodec("top_k", 64, 0.5f), {0, 0, 0}), testing::ElementsAre(0, 0, 0));
}

// The example in section 11 of proto/PROTOCOL.md.
TEST_F(CodecTest, TopKBytesAreTheProtocolsExample) {
  std::vector<float> residual;
  EXPECT_EQ(Encode(*MakeCodec("top_k", 64, 0.5f), {1, -8, 2}, &residual),
            std::string("\xf5\xff\1\0\2\0\0\xf4\0\x6c", 10));
  EXPECT_THAT(residual, testing::ElementsAre(1, 0, 0));
}

// The selection against a sort, for the distributions that the guess gets right, wrong, and that
// have nothing but ties.
TEST_F(CodecTest, TopKSelectsAsASortWould) {
  Generator generator;
  std::vector<std::vector<float>> inputs = {
      generator.Vector(65536), generator.Vector(65536, 1), std::vector<float>(65536, 0.25f),
      std::vector<float>(65536, 0.0f), generator.Vector(5000)};
  // Everything that counts lies where the sample does not look, or only there.
  std::vector<float> hidden(65536, 1e-6f), shown(65536, 1e-6f);
  for (size_t i = 0; i < hidden.size(); ++i) {
    if (i % 256 == 16) hidden[i] = generator.Next();
    if (i % 256 < 16) shown[i] = generator.Next();
  }
  inputs.push_back(hidden);
  inputs.push_back(shown);
  for (size_t which = 0; which < inputs.size(); ++which) {
    const std::vector<float>& values = inputs[which];
    for (const float share : {0.001f, 0.02f, 0.3f, 1.0f}) {
      const auto codec = MakeCodec("top_k", 64, share);
      std::vector<float> residual;
      const std::string bytes = Encode(*codec, values, &residual);
      const size_t kept = (bytes.size() - 2) / 4;
      std::vector<uint16_t> offsets(kept);
      std::memcpy(offsets.data(), bytes.data() + 2, kept * 2);

      std::vector<uint32_t> order(values.size());
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
        return std::abs(values[a]) > std::abs(values[b]);
      });
      order.resize(kept);
      std::sort(order.begin(), order.end());
      ASSERT_TRUE(std::equal(order.begin(), order.end(), offsets.begin()))
          << "input " << which << " share " << share;
      const std::vector<float> decoded = Decode(*codec, bytes, values.size());
      for (size_t i = 0; i < values.size(); ++i) {
        const bool sent = std::binary_search(order.begin(), order.end(), i);
        ASSERT_LE(std::abs(decoded[i] - (sent ? values[i] : 0)), std::abs(values[i]) * 0x1p-11f);
      }
    }
  }
}

TEST_F(CodecTest, TopKIsAsPreciseForTinyAndHugeValues) {
  for (const float scale : {1e-30f, 1e-3f, 1e30f}) {
    std::vector<float> values = Generator().Vector(100);
    for (float& value : values) value *= scale;
    const std::vector<float> decoded = RoundTrip(*MakeCodec("top_k", 64, 1), values);
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_LE(std::abs(decoded[i] - values[i]), std::abs(values[i]) * 0x1p-11f);
    }
  }
}

// What arrived and what is still kept are together what went in, however much each step lost.
TEST_F(CodecTest, FeedbackLosesNothingOverManySteps) {
  constexpr int kSteps = 200;
  for (const char* name : {"int8", "one_bit", "top_k"}) {
    for (const int zstd_level : {0, 1}) {
      const auto codec = MakeCodec(name, 64, 0.05f, zstd_level);
      ASSERT_TRUE(codec->keeps_residual());
      Generator generator;
      const size_t n = 1000;
      std::vector<double> sent(n), arrived(n);
      std::vector<float> residual(n);
      for (int step = 0; step < kSteps; ++step) {
        const std::vector<float> values = generator.Vector(n);
        const std::vector<float> decoded = Decode(*codec, Encode(*codec, values, &residual), n);
        for (size_t i = 0; i < n; ++i) {
          sent[i] += values[i];
          arrived[i] += decoded[i];
        }
      }
      double largest = 0;
      for (size_t i = 0; i < n; ++i) {
        // Each step rounds twice, numbers of no more than a few dozen.
        ASSERT_NEAR(arrived[i] + residual[i], sent[i], kSteps * 1e-5) << name << " " << i;
        largest = std::max(largest, std::abs(static_cast<double>(residual[i])));
      }
      // And it does not pile up: one in 20 is sent at a time, so about 20 values wait.
      EXPECT_LT(largest, 40) << name;
      EXPECT_GT(largest, 0) << name;
    }
  }
}

TEST_F(CodecTest, InstructionSetAndAlignmentDoNotShow) {
  if (!ForceCodecKernelIsa("avx512")) GTEST_SKIP() << "this machine has no AVX-512";
  for (const std::string name : kLossy) {
    for (const size_t n : kSizes) {
      for (const uint32_t block : {16u, 100u, 1024u}) {
        const auto codec = MakeCodec(name, block, 0.03f);
        Generator generator;
        std::vector<float> values = generator.Vector(n);
        if (n > 50) values[n / 2] = kNan;
        const std::vector<float> before = generator.Vector(n);
        std::vector<float> residual = before, decoded;
        ASSERT_TRUE(ForceCodecKernelIsa("avx512"));
        EXPECT_STREQ(ActiveCodecKernels().isa, "avx512");
        const std::string wide = Encode(*codec, values, &residual);
        decoded = Decode(*codec, wide, n);

        ASSERT_TRUE(ForceCodecKernelIsa("avx2"));
        EXPECT_STREQ(ActiveCodecKernels().isa, "avx2");
        UnalignedFloats narrow_values(values), narrow_residual(before, 3),
            narrow_decoded(values, 2);
        std::string narrow(codec->MaxEncodedBytes(n), 'x');
        narrow.resize(codec->Encode(narrow_values.get(), n, narrow_residual.get(),
                                    reinterpret_cast<std::byte*>(narrow.data())));
        ASSERT_EQ(narrow, wide) << name << " n=" << n;
        ASSERT_TRUE(SameBits(narrow_residual.Copy(), residual)) << name << " n=" << n;
        ASSERT_TRUE(codec->Decode(narrow, n, narrow_decoded.get()).ok());
        ASSERT_TRUE(SameBits(narrow_decoded.Copy(), decoded)) << name << " n=" << n;
      }
    }
  }
  EXPECT_FALSE(ForceCodecKernelIsa("sse9"));
}

TEST_F(CodecTest, NothingOfNothing) {
  for (const std::string name : kLossy) {
    for (const int level : {0, 1}) {
      const auto codec = MakeCodec(name, 64, 0.1f, level);
      EXPECT_EQ(codec->Encode(nullptr, 0, nullptr, nullptr), 0u) << name;
      EXPECT_TRUE(codec->Decode("", 0, nullptr).ok()) << name;
      EXPECT_FALSE(codec->Decode("x", 0, nullptr).ok()) << name;
    }
  }
}

TEST_F(CodecTest, NotFiniteValuesAreSeenAndSpoilNoOtherResidual) {
  for (const char* isa : {"avx2", "avx512"}) {
    if (!ForceCodecKernelIsa(isa)) continue;
    for (const std::string name : kLossy) {
      for (const float bad : {kNan, kInfinity, -kInfinity}) {
        const size_t n = 200, at = 70;
        const auto codec = MakeCodec(name, 64, 0.1f);
        Generator generator;
        std::vector<float> values = generator.Vector(n);
        values[at] = bad;
        std::vector<float> residual(n);
        const std::vector<float> decoded = Decode(*codec, Encode(*codec, values, &residual), n);
        EXPECT_FALSE(std::isfinite(decoded[at])) << name << " " << bad;
        for (const float rest : residual) ASSERT_TRUE(std::isfinite(rest)) << name << " " << bad;
        if (codec->keeps_residual()) {
          EXPECT_EQ(residual[at], 0) << name;
        }
        // The next push is as if nothing had been.
        for (const float value :
             Decode(*codec, Encode(*codec, generator.Vector(n), &residual), n)) {
          ASSERT_TRUE(std::isfinite(value)) << name;
        }
      }
    }
  }
}

TEST_F(CodecTest, MoreBadValuesThanTopKSends) {
  const auto codec = MakeCodec("top_k", 64, 0.02f);
  std::vector<float> values(100, kNan), residual(100);
  values[0] = 1;
  const std::vector<float> decoded = Decode(*codec, Encode(*codec, values, &residual), 100);
  EXPECT_TRUE(std::isnan(decoded[1]) && std::isnan(decoded[2]));
  EXPECT_EQ(std::count_if(decoded.begin(), decoded.end(), [](float x) { return x == 0; }), 98);
  EXPECT_EQ(residual[0], 1);
  EXPECT_EQ(std::count(residual.begin(), residual.end(), 0.0f), 99);
}

// The ends of float32's range: nothing becomes infinite on the way.
TEST_F(CodecTest, TheLargestAndTheLeastStayFinite) {
  const float max = std::numeric_limits<float>::max(), least = 0x1p-149f;
  for (const char* isa : {"avx2", "avx512"}) {
    if (!ForceCodecKernelIsa(isa)) continue;
    for (const std::string name : kLossy) {
      for (const float value : {max, -max, least, 1e-38f, 0x1p-112f}) {
        const std::vector<float> values(40, value);
        std::vector<float> residual(40);
        const auto codec = MakeCodec(name, 32, 0.5f);
        const std::vector<float> decoded = Decode(*codec, Encode(*codec, values, &residual), 40);
        for (size_t i = 0; i < 40; ++i) {
          ASSERT_TRUE(std::isfinite(decoded[i])) << name << " " << value;
          ASSERT_TRUE(std::isfinite(residual[i])) << name << " " << value;
          if (codec->keeps_residual()) {
            const double whole = static_cast<double>(decoded[i]) + residual[i];
            ASSERT_NEAR(whole, value, std::abs(value) * 1e-6) << name;
          }
        }
      }
    }
  }
}

TEST_F(CodecTest, ZstdGivesBackWhatItsCodecGives) {
  for (const std::string name : kLossy) {
    const auto plain = MakeCodec(name, 64, 0.1f), packed = MakeCodec(name, 64, 0.1f, 3);
    EXPECT_EQ(packed->name(), name + "+zstd");
    EXPECT_EQ(packed->keeps_residual(), plain->keeps_residual());
    EXPECT_FALSE(packed->fixed_size());
    for (const size_t n : kSizes) {
      const std::vector<float> values = Generator().Vector(n);
      std::vector<float> a(n), b(n);
      const std::string inner = Encode(*plain, values, &a), outer = Encode(*packed, values, &b);
      EXPECT_TRUE(SameBits(Decode(*packed, outer, n), Decode(*plain, inner, n))) << name << n;
      EXPECT_TRUE(SameBits(a, b)) << name;
    }
  }
  const auto raw = MakeCodec("none", 64, 0.1f, 3);
  EXPECT_EQ(raw->name(), "zstd");
  const std::vector<float> values = Generator().Vector(1000), same(1000, 2.5f);
  std::vector<float> unused;
  EXPECT_TRUE(SameBits(RoundTrip(*raw, values), values));
  EXPECT_TRUE(SameBits(RoundTrip(*raw, same), same));
  EXPECT_LT(Encode(*raw, same, &unused).size(), 100u);
}

TEST_F(CodecTest, SettingsAndNamesThatAreNone) {
  pb::Compression config;
  EXPECT_EQ(*PayloadCodec::Create("none", config), nullptr);
  const auto message = [&](const char* name) {
    return std::string(PayloadCodec::Create(name, config).status().message());
  };
  EXPECT_THAT(message("fp17"), testing::HasSubstr("no codec is named 'fp17'; allowed: none, bf16"));
  EXPECT_THAT(PayloadCodec::Names(), testing::IsSupersetOf(kLossy));
  EXPECT_EQ(PayloadCodec::Names()[0], "none");
  for (const float share : {0.0f, -1.0f, 1.5f, kNan}) {
    config.set_top_k(share);
    EXPECT_THAT(message("top_k"), testing::HasSubstr("'compression.top_k'")) << share;
  }
  config.clear_top_k();
  config.set_block(15);
  EXPECT_THAT(message("int8"), testing::HasSubstr("'compression.block': 15; allowed: 16..65536"));
  config.set_block(65537);
  EXPECT_THAT(message("int8"), testing::HasSubstr("65537"));
  config.clear_block();
  config.set_zstd_level(20);
  EXPECT_THAT(message("none"), testing::HasSubstr("'compression.zstd_level': 20; allowed: 0..19"));
}

}  // namespace
}  // namespace parley
