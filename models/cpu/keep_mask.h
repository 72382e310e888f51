// Dropout's pattern, many elements at a time.
#ifndef PARLEY_MODELS_CPU_KEEP_MASK_H_
#define PARLEY_MODELS_CPU_KEEP_MASK_H_

#include <cstddef>
#include <cstdint>

namespace parley {

// Philox makes four values at once, so a mask starts on a multiple of four and is written in groups
// of so many bytes.
inline constexpr size_t kKeepMaskGroup = 32;

// keep[i] = UniformAt(seed, stream, first + i) >= p ? 1 : 0 for i in [0, count), count rounded up
// to kKeepMaskGroup: `keep` must have room for that. REQUIRES: first % 4 == 0, 0 <= p < 1.
void FillKeepMask(uint64_t seed, uint64_t stream, uint64_t first, size_t count, float p,
                  uint8_t* keep);

// The same on a machine without AVX-512, which FillKeepMask uses where it can; for tests.
void FillKeepMaskBaseline(uint64_t seed, uint64_t stream, uint64_t first, size_t count, float p,
                          uint8_t* keep);

}  // namespace parley

#endif  // PARLEY_MODELS_CPU_KEEP_MASK_H_
