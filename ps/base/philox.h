// Counter-based random numbers: value = f(seed, stream, index), with no state between calls.
//
// Everything random in training comes from here, so that it depends neither on the number of
// servers nor on the order in which things happen. The generator is Philox4x32-10 (Salmon, Moraes,
// Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11); 2^64 streams a seed, 2^64
// blocks of four 32-bit values a stream. Pure functions, thread-safe.
#ifndef PARLEY_PS_BASE_PHILOX_H_
#define PARLEY_PS_BASE_PHILOX_H_

#include <array>
#include <cstdint>

namespace parley {

// Uses of randomness that must not share numbers. The stream of a use is Stream(purpose, a number
// within it).
enum class RandomPurpose : uint8_t {
  kInit = 1,
  kShuffle = 2,
  kDropout = 3,
  kSynthetic = 4,
  kRow = 5
};

constexpr uint64_t Stream(RandomPurpose purpose, uint64_t number) {
  return (static_cast<uint64_t>(purpose) << 56) ^ number;
}

// Four independent uniform 32-bit values for block `index`.
constexpr std::array<uint32_t, 4> Philox(uint64_t seed, uint64_t stream, uint64_t index) {
  uint32_t c0 = static_cast<uint32_t>(index), c1 = static_cast<uint32_t>(index >> 32);
  uint32_t c2 = static_cast<uint32_t>(stream), c3 = static_cast<uint32_t>(stream >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c0, p1 = uint64_t{0xCD9E8D57} * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1), c3 = static_cast<uint32_t>(p0);
    c0 = n0, c2 = n2;
    k0 += 0x9E3779B9, k1 += 0xBB67AE85;
  }
  return {c0, c1, c2, c3};
}

// [0, 1) with 24 bits, exactly representable in float32.
constexpr float ToUnitFloat(uint32_t bits) { return static_cast<float>(bits >> 8) * 0x1p-24f; }

// The element `index` of a stream of uniforms in [0, 1); four consecutive elements share one block.
constexpr float UniformAt(uint64_t seed, uint64_t stream, uint64_t index) {
  return ToUnitFloat(Philox(seed, stream, index / 4)[index % 4]);
}

}  // namespace parley

#endif  // PARLEY_PS_BASE_PHILOX_H_
