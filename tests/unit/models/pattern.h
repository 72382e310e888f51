// Inputs that make_layers.py makes too, so that the golden file need not hold them.
#ifndef PARLEY_TESTS_UNIT_MODELS_PATTERN_H_
#define PARLEY_TESTS_UNIT_MODELS_PATTERN_H_

#include <cstdint>
#include <vector>

namespace parley {

inline std::vector<float> Pattern(uint32_t stream, size_t count, float scale = 1) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) {
    uint32_t x = static_cast<uint32_t>(i) + stream * 1000003;
    x *= 0x9E3779B1, x ^= x >> 15;
    x *= 0x85EBCA77, x ^= x >> 13;
    x *= 0xC2B2AE3D, x ^= x >> 16;
    values[i] = (static_cast<float>(x >> 8) * 0x1p-23f - 1) * scale;
  }
  return values;
}

inline std::vector<int32_t> PatternLabels(uint64_t rows, uint32_t classes) {
  std::vector<int32_t> labels(rows);
  for (uint64_t i = 0; i < rows; ++i) labels[i] = static_cast<int32_t>((3 * i + 1) % classes);
  return labels;
}

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_MODELS_PATTERN_H_
