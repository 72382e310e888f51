#include "models/cpu/cpu_kernels.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace parley {

void AddBias(const float* bias, uint64_t rows, uint64_t n, bool relu, float* y) {
  for (uint64_t r = 0; r < rows; ++r, y += n) {
    if (relu) {
      for (uint64_t j = 0; j < n; ++j) {
        const float v = y[j] + bias[j];
        y[j] = v > 0 ? v : 0;
      }
    } else {
      for (uint64_t j = 0; j < n; ++j) y[j] += bias[j];
    }
  }
}

void SumRows(const float* x, uint64_t rows, uint64_t n, float* sums) {
  std::fill_n(sums, n, 0.0f);
  for (uint64_t r = 0; r < rows; ++r, x += n) {
    for (uint64_t j = 0; j < n; ++j) sums[j] += x[j];
  }
}

void Relu(const float* x, uint64_t n, float* y) {
  for (uint64_t i = 0; i < n; ++i) y[i] = x[i] > 0 ? x[i] : 0;
}

void ReluGradient(const float* y, const float* dy, uint64_t n, float* dx) {
  for (uint64_t i = 0; i < n; ++i) {
    const float g = dy[i];  // read whatever y says, so that there is no branch
    dx[i] = y[i] > 0 ? g : 0;
  }
}

void ApplyMask(const float* x, const uint8_t* keep, float scale, uint64_t n, float* y) {
  for (uint64_t i = 0; i < n; ++i) {
    y[i] = x[i] * (scale * static_cast<float>(keep[i]));
  }
}

namespace {

// The kernels below work on kLanes neighbouring lanes at a time. Eight floats are one register of
// the baseline; written out as vectors, since compilers make poor code of loops that mix floats and
// bytes.
template <int kLanes>
struct Lanes;
template <>
struct Lanes<1> {
  using Float = float;
  using Place = int32_t;
  using Byte = uint8_t;
  static Byte ToByte(Place place) { return static_cast<Byte>(place); }
  static Place FromByte(Byte byte) { return byte; }
};
template <>
struct Lanes<8> {
  typedef float Float __attribute__((vector_size(32)));
  typedef int32_t Place __attribute__((vector_size(32)));
  typedef uint8_t Byte __attribute__((vector_size(8)));
  // By intrinsics: the compiler's own conversion goes lane by lane.
  static Byte ToByte(Place place) {
    const __m256i wide = reinterpret_cast<__m256i>(place);
    const __m128i words =
        _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    return reinterpret_cast<Byte>(_mm_cvtsi128_si64(_mm_packus_epi16(words, words)));
  }
  static Place FromByte(Byte byte) {
    const __m128i bytes = _mm_cvtsi64_si128(reinterpret_cast<int64_t>(byte));
    return reinterpret_cast<Place>(_mm256_cvtepu8_epi32(bytes));
  }
};

template <typename Vector, typename Element>
Vector Load(const Element* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof(vector));  // unaligned
  return vector;
}
template <typename Vector, typename Element>
void Store(const Vector& vector, Element* to) {
  std::memcpy(to, &vector, sizeof(vector));
}

// kKernel 0: only known at run time.
template <int kLanes, int kKernel>
void MaxPoolWindow(const PoolShape& s, const float* window, bool relu_gradient, float* y,
                   uint8_t* argmax) {
  using V = Lanes<kLanes>;
  const uint64_t kernel = kKernel != 0 ? kKernel : s.kernel;
  auto best = Load<typename V::Float>(window);
  typename V::Place place{};
  for (uint64_t i = 1; i < kernel * kernel; ++i) {
    const auto v = Load<typename V::Float>(window + (i / kernel * s.width + i % kernel) * s.block);
    const auto larger = v > best;
    place = larger ? static_cast<int32_t>(i) + typename V::Place{} : place;
    best = larger ? v : best;
  }
  if (relu_gradient) {
    place = best > typename V::Float{} ? place : kNoGradient + typename V::Place{};
  }
  Store(best, y);
  Store(V::ToByte(place), argmax);
}

template <int kLanes, int kKernel>
void MaxPoolGradientWindow(const PoolShape& s, const float* dy, const uint8_t* argmax,
                           float* window) {
  using V = Lanes<kLanes>;
  const uint64_t kernel = kKernel != 0 ? kKernel : s.kernel;
  const auto gradient = Load<typename V::Float>(dy);
  const auto place = V::FromByte(Load<typename V::Byte>(argmax));
  for (uint64_t i = 0; i < kernel * kernel; ++i) {
    const auto here = place == static_cast<int32_t>(i) + typename V::Place{};
    const typename V::Float masked = here ? gradient : typename V::Float{};
    Store(masked, window + (i / kernel * s.width + i % kernel) * s.block);
  }
}

// Calls window(element of x, element of y) for every group of kLanes lanes of every window.
template <int kLanes, typename Window>
void WalkWindows(const PoolShape& s, Window window) {
  const uint64_t out_height = s.height / s.kernel, out_width = s.width / s.kernel;
  uint64_t y = 0;
  for (uint64_t p = 0; p < s.planes; ++p) {
    for (uint64_t oh = 0; oh < out_height; ++oh) {
      const uint64_t row = (p * s.height + oh * s.kernel) * s.width * s.block;
      for (uint64_t ow = 0; ow < out_width; ++ow) {
        const uint64_t x = row + ow * s.kernel * s.block;
        for (uint64_t b = 0; b < s.block; b += kLanes, y += kLanes) window(x + b, y);
      }
    }
  }
}

template <int kLanes, int kKernel>
void MaxPoolLanes(const PoolShape& s, const float* x, bool relu_gradient, float* y,
                  uint8_t* argmax) {
  WalkWindows<kLanes>(s, [&](uint64_t in, uint64_t out) {
    MaxPoolWindow<kLanes, kKernel>(s, x + in, relu_gradient, y + out, argmax + out);
  });
}

template <int kLanes, int kKernel>
void MaxPoolGradientLanes(const PoolShape& s, const float* dy, const uint8_t* argmax, float* dx) {
  WalkWindows<kLanes>(s, [&](uint64_t in, uint64_t out) {
    MaxPoolGradientWindow<kLanes, kKernel>(s, dy + out, argmax + out, dx + in);
  });
}

}  // namespace

void MaxPool(const PoolShape& s, const float* x, bool relu_gradient, float* y, uint8_t* argmax) {
  if (s.block % 8 == 0 && s.kernel == 2) return MaxPoolLanes<8, 2>(s, x, relu_gradient, y, argmax);
  if (s.block % 8 == 0) return MaxPoolLanes<8, 0>(s, x, relu_gradient, y, argmax);
  if (s.kernel == 2) return MaxPoolLanes<1, 2>(s, x, relu_gradient, y, argmax);
  MaxPoolLanes<1, 0>(s, x, relu_gradient, y, argmax);
}

void MaxPoolGradient(const PoolShape& s, const float* dy, const uint8_t* argmax, float* dx) {
  if (s.width % s.kernel != 0 || s.height % s.kernel != 0) {
    std::fill_n(dx, s.planes * s.height * s.width * s.block, 0.0f);  // the part cut off
  }
  if (s.block % 8 == 0 && s.kernel == 2) return MaxPoolGradientLanes<8, 2>(s, dy, argmax, dx);
  if (s.block % 8 == 0) return MaxPoolGradientLanes<8, 0>(s, dy, argmax, dx);
  if (s.kernel == 2) return MaxPoolGradientLanes<1, 2>(s, dy, argmax, dx);
  MaxPoolGradientLanes<1, 0>(s, dy, argmax, dx);
}

void LogSoftmax(const float* x, uint64_t rows, uint64_t n, float* y) {
  for (uint64_t r = 0; r < rows; ++r, x += n, y += n) {
    const float largest = *std::max_element(x, x + n);  // keeps exp from overflowing
    float sum = 0;
    for (uint64_t j = 0; j < n; ++j) sum += std::exp(x[j] - largest);
    const float shift = largest + std::log(sum);
    for (uint64_t j = 0; j < n; ++j) y[j] = x[j] - shift;
  }
}

namespace {

// to += factor * from
void AddRow(const float* from, float factor, uint32_t n, float* to) {
  if (factor == 1) {
    for (uint32_t i = 0; i < n; ++i) to[i] += from[i];
  } else {
    for (uint32_t i = 0; i < n; ++i) to[i] += factor * from[i];
  }
}

float FactorOf(const Lookup& l, uint64_t place) {
  return l.factors == nullptr ? 1 : l.factors[place];
}

}  // namespace

void GatherRows(const Lookup& l, const float* values, float* x) {
  for (uint64_t place = 0; place < l.samples * l.fields; ++place) {
    const uint32_t row = l.index[place];
    const float* value = values + uint64_t{row} * l.dim;  // not looked at if there is none
    const float factor = FactorOf(l, place);
    if (l.sum) {
      float* to = x + place / l.fields * l.dim;
      if (place % l.fields == 0) std::fill_n(to, l.dim, 0.0f);
      if (row != Lookup::kNone) AddRow(value, factor, l.dim, to);
      continue;
    }
    float* to = x + place * l.dim;
    if (row == Lookup::kNone) {
      std::fill_n(to, l.dim, 0.0f);
    } else if (factor == 1) {
      std::copy_n(value, l.dim, to);
    } else {
      for (uint32_t i = 0; i < l.dim; ++i) to[i] = factor * value[i];
    }
  }
}

void ScatterRows(const Lookup& l, const float* dx, float* gradients) {
  std::fill_n(gradients, l.keys * l.dim, 0.0f);
  for (uint64_t place = 0; place < l.samples * l.fields; ++place) {
    const uint32_t row = l.index[place];
    if (row == Lookup::kNone) continue;
    const uint64_t from = l.sum ? place / l.fields : place;
    AddRow(dx + from * l.dim, FactorOf(l, place), l.dim, gradients + uint64_t{row} * l.dim);
  }
}

}  // namespace parley
