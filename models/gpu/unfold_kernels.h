// Kernels around the products that convolutions are: unfolding the input ("im2col"), folding its
// gradient back, and bringing weights into the order of the unfolded rows. Internal to models/gpu.
//
// A row of the unfolded input belongs to one place of the output and has kernel * kernel * channels
// values, [kh, kw, c]; zeros lie around the input. See Chellapilla, Puri, Simard: "High performance
// convolutional neural networks for document processing", IWFHR 2006.
#ifndef PARLEY_MODELS_GPU_UNFOLD_KERNELS_H_
#define PARLEY_MODELS_GPU_UNFOLD_KERNELS_H_

#include <cstdint>

#include "models/gpu/index_math.h"
#include "models/gpu/layer_kernels.h"
#include "ps/gpu/kernel.h"

namespace parley {

struct ConvShape {
  Divider channels, kernel, width, height, out_width, out_height;
  uint32_t padding;
};

// Value: float or bfloat16 (uint16_t).
template <typename Value>
struct UnfoldKernel : ElementKernel {
  const float* x;  // [rows, height, width, channels]
  Value* columns;  // [rows, out_height, out_width, kernel, kernel, channels]
  ConvShape s;
  uint32_t n;  // of columns
  PARLEY_GPU void Run(int, const ThreadPlace& at, Shared&) const {
    for (uint64_t i = at.first(); i < n; i += at.stride()) {
      uint32_t rest = static_cast<uint32_t>(i);
      const uint32_t c = s.channels.Split(&rest);
      const uint32_t kw = s.kernel.Split(&rest), kh = s.kernel.Split(&rest);
      const uint32_t ow = s.out_width.Split(&rest), oh = s.out_height.Split(&rest);
      // Below zero wraps around, far beyond any side.
      const uint32_t h = oh + kh - s.padding, w = ow + kw - s.padding;
      float value = 0;
      if (h < s.height.divisor() && w < s.width.divisor()) {
        value =
            x[((rest * s.height.divisor() + h) * s.width.divisor() + w) * s.channels.divisor() + c];
      }
      StoreAs(value, columns + i);
    }
  }
};

// Each element of dx adds up the places it was unfolded to, in the order of kh, kw.
struct FoldKernel : ElementKernel {
  const float* columns;
  float* dx;
  ConvShape s;
  uint32_t n;  // of dx
  PARLEY_GPU void Run(int, const ThreadPlace& at, Shared&) const {
    for (uint64_t i = at.first(); i < n; i += at.stride()) {
      uint32_t rest = static_cast<uint32_t>(i);
      const uint32_t c = s.channels.Split(&rest);
      const uint32_t w = s.width.Split(&rest), h = s.height.Split(&rest);
      const uint32_t kernel = s.kernel.divisor();
      float sum = 0;
      for (uint32_t kh = 0; kh < kernel; ++kh) {
        const uint32_t oh = h + s.padding - kh;
        if (oh >= s.out_height.divisor()) continue;
        for (uint32_t kw = 0; kw < kernel; ++kw) {
          const uint32_t ow = w + s.padding - kw;
          if (ow >= s.out_width.divisor()) continue;
          const uint32_t place = (rest * s.out_height.divisor() + oh) * s.out_width.divisor() + ow;
          sum +=
              columns[((uint64_t{place} * kernel + kh) * kernel + kw) * s.channels.divisor() + c];
        }
      }
      dx[i] = sum;
    }
  }
};

// [out, channels, kernel * kernel] -> [out, kernel * kernel, channels].
template <typename Value>
struct WeightsToRowsKernel : ElementKernel {
  const float* weights;
  Value* rows;
  Divider channels, taps;
  uint32_t n;
  PARLEY_GPU void Run(int, const ThreadPlace& at, Shared&) const {
    for (uint64_t i = at.first(); i < n; i += at.stride()) {
      uint32_t out = static_cast<uint32_t>(i);
      const uint32_t c = channels.Split(&out), tap = taps.Split(&out);
      StoreAs(weights[(out * channels.divisor() + c) * taps.divisor() + tap], rows + i);
    }
  }
};

// The way back, for the weights' gradient.
struct RowsToWeightsKernel : ElementKernel {
  const float* rows;
  float* weights;
  Divider channels, taps;
  uint32_t n;
  PARLEY_GPU void Run(int, const ThreadPlace& at, Shared&) const {
    for (uint64_t i = at.first(); i < n; i += at.stride()) {
      uint32_t out = static_cast<uint32_t>(i);
      const uint32_t tap = taps.Split(&out), c = channels.Split(&out);
      weights[i] = rows[(out * taps.divisor() + tap) * channels.divisor() + c];
    }
  }
};

}  // namespace parley

PARLEY_DECLARE_GPU_KERNEL(parley::UnfoldKernel<float>);
PARLEY_DECLARE_GPU_KERNEL(parley::UnfoldKernel<uint16_t>);
PARLEY_DECLARE_GPU_KERNEL(parley::FoldKernel);
PARLEY_DECLARE_GPU_KERNEL(parley::WeightsToRowsKernel<float>);
PARLEY_DECLARE_GPU_KERNEL(parley::WeightsToRowsKernel<uint16_t>);
PARLEY_DECLARE_GPU_KERNEL(parley::RowsToWeightsKernel);

#endif  // PARLEY_MODELS_GPU_UNFOLD_KERNELS_H_
