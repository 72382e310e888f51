// Kernels of the GPU device: activations, dropout, pooling, bias, loss. Convolutions are in
// unfold_kernels.h. Internal to models/gpu.
//
// Arrays are float32 in device memory; a tensor has fewer than 2^32 elements. "Plain" is
// [rows, channels, height, width], "last" is [rows, height, width, channels].
#ifndef PARLEY_MODELS_GPU_LAYER_KERNELS_H_
#define PARLEY_MODELS_GPU_LAYER_KERNELS_H_

#include <cmath>
#include <cstdint>

#include "models/gpu/index_math.h"
#include "ps/base/philox.h"
#include "ps/gpu/kernel.h"

namespace parley {

// Launched over n elements by BlocksFor.
struct ElementKernel {
  static constexpr uint32_t kThreads = 256;
  static constexpr int kPhases = 1;
  using Shared = NoShared;
};

// y += bias, by columns, then max(0, y) if `relu`.
struct AddBiasKernel : ElementKernel {
  float* y;           // [n]: rows of columns.divisor() elements
  const float* bias;  // [columns]
  Divider columns;
  bool relu;
  uint32_t n;
  PARLEY_GPU void Run(int, const ThreadPlace& at, Shared&) const {
    for (uint64_t i = at.first(); i < n; i += at.stride()) {
      uint32_t row = static_cast<uint32_t>(i);
      const float v = y[i] + bias[columns.Split(&row)];
      y[i] = relu && !(v > 0) ? 0 : v;
    }
  }
};

struct ReluKernel : ElementKernel {
  const float* x;
  float* y;
  uint32_t n;
  PARLEY_GPU void Run(int, const ThreadPlace& at, Shared&) const {
    for (uint64_t i = at.first(); i < n; i += at.stride()) y[i] = x[i] > 0 ? x[i] : 0;
  }
};

struct ReluGradientKernel : ElementKernel {
  const float* y;
  const float* dy;
  float* dx;  // may be dy
  uint32_t n;
  PARLEY_GPU void Run(int, const ThreadPlace& at, Shared&) const {
    for (uint64_t i = at.first(); i < n; i += at.stride()) dx[i] = y[i] > 0 ? dy[i] : 0;
  }
};

// Where an element of a tensor lies, given its place in plain order.
struct ElementOrder {
  Divider spatial;   // height * width
  Divider channels;  // channels.divisor() == 1: both orders are the same
  PARLEY_GPU uint32_t FromPlain(uint32_t i) const {
    if (channels.divisor() == 1) return i;
    const uint32_t s = spatial.Split(&i);
    const uint32_t c = channels.Split(&i);
    return (i * spatial.divisor() + s) * channels.divisor() + c;
  }
};

// y = x in plain order.
struct ToPlainKernel : ElementKernel {
  const float* x;  // last
  float* y;        // plain
  ElementOrder order;
  uint32_t n;
  PARLEY_GPU void Run(int, const ThreadPlace& at, Shared&) const {
    for (uint64_t i = at.first(); i < n; i += at.stride()) {
      y[i] = x[order.FromPlain(static_cast<uint32_t>(i))];
    }
  }
};

struct ToLastKernel : ElementKernel {
  const float* x;  // plain
  float* y;        // last
  ElementOrder order;
  uint32_t n;
  PARLEY_GPU void Run(int, const ThreadPlace& at, Shared&) const {
    for (uint64_t i = at.first(); i < n; i += at.stride()) {
      y[order.FromPlain(static_cast<uint32_t>(i))] = x[i];
    }
  }
};

// The keep mask and y = x / (1 - p) where kept. A thread makes the four values of one Philox block,
// so the walk is over blocks from first / 4 on.
struct DropoutKernel : ElementKernel {
  const float* x;
  ElementOrder order;  // of x; y and keep are plain
  float* y;
  uint8_t* keep;
  uint64_t seed, stream, first;  // the pattern's index of element 0
  float p, scale;
  uint32_t n;

  static uint64_t Groups(uint64_t first, uint64_t n) { return (first % 4 + n + 3) / 4; }
  PARLEY_GPU void Run(int, const ThreadPlace& at, Shared&) const {
    const uint64_t groups = (first % 4 + n + 3) / 4;
    for (uint64_t g = at.first(); g < groups; g += at.stride()) {
      const auto bits = Philox(seed, stream, first / 4 + g);
      for (uint32_t j = 0; j < 4; ++j) {
        const uint64_t index = (first / 4 + g) * 4 + j;
        if (index < first || index - first >= n) continue;
        const uint32_t i = static_cast<uint32_t>(index - first);
        const uint8_t kept = ToUnitFloat(bits[j]) >= p ? 1 : 0;
        keep[i] = kept;
        y[i] = x[order.FromPlain(i)] * (scale * static_cast<float>(kept));
      }
    }
  }
};

struct DropoutGradientKernel : ElementKernel {
  const float* dy;
  const uint8_t* keep;
  float* dx;
  float scale;
  uint32_t n;
  PARLEY_GPU void Run(int, const ThreadPlace& at, Shared&) const {
    for (uint64_t i = at.first(); i < n; i += at.stride()) {
      dx[i] = dy[i] * (scale * static_cast<float>(keep[i]));
    }
  }
};

// Windows of kernel x kernel over x in last order.
struct PoolShape2d {
  Divider channels, width, out_width, out_height;
  uint32_t height, kernel;
  Divider by_height, by_kernel;
};
inline constexpr uint8_t kNoPlace = 255;  // a window without a gradient

struct MaxPoolKernel : ElementKernel {
  const float* x;
  float* y;
  uint8_t* place;  // of the maximum in its window
  PoolShape2d s;
  bool relu_gradient;
  uint32_t n;  // elements of y
  PARLEY_GPU void Run(int, const ThreadPlace& at, Shared&) const {
    for (uint64_t i = at.first(); i < n; i += at.stride()) {
      uint32_t rest = static_cast<uint32_t>(i);
      const uint32_t c = s.channels.Split(&rest);
      const uint32_t ow = s.out_width.Split(&rest);
      const uint32_t oh = s.out_height.Split(&rest);
      const uint32_t width = s.width.divisor(), channels = s.channels.divisor();
      const float* window =
          x + ((rest * s.height + oh * s.kernel) * width + ow * s.kernel) * channels + c;
      float best = window[0];
      uint32_t where = 0;
      for (uint32_t kh = 0; kh < s.kernel; ++kh) {
        for (uint32_t kw = 0; kw < s.kernel; ++kw) {
          const float v = window[(kh * width + kw) * channels];
          if (v > best) {
            best = v;
            where = kh * s.kernel + kw;
          }
        }
      }
      y[i] = best;
      place[i] = relu_gradient && !(best > 0) ? kNoPlace : static_cast<uint8_t>(where);
    }
  }
};

// Each element of x asks its window.
struct MaxPoolGradientKernel : ElementKernel {
  const float* dy;
  const uint8_t* place;
  float* dx;
  PoolShape2d s;
  uint32_t n;  // elements of x
  PARLEY_GPU void Run(int, const ThreadPlace& at, Shared&) const {
    for (uint64_t i = at.first(); i < n; i += at.stride()) {
      uint32_t rest = static_cast<uint32_t>(i);
      const uint32_t c = s.channels.Split(&rest);
      uint32_t ow = s.width.Split(&rest);
      uint32_t oh = s.by_height.Split(&rest);
      const uint32_t kw = s.by_kernel.Split(&ow), kh = s.by_kernel.Split(&oh);
      float gradient = 0;
      if (oh < s.out_height.divisor() && ow < s.out_width.divisor()) {  // else it was cut off
        const uint32_t at_y = ((rest * s.out_height.divisor() + oh) * s.out_width.divisor() + ow) *
                                  s.channels.divisor() +
                              c;
        if (place[at_y] == kh * s.kernel + kw) gradient = dy[at_y];
      }
      dx[i] = gradient;
    }
  }
};

// Rows are dealt out to groups of 32 neighbouring threads.
struct RowKernel {
  static constexpr uint32_t kThreads = 256, kLanes = 32, kRows = kThreads / kLanes;
  static uint32_t Blocks(uint64_t rows) {
    return static_cast<uint32_t>((rows + kRows - 1) / kRows);
  }
};

struct LogSoftmaxKernel : RowKernel {
  static constexpr int kPhases = 3;
  struct Shared {
    float largest[kThreads], sum[kThreads];
  };
  const float* x;
  float* y;
  uint32_t rows, n;
  PARLEY_GPU void Run(int phase, const ThreadPlace& at, Shared& shared) const {
    const uint32_t lane = at.thread % kLanes, group = at.thread - lane;
    const uint64_t row = uint64_t{at.block} * kRows + at.thread / kLanes;
    if (row >= rows) return;
    const float* in = x + row * n;
    if (phase == 0) {
      float largest = -INFINITY;
      for (uint32_t j = lane; j < n; j += kLanes) largest = in[j] > largest ? in[j] : largest;
      shared.largest[at.thread] = largest;
      return;
    }
    float largest = shared.largest[group];
    for (uint32_t l = 1; l < kLanes; ++l) {
      const float other = shared.largest[group + l];
      largest = other > largest ? other : largest;
    }
    if (phase == 1) {
      float sum = 0;
      for (uint32_t j = lane; j < n; j += kLanes) sum += expf(in[j] - largest);
      shared.sum[at.thread] = sum;
      return;
    }
    float sum = 0;
    for (uint32_t l = 0; l < kLanes; ++l) sum += shared.sum[group + l];
    // Not largest + shift first, which would round to the precision of scores far from zero.
    const float shift = logf(sum);
    for (uint32_t j = lane; j < n; j += kLanes) y[row * n + j] = in[j] - largest - shift;
  }
};

// Of each row: -y [label], and whether the first largest is the label's.
struct NllRowsKernel : RowKernel {
  static constexpr int kPhases = 2;
  struct Shared {
    float largest[kThreads];
    uint32_t where[kThreads];
  };
  const float* y;
  const int32_t* labels;
  float* loss;       // [rows]
  uint8_t* correct;  // [rows]
  uint32_t rows, n;
  PARLEY_GPU void Run(int phase, const ThreadPlace& at, Shared& shared) const {
    const uint32_t lane = at.thread % kLanes;
    const uint64_t row = uint64_t{at.block} * kRows + at.thread / kLanes;
    if (row >= rows) return;
    const float* in = y + row * n;
    if (phase == 0) {
      float largest = -INFINITY;
      uint32_t where = n;
      for (uint32_t j = lane; j < n; j += kLanes) {
        if (where == n || in[j] > largest) {
          largest = in[j];
          where = j;
        }
      }
      shared.largest[at.thread] = largest;
      shared.where[at.thread] = where;
      return;
    }
    if (lane != 0) return;
    float largest = shared.largest[at.thread];
    uint32_t where = shared.where[at.thread];
    for (uint32_t l = 1; l < kLanes; ++l) {
      const float other = shared.largest[at.thread + l];
      const uint32_t there = shared.where[at.thread + l];
      if (there < n && (other > largest || (other == largest && there < where))) {
        largest = other;
        where = there;
      }
    }
    const uint32_t label = static_cast<uint32_t>(labels[row]);
    loss[row] = -in[label];
    correct[row] = where == label ? 1 : 0;
  }
};

struct NllSums {
  double loss;
  uint64_t correct;
};

// One block adds up what all rows have, each thread its rows in order, then the threads in order.
struct NllSumKernel {
  static constexpr uint32_t kThreads = 256;
  static constexpr int kPhases = 2;
  struct Shared {
    double loss[kThreads];
    uint64_t correct[kThreads];
  };
  const float* loss;
  const uint8_t* correct;
  NllSums* sums;
  uint32_t rows;
  PARLEY_GPU void Run(int phase, const ThreadPlace& at, Shared& shared) const {
    if (phase == 0) {
      double sum = 0;
      uint64_t count = 0;
      for (uint32_t r = at.thread; r < rows; r += kThreads) {
        sum += loss[r];
        count += correct[r];
      }
      shared.loss[at.thread] = sum;
      shared.correct[at.thread] = count;
      return;
    }
    if (at.thread != 0) return;
    NllSums all{0, 0};
    for (uint32_t t = 0; t < kThreads; ++t) {
      all.loss += shared.loss[t];
      all.correct += shared.correct[t];
    }
    *sums = all;
  }
};

struct NllGradientKernel : ElementKernel {
  const float* y;
  const int32_t* labels;
  float* dx;
  Divider classes;
  uint32_t n;
  PARLEY_GPU void Run(int, const ThreadPlace& at, Shared&) const {
    for (uint64_t i = at.first(); i < n; i += at.stride()) {
      uint32_t row = static_cast<uint32_t>(i);
      const uint32_t c = classes.Split(&row);
      const float probability = expf(y[i]);
      dx[i] = c == static_cast<uint32_t>(labels[row]) ? probability - 1 : probability;
    }
  }
};

// Sums over rows in two steps, both in a fixed order: blocks take chunks of rows, 32 columns each,
// and leave partial [chunks, n]; a second launch over these gives the sums.
struct SumRowsKernel {
  static constexpr uint32_t kThreads = 256, kColumns = 32, kLanes = kThreads / kColumns;
  static constexpr int kPhases = 2;
  struct Shared {
    float sum[kThreads];
  };
  const float* x;  // [rows, n]
  float* sums;     // [chunks, n]
  uint32_t rows, n, rows_of_chunk;
  Divider column_groups;

  PARLEY_GPU void Run(int phase, const ThreadPlace& at, Shared& shared) const {
    uint32_t chunk = at.block;
    const uint32_t column = column_groups.Split(&chunk) * kColumns + at.thread % kColumns;
    if (column >= n) return;
    if (phase == 0) {
      const uint64_t begin = uint64_t{chunk} * rows_of_chunk;
      const uint64_t end = begin + rows_of_chunk < rows ? begin + rows_of_chunk : rows;
      float sum = 0;
      for (uint64_t r = begin + at.thread / kColumns; r < end; r += kLanes)
        sum += x[r * n + column];
      shared.sum[at.thread] = sum;
      return;
    }
    if (at.thread >= kColumns) return;
    float sum = 0;
    for (uint32_t l = 0; l < kLanes; ++l) sum += shared.sum[at.thread + l * kColumns];
    sums[uint64_t{chunk} * n + column] = sum;
  }
};

struct ToBf16Kernel : ElementKernel {
  const float* x;
  uint16_t* y;
  uint64_t n;
  PARLEY_GPU void Run(int, const ThreadPlace& at, Shared&) const {
    for (uint64_t i = at.first(); i < n; i += at.stride()) y[i] = ToBf16(x[i]);
  }
};

}  // namespace parley

PARLEY_DECLARE_GPU_KERNEL(parley::AddBiasKernel);
PARLEY_DECLARE_GPU_KERNEL(parley::ReluKernel);
PARLEY_DECLARE_GPU_KERNEL(parley::ReluGradientKernel);
PARLEY_DECLARE_GPU_KERNEL(parley::ToPlainKernel);
PARLEY_DECLARE_GPU_KERNEL(parley::ToLastKernel);
PARLEY_DECLARE_GPU_KERNEL(parley::DropoutKernel);
PARLEY_DECLARE_GPU_KERNEL(parley::DropoutGradientKernel);
PARLEY_DECLARE_GPU_KERNEL(parley::MaxPoolKernel);
PARLEY_DECLARE_GPU_KERNEL(parley::MaxPoolGradientKernel);
PARLEY_DECLARE_GPU_KERNEL(parley::LogSoftmaxKernel);
PARLEY_DECLARE_GPU_KERNEL(parley::NllRowsKernel);
PARLEY_DECLARE_GPU_KERNEL(parley::NllSumKernel);
PARLEY_DECLARE_GPU_KERNEL(parley::NllGradientKernel);
PARLEY_DECLARE_GPU_KERNEL(parley::SumRowsKernel);
PARLEY_DECLARE_GPU_KERNEL(parley::ToBf16Kernel);

#endif  // PARLEY_MODELS_GPU_LAYER_KERNELS_H_
