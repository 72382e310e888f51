// Bytes that no encoder made: refused by name, never trusted.
#include <cmath>
#include <limits>

#include "tests/unit/codec/codec_testing.h"

namespace parley {
namespace {

using testing::HasSubstr;

std::string Refusal(const PayloadCodec& codec, std::string bytes, size_t n) {
  // A copy of exactly this size, so that AddressSanitizer sees one read too many.
  std::unique_ptr<char[]> exact(new char[bytes.size()]);
  if (!bytes.empty()) std::memcpy(exact.get(), bytes.data(), bytes.size());
  std::vector<float> out(n);
  const auto status = codec.Decode(std::string_view(exact.get(), bytes.size()), n, out.data());
  EXPECT_NE(status.code(), absl::StatusCode::kInternal);
  return std::string(status.message());
}

std::string Encoded(const PayloadCodec& codec, size_t n) {
  std::vector<float> residual;
  return Encode(codec, Generator().Vector(n), &residual);
}

template <typename T>
void Overwrite(std::string* bytes, size_t at, T value) {
  std::memcpy(bytes->data() + at, &value, sizeof(T));
}

TEST(CodecHostileTest, EveryOtherLengthIsRefused) {
  for (const std::string name : kLossy) {
    const auto codec = MakeCodec(name, 32, 0.1f);
    const size_t n = 77;
    const std::string good = Encoded(*codec, n);
    EXPECT_EQ(Refusal(*codec, good, n), "");
    for (size_t size = 0; size < good.size(); ++size) {
      ASSERT_THAT(Refusal(*codec, good.substr(0, size), n), HasSubstr("bytes for 77 values"))
          << name << " " << size;
    }
    EXPECT_THAT(Refusal(*codec, good + 'x', n), HasSubstr("bytes for 77 values")) << name;
    // 78 may need as many bytes as 77; 300 never.
    EXPECT_THAT(Refusal(*codec, good, 300), HasSubstr("bytes for 300 values")) << name;
  }
}

TEST(CodecHostileTest, ScalesThatNoBlockHas) {
  const auto codec = MakeCodec("int8", 32);
  for (const float scale : {-1.0f, std::numeric_limits<float>::infinity(), std::nanf("")}) {
    std::string bytes = Encoded(*codec, 77);
    Overwrite(&bytes, 36, scale);
    EXPECT_THAT(Refusal(*codec, bytes, 77), HasSubstr("int8: scale of block 1 is"));
  }
}

TEST(CodecHostileTest, OneBitBlocksThatContradictThemselves) {
  const auto codec = MakeCodec("one_bit", 32);
  const std::string good = Encoded(*codec, 77);  // 12 + 12 + 10 bytes
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  const std::pair<float, float> bad[] = {{-1, -1},       {1, 1},    {infinity, -1},
                                         {1, -infinity}, {nan, -1}, {1, nan}};
  for (const auto& [positive, negative] : bad) {
    std::string bytes = good;
    Overwrite(&bytes, 12, positive);
    Overwrite(&bytes, 16, negative);
    EXPECT_THAT(Refusal(*codec, bytes, 77), HasSubstr("one_bit: block 1 has the values"));
  }
  std::string bytes = good;
  bytes.back() |= 1 << 5;  // 13 elements in the last block: bit 5 of its second byte is none
  EXPECT_THAT(Refusal(*codec, bytes, 77), HasSubstr("block 2 has bits past its 13 elements"));
}

TEST(CodecHostileTest, OffsetsThatTopKNeverWrites) {
  const auto codec = MakeCodec("top_k", 64, 0.1f);
  const std::string good = Encoded(*codec, 77);  // 8 of 77
  const auto refusal = [&](size_t at, uint16_t offset) {
    std::string bytes = good;
    Overwrite(&bytes, 2 + 2 * at, offset);
    return Refusal(*codec, bytes, 77);
  };
  EXPECT_THAT(refusal(7, 77), HasSubstr("top_k: offset 77 after"));
  EXPECT_THAT(refusal(7, 65535), HasSubstr("top_k: offset 65535 after"));
  uint16_t first;
  std::memcpy(&first, good.data() + 2, 2);
  EXPECT_THAT(refusal(1, first), HasSubstr("allowed: ascending"));
  for (const int16_t exponent : {int16_t{-127}, int16_t{114}, int16_t{32767}}) {
    std::string bytes = good;
    Overwrite(&bytes, 0, exponent);
    EXPECT_THAT(Refusal(*codec, bytes, 77), HasSubstr("top_k: exponent of piece 0 is"));
  }
}

TEST(CodecHostileTest, ZstdThatSaysMoreThanItMay) {
  const auto codec = MakeCodec("fp16", 64, 0.1f, 1), raw = MakeCodec("none", 64, 0.1f, 1);
  std::vector<float> residual;
  const std::string good = Encode(*codec, std::vector<float>(1000, 0.5f), &residual);
  ASSERT_EQ(good[0], 1);
  EXPECT_EQ(Refusal(*codec, good, 1000), "");
  EXPECT_THAT(Refusal(*codec, "", 1000), HasSubstr("0 bytes for 1000 values"));
  EXPECT_THAT(Refusal(*codec, std::string(2002, '\1'), 1000), HasSubstr("allowed: 1..2001"));
  EXPECT_THAT(Refusal(*codec, std::string("\2").append(good, 1), 1000),
              HasSubstr("storage 2; allowed"));
  EXPECT_THAT(Refusal(*codec, good.substr(0, good.size() - 1), 1000), HasSubstr("fp16+zstd: "));
  EXPECT_THAT(Refusal(*codec, std::string("\0abc", 4), 1000), HasSubstr("3 bytes for 1000 values"));
  // A good frame of 2000 bytes where 1998 or 4000 are asked for: nothing is written past the end.
  EXPECT_THAT(Refusal(*codec, good, 999), HasSubstr("too small"));
  EXPECT_THAT(Refusal(*codec, good, 1001), HasSubstr("2000 bytes for 1001 values"));
  EXPECT_THAT(Refusal(*raw, good, 499), HasSubstr("too small"));
  EXPECT_EQ(Refusal(*raw, good, 500), "");

  // A frame whose header promises a terabyte: magic, no checksum, 8 bytes of content size.
  std::string bomb("\1\x28\xb5\x2f\xfd\xe0", 6);
  bomb += std::string("\0\0\0\0\0\1\0\0", 8) + std::string("\x03\0\0", 3);
  EXPECT_THAT(Refusal(*codec, bomb, 1000), HasSubstr("fp16+zstd: "));
}

// Every flipped byte of a good payload is refused or gives n values; either way nothing is touched
// that is not ours (AddressSanitizer).
TEST(CodecHostileTest, FlippedBytesStayInBounds) {
  for (const std::string name : kLossy) {
    for (const int level : {0, 1}) {
      const auto codec = MakeCodec(name, 32, 0.1f, level);
      const std::string good = Encoded(*codec, 77);
      for (size_t i = 0; i < good.size(); ++i) {
        for (const char flip : {'\1', '\x80', '\xff'}) {
          std::string bytes = good;
          bytes[i] = static_cast<char>(bytes[i] ^ flip);
          Refusal(*codec, bytes, 77);
        }
      }
    }
  }
}

}  // namespace
}  // namespace parley
