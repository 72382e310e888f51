// Kernels of embeddings: rows to the model's input, and its gradient to the rows. Internal to
// models/gpu.
#ifndef PARLEY_MODELS_GPU_LOOKUP_KERNELS_H_
#define PARLEY_MODELS_GPU_LOOKUP_KERNELS_H_

#include <cstdint>

#include "models/gpu/index_math.h"
#include "models/gpu/layer_kernels.h"
#include "ps/gpu/kernel.h"

namespace parley {

inline constexpr uint32_t kNoRow = ~uint32_t{0};

// x [samples, fields, dim], or their sum over the fields, [samples, dim].
struct LookupKernel : ElementKernel {
  const float* values;    // [keys, dim]
  const uint32_t* index;  // [samples, fields] into values, or kNoRow
  const float* factors;   // the same; null: all 1
  float* x;
  Divider dim;
  uint32_t fields;
  bool sum;
  uint32_t n;  // of x

  PARLEY_GPU float Of(uint64_t place, uint32_t d) const {
    const uint32_t row = index[place];
    if (row == kNoRow) return 0;
    const float value = values[uint64_t{row} * dim.divisor() + d];
    return factors == nullptr || factors[place] == 1 ? value : factors[place] * value;
  }
  PARLEY_GPU void Run(int, const ThreadPlace& at, Shared&) const {
    for (uint64_t i = at.first(); i < n; i += at.stride()) {
      uint32_t place = static_cast<uint32_t>(i);
      const uint32_t d = dim.Split(&place);
      float value = 0;
      if (!sum) {
        value = Of(place, d);
      } else {
        for (uint32_t f = 0; f < fields; ++f) {
          const uint64_t from = uint64_t{place} * fields + f;
          if (index[from] != kNoRow) value += Of(from, d);
        }
      }
      x[i] = value;
    }
  }
};

// A row's gradient is added up over its places, by sample and then by field.
struct LookupGradientKernel : ElementKernel {
  const float* dx;
  const uint32_t* starts;  // [keys + 1] into places
  const uint32_t* places;  // [starts[keys]]: sample * fields + field, ascending for each key
  const float* factors;    // [samples, fields]; null: all 1
  float* gradients;        // [keys, dim]
  Divider dim, fields;
  bool sum;
  uint32_t n;  // of gradients
  PARLEY_GPU void Run(int, const ThreadPlace& at, Shared&) const {
    for (uint64_t i = at.first(); i < n; i += at.stride()) {
      uint32_t key = static_cast<uint32_t>(i);
      const uint32_t d = dim.Split(&key);
      float total = 0;
      for (uint32_t p = starts[key]; p < starts[key + 1]; ++p) {
        const uint32_t place = places[p];
        const uint32_t from = sum ? fields.Quotient(place) : place;
        const float value = dx[uint64_t{from} * dim.divisor() + d];
        total += factors == nullptr || factors[place] == 1 ? value : factors[place] * value;
      }
      gradients[i] = total;
    }
  }
};

}  // namespace parley

PARLEY_DECLARE_GPU_KERNEL(parley::LookupKernel);
PARLEY_DECLARE_GPU_KERNEL(parley::LookupGradientKernel);

#endif  // PARLEY_MODELS_GPU_LOOKUP_KERNELS_H_
