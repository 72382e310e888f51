// What the tests of the codecs share.
#ifndef PARLEY_TESTS_UNIT_CODEC_CODEC_TESTING_H_
#define PARLEY_TESTS_UNIT_CODEC_CODEC_TESTING_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "ps/codec/codec_isa.h"
#include "ps/codec/payload_codec.h"

namespace parley {

inline const char* const kLossy[] = {"fp16", "bf16", "int8", "one_bit", "top_k"};
// Around the widths of registers, blocks and pieces.
inline const size_t kSizes[] = {0,  1,  2,   7,   8,   9,    15,   16,   17,    31,
                                33, 63, 100, 255, 257, 4095, 4099, 9000, 65536, 65551};

inline std::unique_ptr<PayloadCodec> MakeCodec(const std::string& name, uint32_t block = 64,
                                               float share = 0.02f, int zstd_level = 0) {
  pb::Compression config;
  config.set_block(block);
  config.set_top_k(share);
  config.set_zstd_level(zstd_level);
  auto codec = PayloadCodec::Create(name, config);
  EXPECT_TRUE(codec.ok()) << codec.status();
  return codec.ok() ? *std::move(codec) : nullptr;
}

// Uniform in [-1, 1) with exponents spread over `octaves` octaves.
class Generator {
 public:
  float Next(uint32_t octaves = 12) {
    state_ = 1664525 * state_ + 1013904223;
    const float u = static_cast<float>((state_ >> 8) * 0x1p-23 - 1);
    return std::ldexp(u, -static_cast<int>((state_ >> 5) % octaves));
  }
  std::vector<float> Vector(size_t n, uint32_t octaves = 12) {
    std::vector<float> values(n);
    for (float& value : values) value = Next(octaves);
    return values;
  }

 private:
  uint32_t state_ = 2463534242;
};

// Floats at an address that is none of a float. Ends where its allocation ends, so that
// AddressSanitizer sees one read too many.
class UnalignedFloats {
 public:
  explicit UnalignedFloats(const std::vector<float>& values, size_t shift = 1)
      : n_(values.size()), shift_(shift), bytes_(new char[shift + n_ * sizeof(float)]) {
    if (n_ > 0) std::memcpy(bytes_.get() + shift_, values.data(), n_ * sizeof(float));
  }
  float* get() { return reinterpret_cast<float*>(bytes_.get() + shift_); }
  std::vector<float> Copy() const {
    std::vector<float> values(n_);
    if (n_ > 0) std::memcpy(values.data(), bytes_.get() + shift_, n_ * sizeof(float));
    return values;
  }

 private:
  size_t n_, shift_;
  std::unique_ptr<char[]> bytes_;
};

inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

// In a buffer of exactly MaxEncodedBytes, as a caller has it.
inline std::string Encode(const PayloadCodec& codec, const std::vector<float>& values,
                          std::vector<float>* residual) {
  const uint64_t room = codec.MaxEncodedBytes(values.size());
  std::unique_ptr<std::byte[]> out(new std::byte[room]);
  residual->resize(values.size());
  const uint64_t size = codec.Encode(values.data(), values.size(), residual->data(), out.get());
  EXPECT_LE(size, room);
  if (codec.fixed_size()) {
    EXPECT_EQ(size, room);
  }
  if (!values.empty()) {
    EXPECT_GE(size, 1u);
  }
  return std::string(reinterpret_cast<const char*>(out.get()), size);
}

inline std::vector<float> Decode(const PayloadCodec& codec, const std::string& bytes, size_t n) {
  std::vector<float> out(n, -77);
  const auto status = codec.Decode(bytes, n, out.data());
  EXPECT_TRUE(status.ok()) << status;
  return out;
}

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_CODEC_CODEC_TESTING_H_
