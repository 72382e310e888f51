#include "models/cpu/keep_mask.h"

#include <immintrin.h>

#include <cmath>

namespace parley {
namespace {

// Philox4x32-10 as in ps/base/philox.h, one block in each 64-bit lane. A counter word lives in the
// lower half of its lane, the upper half is rubbish: the 32 x 32 -> 64 bit multiplication does not
// look at it, so a round needs no shuffles. Left to the compiler, the scalar function becomes
// 64-bit multiplications that take four times as long.
constexpr uint32_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kWeyl0 = 0x9E3779B9, kWeyl1 = 0xBB67AE85;

struct Task {
  uint64_t seed, stream, block;
  size_t groups;
  uint32_t threshold;  // keep values that are not below
  uint8_t* keep;
};

int AsInt(uint64_t bits) { return static_cast<int>(static_cast<uint32_t>(bits)); }

// Four blocks: 16 bytes.
void FillQuarterAvx2(const Task& t, uint64_t block, uint8_t* keep) {
  const __m256i counter = _mm256_add_epi64(_mm256_set1_epi64x(static_cast<int64_t>(block)),
                                           _mm256_set_epi64x(3, 2, 1, 0));
  const __m256i m0 = _mm256_set1_epi32(AsInt(kMultiplier0));
  const __m256i m1 = _mm256_set1_epi32(AsInt(kMultiplier1));
  __m256i c[4] = {counter, _mm256_srli_epi64(counter, 32), _mm256_set1_epi32(AsInt(t.stream)),
                  _mm256_set1_epi32(AsInt(t.stream >> 32))};
  uint32_t k0 = static_cast<uint32_t>(t.seed), k1 = static_cast<uint32_t>(t.seed >> 32);
  for (int round = 0; round < 10; ++round, k0 += kWeyl0, k1 += kWeyl1) {
    const __m256i p0 = _mm256_mul_epu32(m0, c[0]), p1 = _mm256_mul_epu32(m1, c[2]);
    c[0] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), c[1]),
                            _mm256_set1_epi32(AsInt(k0)));
    c[2] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), c[3]),
                            _mm256_set1_epi32(AsInt(k1)));
    c[1] = p1;
    c[3] = p0;
  }
  const __m256i threshold = _mm256_set1_epi32(AsInt(t.threshold));
  __m256i words = _mm256_setzero_si256();
  for (int j = 0; j < 4; ++j) {
    // Unsigned >=, which AVX2 lacks.
    const __m256i kept = _mm256_cmpeq_epi32(_mm256_max_epu32(c[j], threshold), c[j]);
    words = _mm256_or_si256(words, _mm256_and_si256(kept, _mm256_set1_epi32(1 << (8 * j))));
  }
  const __m256i lower =
      _mm256_permutevar8x32_epi32(words, _mm256_set_epi32(0, 0, 0, 0, 6, 4, 2, 0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(keep), _mm256_castsi256_si128(lower));
}

void FillAvx2(const Task& t) {
  for (size_t g = 0; g < t.groups; ++g) {
    uint8_t* keep = t.keep + g * kKeepMaskGroup;
    FillQuarterAvx2(t, t.block + g * 8, keep);
    FillQuarterAvx2(t, t.block + g * 8 + 4, keep + 16);
  }
}

// Eight blocks a group: the same, twice as wide.
__attribute__((target("avx512f"))) void FillAvx512(const Task& t) {
  const __m512i m0 = _mm512_set1_epi32(AsInt(kMultiplier0));
  const __m512i m1 = _mm512_set1_epi32(AsInt(kMultiplier1));
  const __m512i threshold = _mm512_set1_epi32(AsInt(t.threshold));
  const __m512i lanes = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
  for (size_t g = 0; g < t.groups; ++g) {
    const __m512i counter =
        _mm512_add_epi64(_mm512_set1_epi64(static_cast<int64_t>(t.block + g * 8)), lanes);
    __m512i c[4] = {counter, _mm512_srli_epi64(counter, 32), _mm512_set1_epi32(AsInt(t.stream)),
                    _mm512_set1_epi32(AsInt(t.stream >> 32))};
    uint32_t k0 = static_cast<uint32_t>(t.seed), k1 = static_cast<uint32_t>(t.seed >> 32);
    for (int round = 0; round < 10; ++round, k0 += kWeyl0, k1 += kWeyl1) {
      const __m512i p0 = _mm512_mul_epu32(m0, c[0]), p1 = _mm512_mul_epu32(m1, c[2]);
      c[0] = _mm512_xor_si512(_mm512_xor_si512(_mm512_srli_epi64(p1, 32), c[1]),
                              _mm512_set1_epi32(AsInt(k0)));
      c[2] = _mm512_xor_si512(_mm512_xor_si512(_mm512_srli_epi64(p0, 32), c[3]),
                              _mm512_set1_epi32(AsInt(k1)));
      c[1] = p1;
      c[3] = p0;
    }
    __m512i words = _mm512_setzero_si512();
    for (int j = 0; j < 4; ++j) {
      const __mmask16 kept = _mm512_cmpge_epu32_mask(c[j], threshold);
      words = _mm512_or_si512(words, _mm512_maskz_set1_epi32(kept, 1 << (8 * j)));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(t.keep + g * kKeepMaskGroup),
                        _mm512_cvtepi64_epi32(words));
  }
}

Task MakeTask(uint64_t seed, uint64_t stream, uint64_t first, size_t count, float p,
              uint8_t* keep) {
  // ToUnitFloat(bits) >= p compares the upper 24 bits with p * 2^24: bits >= threshold says the
  // same of all 32. The multiplication is exact.
  const uint32_t threshold = static_cast<uint32_t>(std::ceil(static_cast<double>(p) * 0x1p24)) << 8;
  const size_t groups = (count + kKeepMaskGroup - 1) / kKeepMaskGroup;
  return {seed, stream, first / 4, groups, threshold, keep};
}

}  // namespace

void FillKeepMask(uint64_t seed, uint64_t stream, uint64_t first, size_t count, float p,
                  uint8_t* keep) {
  const Task task = MakeTask(seed, stream, first, count, p, keep);
  if (__builtin_cpu_supports("avx512f")) {
    FillAvx512(task);
  } else {
    FillAvx2(task);
  }
}

void FillKeepMaskBaseline(uint64_t seed, uint64_t stream, uint64_t first, size_t count, float p,
                          uint8_t* keep) {
  FillAvx2(MakeTask(seed, stream, first, count, p, keep));
}

}  // namespace parley
