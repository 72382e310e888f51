// The kernels' one source, included by a file per instruction set that names
// PARLEY_KERNEL_NAMESPACE and PARLEY_KERNEL_ISA and defines, in that namespace, the operations on
// groups of 16 elements (Vec, Int, Mask). No include guard on purpose; see codec_kernels.h.
#include "ps/codec/codec_kernels.h"

namespace parley {
namespace PARLEY_KERNEL_NAMESPACE {
namespace {

constexpr uint64_t kGroup = 16;
constexpr int32_t kMagnitude = 0x7fffffff;
constexpr int32_t kLargestFinite = 0x7f7fffff;  // bits of FLT_MAX
constexpr int32_t kQuietNan = 0x7fc00000;
constexpr float kFloatMax = __FLT_MAX__;

inline Int Magnitude(Vec v) { return And(BitsOf(v), SetInt(kMagnitude)); }
inline Mask NotFinite(Vec v) { return Greater(Magnitude(v), SetInt(kLargestFinite)); }

// The last group of a run, filled up with zeros.
inline Vec LoadSome(const float* p, uint64_t n) {
  float group[kGroup] = {};
  __builtin_memcpy(group, p, n * sizeof(float));
  return Load(group);
}
inline void StoreSome(float* p, Vec v, uint64_t n) {
  float group[kGroup];
  Store(group, v);
  __builtin_memcpy(p, group, n * sizeof(float));
}

// Calls body(offset, size) for each group; the compiler sees the size of all but the last.
template <typename Body>
inline void ForGroups(uint64_t n, Body body) {
  uint64_t i = 0;
  for (; i + kGroup <= n; i += kGroup) body(i, kGroup);
  if (i < n) body(i, n - i);
}
inline Vec LoadGroup(const float* p, uint64_t n) { return n == kGroup ? Load(p) : LoadSome(p, n); }
inline void StoreGroup(float* p, Vec v, uint64_t n) {
  if (n == kGroup) {
    Store(p, v);
  } else {
    StoreSome(p, v, n);
  }
}

void EncodeFp16(const float* values, uint64_t n, uint8_t* bytes) {
  const Vec limit = Set(65504), minus_limit = Set(-65504);
  ForGroups(n, [&](uint64_t i, uint64_t size) {
    const Vec x = LoadGroup(values + i, size);
    // A NaN passes both as their second operand.
    const Vec clamped = Max(minus_limit, Min(limit, x));
    const Vec result = Select(NotFinite(x), x, clamped);
    if (size == kGroup) return StoreFp16(bytes + 2 * i, result);
    uint8_t group[2 * kGroup];
    StoreFp16(group, result);
    __builtin_memcpy(bytes + 2 * i, group, 2 * size);
  });
}

void DecodeFp16(const uint8_t* bytes, uint64_t n, float* out) {
  ForGroups(n, [&](uint64_t i, uint64_t size) {
    if (size == kGroup) return Store(out + i, LoadFp16(bytes + 2 * i));
    uint8_t group[2 * kGroup] = {};
    __builtin_memcpy(group, bytes + 2 * i, 2 * size);
    StoreSome(out + i, LoadFp16(group), size);
  });
}

void EncodeBf16(const float* values, uint64_t n, uint8_t* bytes) {
  ForGroups(n, [&](uint64_t i, uint64_t size) {
    const Vec x = LoadGroup(values + i, size);
    const Int bits = BitsOf(x);
    const Int odd = And(ShiftRight16(bits), SetInt(1));
    // Ties to even: a half and the last bit that stays carry over just above the half.
    const Int rounded = ShiftRight16(AddInt(bits, AddInt(odd, SetInt(0x7fff))));
    const Int finite =
        SelectInt(Equal(And(rounded, SetInt(0x7fff)), SetInt(0x7f80)),
                  Or(And(ShiftRight16(bits), SetInt(0x8000)), SetInt(0x7f7f)), rounded);
    // Infinity has no bits below; a NaN must not become one.
    const Int upper = ShiftRight16(bits);
    const Int quiet =
        SelectInt(Greater(Magnitude(x), SetInt(0x7f800000)), Or(upper, SetInt(0x40)), upper);
    const Int result = SelectInt(NotFinite(x), quiet, finite);
    if (size == kGroup) return StoreUint16(bytes + 2 * i, result);
    uint8_t group[2 * kGroup];
    StoreUint16(group, result);
    __builtin_memcpy(bytes + 2 * i, group, 2 * size);
  });
}

void DecodeBf16(const uint8_t* bytes, uint64_t n, float* out) {
  ForGroups(n, [&](uint64_t i, uint64_t size) {
    if (size == kGroup) return Store(out + i, FromBits(LoadUpper16(bytes + 2 * i)));
    uint8_t group[2 * kGroup] = {};
    __builtin_memcpy(group, bytes + 2 * i, 2 * size);
    StoreSome(out + i, FromBits(LoadUpper16(group)), size);
  });
}

float EncodeInt8(const float* values, float* residual, uint64_t n, uint8_t* codes) {
  Int largest = SetInt(0);
  ForGroups(n, [&](uint64_t i, uint64_t size) {
    const Vec x = Add(LoadGroup(values + i, size), LoadGroup(residual + i, size));
    StoreGroup(residual + i, x, size);
    largest = MaxInt(largest, SelectInt(NotFinite(x), SetInt(0), Magnitude(x)));
  });
  int32_t lanes[kGroup];
  StoreInt(lanes, largest);
  int32_t bits = 0;
  for (const int32_t lane : lanes) bits = lane > bits ? lane : bits;
  float magnitude;
  __builtin_memcpy(&magnitude, &bits, sizeof(bits));

  // Below, 127 / magnitude would overflow; all of it waits in the residual instead. Above, 127 *
  // scale would.
  float scale = 0, inverse = 0;
  if (magnitude >= 1e-35f) {
    scale = magnitude / 127;
    scale = scale > kFloatMax / 128 ? kFloatMax / 128 : scale;
    inverse = 127 / magnitude;
  }
  const Vec scales = Set(scale), inverses = Set(inverse);
  ForGroups(n, [&](uint64_t i, uint64_t size) {
    const Vec x = LoadGroup(residual + i, size);
    // What is not finite rounds to the smallest int32, which saturates to -128.
    const Int code = Round(Mul(x, inverses));
    const Vec rest = Sub(x, Mul(ToFloat(code), scales));
    StoreGroup(residual + i, Select(NotFinite(x), Set(0), rest), size);
    if (size == kGroup) return StoreInt8(codes + i, code);
    uint8_t group[kGroup];
    StoreInt8(group, code);
    __builtin_memcpy(codes + i, group, size);
  });
  return scale;
}

void DecodeInt8(const uint8_t* codes, uint64_t n, float scale, float* out) {
  const Vec scales = Set(scale), nan = FromBits(SetInt(kQuietNan));
  const auto value = [&](const uint8_t* p) {
    const Int code = LoadInt8(p);
    return Select(Equal(code, SetInt(-128)), nan, Mul(ToFloat(code), scales));
  };
  ForGroups(n, [&](uint64_t i, uint64_t size) {
    if (size == kGroup) return Store(out + i, value(codes + i));
    uint8_t group[kGroup] = {};
    __builtin_memcpy(group, codes + i, size);
    StoreSome(out + i, value(group), size);
  });
}

inline float SumOfLanes(Vec v) {
  float lanes[kGroup];
  Store(lanes, v);
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  return sum;
}

inline float Mean(float sum, uint64_t count) {
  if (count == 0) return 0;
  const float mean = sum / static_cast<float>(count);
  // Sums of huge values overflow; their mean would not have.
  return mean > kFloatMax ? kFloatMax : mean < -kFloatMax ? -kFloatMax : mean;
}

// Nothing of the block can be said with two values if one of them has to say NaN.
void SpoilBlock(float* residual, uint64_t n, float* reconstruction, uint8_t* bits) {
  const int32_t nan = kQuietNan;
  __builtin_memcpy(&reconstruction[0], &nan, sizeof(nan));
  __builtin_memcpy(&reconstruction[1], &nan, sizeof(nan));
  __builtin_memset(bits, 0, (n + 7) / 8);
  ForGroups(n, [&](uint64_t i, uint64_t size) {
    const Vec x = LoadGroup(residual + i, size);
    StoreGroup(residual + i, Select(NotFinite(x), Set(0), x), size);
  });
}

void EncodeOneBit(const float* values, float* residual, uint64_t n, float* reconstruction,
                  uint8_t* bits) {
  Vec positive = Set(0), negative = Set(0);
  Int largest = SetInt(0);
  uint64_t negatives = 0;
  ForGroups(n, [&](uint64_t i, uint64_t size) {
    const Vec x = Add(LoadGroup(values + i, size), LoadGroup(residual + i, size));
    StoreGroup(residual + i, x, size);
    positive = Add(positive, Max(x, Set(0)));
    negative = Add(negative, Min(x, Set(0)));
    largest = MaxInt(largest, Magnitude(x));
    const uint32_t sign = SignBits(x);
    negatives += static_cast<uint64_t>(__builtin_popcount(sign));
    bits[i / 8] = static_cast<uint8_t>(sign);
    if (size > 8) bits[i / 8 + 1] = static_cast<uint8_t>(sign >> 8);
  });
  if (MaskBits(Greater(largest, SetInt(kLargestFinite))) != 0) {
    return SpoilBlock(residual, n, reconstruction, bits);
  }
  reconstruction[0] = Mean(SumOfLanes(positive), n - negatives);
  reconstruction[1] = Mean(SumOfLanes(negative), negatives);
  const Vec if_positive = Set(reconstruction[0]), if_negative = Set(reconstruction[1]);
  ForGroups(n, [&](uint64_t i, uint64_t size) {
    const Vec x = LoadGroup(residual + i, size);
    const Mask sign = Greater(SetInt(0), BitsOf(x));
    StoreGroup(residual + i, Sub(x, Select(sign, if_negative, if_positive)), size);
  });
}

void DecodeOneBit(const uint8_t* bits, uint64_t n, const float* reconstruction, float* out) {
  const Vec if_positive = Set(reconstruction[0]), if_negative = Set(reconstruction[1]);
  ForGroups(n, [&](uint64_t i, uint64_t size) {
    const uint32_t upper = size > 8 ? bits[i / 8 + 1] : 0u;
    const Mask sign = MaskOf(bits[i / 8] | upper << 8);
    StoreGroup(out + i, Select(sign, if_negative, if_positive), size);
  });
}

uint64_t AddAndCollect(const float* values, float* residual, uint64_t n, uint32_t threshold,
                       uint16_t* indices) {
  uint64_t count = 0;
  // Magnitudes are at most 2^31 - 1, so that signed comparison will do.
  const Int below = SetInt(static_cast<int32_t>(threshold) - 1);
  ForGroups(n, [&](uint64_t i, uint64_t size) {
    const Vec x = Add(LoadGroup(values + i, size), LoadGroup(residual + i, size));
    StoreGroup(residual + i, x, size);
    uint32_t hits = MaskBits(Greater(Magnitude(x), below)) & ((1u << size) - 1);
    for (; hits != 0; hits &= hits - 1) {
      indices[count++] = static_cast<uint16_t>(i + static_cast<uint64_t>(__builtin_ctz(hits)));
    }
  });
  return count;
}

}  // namespace

const CodecKernels kKernels = {PARLEY_KERNEL_ISA, &EncodeFp16,   &DecodeFp16, &EncodeBf16,
                               &DecodeBf16,       &EncodeInt8,   &DecodeInt8, &EncodeOneBit,
                               &DecodeOneBit,     &AddAndCollect};

}  // namespace PARLEY_KERNEL_NAMESPACE
}  // namespace parley
