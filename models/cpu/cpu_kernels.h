// Loops over plain arrays that both backends share. Internal to models/cpu.
//
// Written for the compiler's vectoriser: no branch and no call in an innermost loop.
#ifndef PARLEY_MODELS_CPU_CPU_KERNELS_H_
#define PARLEY_MODELS_CPU_CPU_KERNELS_H_

#include <cstdint>

#include "models/device.h"

namespace parley {

// y [rows, n] += bias [n], then max(0, y) if `relu`.
void AddBias(const float* bias, uint64_t rows, uint64_t n, bool relu, float* y);

// sums [n] = sum over rows of x [rows, n], in row order.
void SumRows(const float* x, uint64_t rows, uint64_t n, float* sums);

void Relu(const float* x, uint64_t n, float* y);
// dx = y > 0 ? dy : 0; dx may be dy.
void ReluGradient(const float* y, const float* dy, uint64_t n, float* dx);

// y = keep ? x * scale : 0; y may be x.
void ApplyMask(const float* x, const uint8_t* keep, float scale, uint64_t n, float* y);

// One plane set of max-pooling: x [planes, height, width, block] -> y [planes, height / kernel,
// width / kernel, block]; argmax has y's shape and holds the place in the window, row-major, or
// kNoGradient. `kernel` is at most kMaxPoolKernel, so that a place fits a byte.
inline constexpr uint32_t kMaxPoolKernel = 15;
inline constexpr uint8_t kNoGradient = 255;
struct PoolShape {
  uint64_t planes = 0, height = 0, width = 0, block = 0, kernel = 0;
};
void MaxPool(const PoolShape& shape, const float* x, bool relu_gradient, float* y, uint8_t* argmax);
void MaxPoolGradient(const PoolShape& shape, const float* dy, const uint8_t* argmax, float* dx);

// y [rows, n] = x - log(sum(exp(x))) by row.
void LogSoftmax(const float* x, uint64_t rows, uint64_t n, float* y);

// values [keys, dim] -> x [samples, fields * dim] or [samples, dim].
void GatherRows(const Lookup& lookup, const float* values, float* x);
// dx, of x's shape -> gradients [keys, dim], overwritten.
void ScatterRows(const Lookup& lookup, const float* dx, float* gradients);

}  // namespace parley

#endif  // PARLEY_MODELS_CPU_CPU_KERNELS_H_
