// Small things that the codecs share; internal to ps/codec.
#ifndef PARLEY_PS_CODEC_CODEC_BYTES_H_
#define PARLEY_PS_CODEC_CODEC_BYTES_H_

#include <cstdint>
#include <cstring>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace parley {

// Numbers at any address, in the machine's order, which is little-endian.
template <typename T>
T ReadAs(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}
template <typename T>
void WriteAs(uint8_t* p, T value) {
  std::memcpy(p, &value, sizeof(T));
}

inline uint8_t* AsBytes(std::byte* p) { return reinterpret_cast<uint8_t*>(p); }
inline const uint8_t* AsBytes(std::string_view s) {
  return reinterpret_cast<const uint8_t*>(s.data());
}

// Bits of |x|: they order as the magnitudes do, NaN above infinity.
inline uint32_t MagnitudeBits(float x) {
  return ReadAs<uint32_t>(reinterpret_cast<uint8_t*>(&x)) & 0x7fffffff;
}
constexpr uint32_t kInfinityBits = 0x7f800000;

inline absl::Status CheckSize(absl::string_view codec, uint64_t n, uint64_t bytes,
                              uint64_t expected) {
  if (bytes == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(codec, ": ", bytes, " bytes for ", n, " values; allowed: ", expected));
}

}  // namespace parley

#endif  // PARLEY_PS_CODEC_CODEC_BYTES_H_
