// The same kernels in 512-bit registers, one for a group of 16 elements; compiled with -mavx512*,
// called only where the processor has it.
#include <immintrin.h>

#include <cstdint>

#define PARLEY_KERNEL_NAMESPACE codec_kernels_avx512
#define PARLEY_KERNEL_ISA "avx512"

namespace parley {
namespace PARLEY_KERNEL_NAMESPACE {
namespace {

using Vec = __m512;
using Int = __m512i;
using Mask = __mmask16;

inline Vec Load(const float* p) { return _mm512_loadu_ps(p); }
inline void Store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline Vec Set(float x) { return _mm512_set1_ps(x); }
inline Int SetInt(int32_t x) { return _mm512_set1_epi32(x); }
inline Vec Add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec Sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec Mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
// The second operand if one is NaN.
inline Vec Min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec Max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Int BitsOf(Vec v) { return _mm512_castps_si512(v); }
inline Vec FromBits(Int v) { return _mm512_castsi512_ps(v); }
inline Int And(Int a, Int b) { return _mm512_and_si512(a, b); }
inline Int Or(Int a, Int b) { return _mm512_or_si512(a, b); }
inline Int AddInt(Int a, Int b) { return _mm512_add_epi32(a, b); }
inline Int MaxInt(Int a, Int b) { return _mm512_max_epi32(a, b); }
inline Int ShiftRight16(Int a) { return _mm512_srli_epi32(a, 16); }
inline void StoreInt(int32_t* p, Int v) { _mm512_storeu_si512(p, v); }
inline Mask Greater(Int a, Int b) { return _mm512_cmpgt_epi32_mask(a, b); }
inline Mask Equal(Int a, Int b) { return _mm512_cmpeq_epi32_mask(a, b); }
inline Vec Select(Mask m, Vec yes, Vec no) { return _mm512_mask_blend_ps(m, no, yes); }
inline Int SelectInt(Mask m, Int yes, Int no) { return _mm512_mask_blend_epi32(m, no, yes); }
inline uint32_t SignBits(Vec v) { return _mm512_movepi32_mask(_mm512_castps_si512(v)); }
inline uint32_t MaskBits(Mask m) { return m; }
inline Mask MaskOf(uint32_t bits) { return static_cast<Mask>(bits); }

constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

inline void StoreFp16(uint8_t* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, kNearest));
}
inline Vec LoadFp16(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// The low 16 bits of each lane, which must be all that there is.
inline void StoreUint16(uint8_t* p, Int v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(v));
}
// 16 bits into the upper half of each lane.
inline Int LoadUpper16(const uint8_t* p) {
  const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16);
}
// To the nearest integer; the smallest int32 for what is none.
inline Int Round(Vec v) { return _mm512_cvtps_epi32(v); }
inline Vec ToFloat(Int v) { return _mm512_cvtepi32_ps(v); }
// Saturates.
inline void StoreInt8(uint8_t* p, Int v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(v));
}
inline Int LoadInt8(const uint8_t* p) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

}  // namespace
}  // namespace PARLEY_KERNEL_NAMESPACE
}  // namespace parley

#include "ps/codec/codec_kernels.inc.h"
