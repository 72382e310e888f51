#include "models/cpu/keep_mask.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace parley {
namespace {

static_assert(std::endian::native == std::endian::little, "four masks are stored as one word");

constexpr int kLanes = kKeepMaskGroup / 4;

// philox.h with kLanes blocks side by side: every line is one loop over lanes, which is what the
// compiler needs to see to use vector registers. `threshold` is compared with the upper 24 bits of
// each value, exactly as ToUnitFloat(bits) >= p does.
inline __attribute__((always_inline)) void FillGroup(uint64_t seed, uint64_t stream, uint64_t block,
                                                     uint32_t threshold, uint8_t* keep) {
  uint32_t c0[kLanes], c1[kLanes], c2[kLanes], c3[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    const uint64_t counter = block + static_cast<uint64_t>(i);
    c0[i] = static_cast<uint32_t>(counter);
    c1[i] = static_cast<uint32_t>(counter >> 32);
    c2[i] = static_cast<uint32_t>(stream);
    c3[i] = static_cast<uint32_t>(stream >> 32);
  }
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < kLanes; ++i) {
      const uint64_t p0 = uint64_t{0xD2511F53} * c0[i], p1 = uint64_t{0xCD9E8D57} * c2[i];
      c0[i] = static_cast<uint32_t>(p1 >> 32) ^ c1[i] ^ k0;
      c2[i] = static_cast<uint32_t>(p0 >> 32) ^ c3[i] ^ k1;
      c1[i] = static_cast<uint32_t>(p1);
      c3[i] = static_cast<uint32_t>(p0);
    }
    k0 += 0x9E3779B9, k1 += 0xBB67AE85;
  }
  uint32_t words[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    words[i] = (c0[i] >= threshold ? 1u : 0u) | (c1[i] >= threshold ? 1u << 8 : 0u) |
               (c2[i] >= threshold ? 1u << 16 : 0u) | (c3[i] >= threshold ? 1u << 24 : 0u);
  }
  std::memcpy(keep, words, sizeof(words));
}

struct Task {
  uint64_t seed, stream, block;
  size_t groups;
  uint32_t threshold;
  uint8_t* keep;
};

inline __attribute__((always_inline)) void FillGroups(const Task& t) {
  for (size_t g = 0; g < t.groups; ++g) {
    FillGroup(t.seed, t.stream, t.block + g * kLanes, t.threshold, t.keep + g * kKeepMaskGroup);
  }
}

void FillBaseline(const Task& t) { FillGroups(t); }

// Integers only, so both versions give the same bits.
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))) void
FillAvx512(const Task& t) {
  FillGroups(t);
}

}  // namespace

void FillKeepMask(uint64_t seed, uint64_t stream, uint64_t first, size_t count, float p,
                  uint8_t* keep) {
  // Smallest 24-bit value whose float is >= p; the multiplication is exact.
  const uint32_t threshold = static_cast<uint32_t>(std::ceil(static_cast<double>(p) * 0x1p24)) << 8;
  const Task task{seed,      stream, first / 4, (count + kKeepMaskGroup - 1) / kKeepMaskGroup,
                  threshold, keep};
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    FillAvx512(task);
  } else {
    FillBaseline(task);
  }
}

}  // namespace parley
