#include "models/cpu/cpu_kernels.h"

#include <algorithm>
#include <cmath>

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
    const float v = x[i] * scale;
    y[i] = keep[i] != 0 ? v : 0;
  }
}

namespace {

// kBlock 0: the block size is only known at run time.
template <uint64_t kBlock>
void MaxPoolRow(const PoolShape& s, const float* x, bool relu_gradient, float* y, uint8_t* argmax) {
  const uint64_t block = kBlock != 0 ? kBlock : s.block;
  for (uint64_t ow = 0; ow < s.width / s.kernel; ++ow, y += block, argmax += block) {
    const float* window = x + ow * s.kernel * block;
    std::copy_n(window, block, y);
    std::fill_n(argmax, block, uint8_t{0});
    for (uint64_t place = 1; place < s.kernel * s.kernel; ++place) {
      const float* tap = window + (place / s.kernel * s.width + place % s.kernel) * block;
      for (uint64_t b = 0; b < block; ++b) {
        const bool larger = tap[b] > y[b];
        y[b] = larger ? tap[b] : y[b];
        argmax[b] = larger ? static_cast<uint8_t>(place) : argmax[b];
      }
    }
    if (!relu_gradient) continue;
    for (uint64_t b = 0; b < block; ++b) argmax[b] = y[b] > 0 ? argmax[b] : kNoGradient;
  }
}

template <uint64_t kBlock>
void MaxPoolGradientRow(const PoolShape& s, const float* dy, const uint8_t* argmax, float* dx) {
  const uint64_t block = kBlock != 0 ? kBlock : s.block;
  for (uint64_t ow = 0; ow < s.width / s.kernel; ++ow, dy += block, argmax += block) {
    float* window = dx + ow * s.kernel * block;
    for (uint64_t place = 0; place < s.kernel * s.kernel; ++place) {
      float* tap = window + (place / s.kernel * s.width + place % s.kernel) * block;
      for (uint64_t b = 0; b < block; ++b) {
        const float g = dy[b];
        tap[b] = argmax[b] == place ? g : 0;
      }
    }
  }
}

template <uint64_t kBlock>
void MaxPoolBlocked(const PoolShape& s, const float* x, bool relu_gradient, float* y,
                    uint8_t* argmax) {
  const uint64_t out_row = s.width / s.kernel * s.block;
  for (uint64_t p = 0; p < s.planes; ++p, x += s.height * s.width * s.block) {
    for (uint64_t oh = 0; oh < s.height / s.kernel; ++oh, y += out_row, argmax += out_row) {
      MaxPoolRow<kBlock>(s, x + oh * s.kernel * s.width * s.block, relu_gradient, y, argmax);
    }
  }
}

template <uint64_t kBlock>
void MaxPoolGradientBlocked(const PoolShape& s, const float* dy, const uint8_t* argmax, float* dx) {
  const uint64_t out_row = s.width / s.kernel * s.block;
  const bool remainder = s.width % s.kernel != 0 || s.height % s.kernel != 0;
  for (uint64_t p = 0; p < s.planes; ++p, dx += s.height * s.width * s.block) {
    if (remainder) std::fill_n(dx, s.height * s.width * s.block, 0.0f);
    for (uint64_t oh = 0; oh < s.height / s.kernel; ++oh, dy += out_row, argmax += out_row) {
      MaxPoolGradientRow<kBlock>(s, dy, argmax, dx + oh * s.kernel * s.width * s.block);
    }
  }
}

}  // namespace

void MaxPool(const PoolShape& s, const float* x, bool relu_gradient, float* y, uint8_t* argmax) {
  switch (s.block) {
    case 1:
      return MaxPoolBlocked<1>(s, x, relu_gradient, y, argmax);
    case 8:
      return MaxPoolBlocked<8>(s, x, relu_gradient, y, argmax);
    case 16:
      return MaxPoolBlocked<16>(s, x, relu_gradient, y, argmax);
    default:
      return MaxPoolBlocked<0>(s, x, relu_gradient, y, argmax);
  }
}

void MaxPoolGradient(const PoolShape& s, const float* dy, const uint8_t* argmax, float* dx) {
  switch (s.block) {
    case 1:
      return MaxPoolGradientBlocked<1>(s, dy, argmax, dx);
    case 8:
      return MaxPoolGradientBlocked<8>(s, dy, argmax, dx);
    case 16:
      return MaxPoolGradientBlocked<16>(s, dy, argmax, dx);
    default:
      return MaxPoolGradientBlocked<0>(s, dy, argmax, dx);
  }
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

}  // namespace parley
