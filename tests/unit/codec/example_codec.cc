#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "ps/codec/payload_codec.h"

namespace {

// The sign and the exponent of each value in one byte: powers of two from 2^-48 to 2^15, or 0.
class ExponentCodec : public parley::PayloadCodec {
 public:
  std::string name() const override { return "exponent"; }
  bool keeps_residual() const override { return true; }
  uint64_t MaxEncodedBytes(uint64_t n) const override { return n; }
  bool fixed_size() const override { return true; }

  uint64_t Encode(const float* values, uint64_t n, float* residual, std::byte* out) const override {
    for (uint64_t i = 0; i < n; ++i) {
      float x;  // values may be unaligned
      std::memcpy(&x, values + i, sizeof(x));
      x += residual[i];
      const int code = std::isfinite(x) ? CodeOf(x) : kBad;
      out[i] = static_cast<std::byte>(code);
      residual[i] = code == kBad ? 0 : x - ValueOf(code);
    }
    return n;
  }

  absl::Status Decode(std::string_view bytes, uint64_t n, float* out) const override {
    if (bytes.size() != n) {
      return absl::InvalidArgumentError(
          absl::StrCat("exponent: ", bytes.size(), " bytes for ", n, " values; allowed: ", n));
    }
    for (uint64_t i = 0; i < n; ++i) out[i] = ValueOf(static_cast<unsigned char>(bytes[i]));
    return absl::OkStatus();
  }

 private:
  static constexpr int kBad = 255, kNegative = 128, kLowest = -49;

  static int CodeOf(float x) {  // 0, or 1 to 64 for the exponents
    if (std::abs(x) < std::ldexp(1.0f, kLowest + 1)) return 0;
    const int code = std::min(std::ilogb(x) - kLowest, 64);
    return x < 0 ? code | kNegative : code;
  }
  static float ValueOf(int code) {
    const int exponent = code & 127;
    if (exponent > 64) return std::nanf("");
    if (exponent == 0) return 0;
    return std::ldexp(code & kNegative ? -1.0f : 1.0f, exponent + kLowest);
  }
};

PARLEY_REGISTER_PAYLOAD_CODEC("exponent", [](const parley::pb::Compression&) {
  return std::make_unique<ExponentCodec>();
});

}  // namespace
