// The codecs' kernels for every machine that runs Parley at all (x86-64-v3): a group of 16 elements
// is two registers.
#include <immintrin.h>

#include <cstdint>

#define PARLEY_KERNEL_NAMESPACE codec_kernels_avx2
#define PARLEY_KERNEL_ISA "avx2"

namespace parley {
namespace PARLEY_KERNEL_NAMESPACE {
namespace {

struct Vec {
  __m256 lo, hi;
};
struct Int {
  __m256i lo, hi;
};
struct Mask {
  __m256i lo, hi;  // each lane all ones or all zeros
};

inline Vec Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void Store(float* p, Vec v) {
  _mm256_storeu_ps(p, v.lo);
  _mm256_storeu_ps(p + 8, v.hi);
}
inline Vec Set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Int SetInt(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Vec Add(Vec a, Vec b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline Vec Sub(Vec a, Vec b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline Vec Mul(Vec a, Vec b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
// The second operand if one is NaN.
inline Vec Min(Vec a, Vec b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline Vec Max(Vec a, Vec b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline Int BitsOf(Vec v) { return {_mm256_castps_si256(v.lo), _mm256_castps_si256(v.hi)}; }
inline Vec FromBits(Int v) { return {_mm256_castsi256_ps(v.lo), _mm256_castsi256_ps(v.hi)}; }
inline Int And(Int a, Int b) {
  return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)};
}
inline Int Or(Int a, Int b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
inline Int AddInt(Int a, Int b) {
  return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
inline Int MaxInt(Int a, Int b) {
  return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)};
}
inline Int ShiftRight16(Int a) {
  return {_mm256_srli_epi32(a.lo, 16), _mm256_srli_epi32(a.hi, 16)};
}
inline void StoreInt(int32_t* p, Int v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), v.hi);
}
inline Mask Greater(Int a, Int b) {
  return {_mm256_cmpgt_epi32(a.lo, b.lo), _mm256_cmpgt_epi32(a.hi, b.hi)};
}
inline Mask Equal(Int a, Int b) {
  return {_mm256_cmpeq_epi32(a.lo, b.lo), _mm256_cmpeq_epi32(a.hi, b.hi)};
}
inline Vec Select(Mask m, Vec yes, Vec no) {
  return {_mm256_blendv_ps(no.lo, yes.lo, _mm256_castsi256_ps(m.lo)),
          _mm256_blendv_ps(no.hi, yes.hi, _mm256_castsi256_ps(m.hi))};
}
inline Int SelectInt(Mask m, Int yes, Int no) {
  return {_mm256_blendv_epi8(no.lo, yes.lo, m.lo), _mm256_blendv_epi8(no.hi, yes.hi, m.hi)};
}
inline uint32_t SignBits(Vec v) {
  return static_cast<uint32_t>(_mm256_movemask_ps(v.lo)) |
         static_cast<uint32_t>(_mm256_movemask_ps(v.hi)) << 8;
}
inline uint32_t MaskBits(Mask m) {
  return SignBits({_mm256_castsi256_ps(m.lo), _mm256_castsi256_ps(m.hi)});
}
inline Mask MaskOf(uint32_t bits) {
  const __m256i lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i lo = _mm256_set1_epi32(static_cast<int>(bits & 255));
  const __m256i hi = _mm256_set1_epi32(static_cast<int>(bits >> 8));
  return {_mm256_cmpeq_epi32(_mm256_and_si256(lo, lanes), lanes),
          _mm256_cmpeq_epi32(_mm256_and_si256(hi, lanes), lanes)};
}

constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

inline void StoreFp16(uint8_t* p, Vec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v.lo, kNearest));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 16), _mm256_cvtps_ph(v.hi, kNearest));
}
inline Vec LoadFp16(const uint8_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)))};
}
// The low 16 bits of each lane, which must be all that there is.
inline void StoreUint16(uint8_t* p, Int v) {
  const __m256i packed = _mm256_packus_epi32(v.lo, v.hi);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
// 16 bits into the upper half of each lane.
inline Int LoadUpper16(const uint8_t* p) {
  const __m128i lo = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m128i hi = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16));
  return {_mm256_slli_epi32(_mm256_cvtepu16_epi32(lo), 16),
          _mm256_slli_epi32(_mm256_cvtepu16_epi32(hi), 16)};
}
// To the nearest integer; the smallest int32 for what is none.
inline Int Round(Vec v) { return {_mm256_cvtps_epi32(v.lo), _mm256_cvtps_epi32(v.hi)}; }
inline Vec ToFloat(Int v) { return {_mm256_cvtepi32_ps(v.lo), _mm256_cvtepi32_ps(v.hi)}; }
// Saturates.
inline void StoreInt8(uint8_t* p, Int v) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(v.lo, v.hi), 0xd8);
  const __m128i bytes =
      _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
inline Int LoadInt8(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))};
}

}  // namespace
}  // namespace PARLEY_KERNEL_NAMESPACE
}  // namespace parley

#include "ps/codec/codec_kernels.inc.h"
