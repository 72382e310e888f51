// The shape of one sample, shared by models, layers and devices.
#ifndef PARLEY_MODELS_SHAPE_H_
#define PARLEY_MODELS_SHAPE_H_

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"

namespace parley {

// Shape of one sample.
struct SampleShape {
  uint32_t channels = 1, height = 1, width = 1;
  uint64_t size() const { return uint64_t{channels} * height * width; }
  friend bool operator==(const SampleShape&, const SampleShape&) = default;
};

// "[16, 26, 26]", for messages.
inline std::string ToString(const SampleShape& shape) {
  return absl::StrCat("[", shape.channels, ", ", shape.height, ", ", shape.width, "]");
}

}  // namespace parley

#endif  // PARLEY_MODELS_SHAPE_H_
