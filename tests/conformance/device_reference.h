// The operations of a Device in float64, written as plainly as their definitions; all in plain
// order. What a Device makes of them is checked against this.
#ifndef PARLEY_TESTS_CONFORMANCE_DEVICE_REFERENCE_H_
#define PARLEY_TESTS_CONFORMANCE_DEVICE_REFERENCE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "models/device.h"

namespace parley::reference {

using Doubles = std::vector<double>;

inline Doubles ToDoubles(const std::vector<float>& x) { return {x.begin(), x.end()}; }

// y [rows, out] = x [rows, in] W^T [out, in] + b
inline Doubles Linear(const Doubles& x, uint64_t rows, const Doubles& weight, const Doubles& bias) {
  const size_t in = x.size() / rows, out = bias.size();
  Doubles y(rows * out);
  for (size_t r = 0; r < rows; ++r) {
    for (size_t o = 0; o < out; ++o) {
      double sum = bias[o];
      for (size_t i = 0; i < in; ++i) sum += x[r * in + i] * weight[o * in + i];
      y[r * out + o] = sum;
    }
  }
  return y;
}

struct Gradients {
  Doubles x, weight, bias;
};

inline Gradients LinearBackward(const Doubles& x, const Doubles& dy, uint64_t rows,
                                const Doubles& weight) {
  const size_t in = x.size() / rows, out = dy.size() / rows;
  Gradients g{Doubles(x.size()), Doubles(weight.size()), Doubles(out)};
  for (size_t r = 0; r < rows; ++r) {
    for (size_t o = 0; o < out; ++o) {
      const double d = dy[r * out + o];
      g.bias[o] += d;
      for (size_t i = 0; i < in; ++i) {
        g.x[r * in + i] += d * weight[o * in + i];
        g.weight[o * in + i] += d * x[r * in + i];
      }
    }
  }
  return g;
}

inline SampleShape ConvOutput(SampleShape in, Conv2dGeometry g, uint32_t out) {
  const uint32_t grow = 2 * g.padding + 1;
  return {out, in.height + grow - g.kernel, in.width + grow - g.kernel};
}

// Calls visit(index of x, index of W, index of y) for every product of a convolution.
template <typename Visit>
void ForEachProduct(SampleShape in, uint64_t rows, Conv2dGeometry g, uint32_t channels_out,
                    Visit visit) {
  const SampleShape out = ConvOutput(in, g, channels_out);
  for (size_t r = 0; r < rows; ++r) {
    for (size_t o = 0; o < out.channels; ++o) {
      for (int64_t oh = 0; oh < out.height; ++oh) {
        for (int64_t ow = 0; ow < out.width; ++ow) {
          const size_t y = ((r * out.channels + o) * out.height + oh) * out.width + ow;
          for (size_t c = 0; c < in.channels; ++c) {
            for (int64_t kh = 0; kh < g.kernel; ++kh) {
              for (int64_t kw = 0; kw < g.kernel; ++kw) {
                const int64_t h = oh + kh - g.padding, w = ow + kw - g.padding;
                if (h < 0 || h >= in.height || w < 0 || w >= in.width) continue;
                const size_t x = ((r * in.channels + c) * in.height + h) * in.width + w;
                visit(x, ((o * in.channels + c) * g.kernel + kh) * g.kernel + kw, y);
              }
            }
          }
        }
      }
    }
  }
}

inline Doubles Conv(const Doubles& x, SampleShape in, uint64_t rows, Conv2dGeometry g,
                    const Doubles& weight, const Doubles& bias) {
  const SampleShape out = ConvOutput(in, g, static_cast<uint32_t>(bias.size()));
  const size_t places = size_t{out.height} * out.width;
  Doubles y(rows * out.size());
  for (size_t i = 0; i < y.size(); ++i) y[i] = bias[i / places % bias.size()];
  ForEachProduct(in, rows, g, out.channels,
                 [&](size_t xi, size_t wi, size_t yi) { y[yi] += x[xi] * weight[wi]; });
  return y;
}

inline Gradients ConvBackward(const Doubles& x, SampleShape in, const Doubles& dy, uint64_t rows,
                              Conv2dGeometry g, uint32_t channels_out, const Doubles& weight) {
  const SampleShape out = ConvOutput(in, g, channels_out);
  const size_t places = size_t{out.height} * out.width;
  Gradients to{Doubles(x.size()), Doubles(weight.size()), Doubles(channels_out)};
  for (size_t i = 0; i < dy.size(); ++i) to.bias[i / places % channels_out] += dy[i];
  ForEachProduct(in, rows, g, channels_out, [&](size_t xi, size_t wi, size_t yi) {
    to.x[xi] += dy[yi] * weight[wi];
    to.weight[wi] += dy[yi] * x[xi];
  });
  return to;
}

// The index in x of each window's first maximum. `margin`: the least by which one was ahead.
inline std::vector<size_t> MaxPlaces(const Doubles& x, SampleShape in, uint64_t rows,
                                     uint32_t kernel, double* margin = nullptr) {
  std::vector<size_t> places;
  const uint32_t oh = in.height / kernel, ow = in.width / kernel;
  for (size_t plane = 0; plane < rows * in.channels; ++plane) {
    for (size_t i = 0; i < size_t{oh} * ow; ++i) {
      size_t best = 0;
      double largest = -INFINITY, second = -INFINITY;
      for (size_t j = 0; j < size_t{kernel} * kernel; ++j) {
        const size_t h = i / ow * kernel + j / kernel, w = i % ow * kernel + j % kernel;
        const size_t at = (plane * in.height + h) * in.width + w;
        if (x[at] > largest) {
          second = largest, largest = x[at], best = at;
        } else if (x[at] > second) {
          second = x[at];
        }
      }
      places.push_back(best);
      // Equal ones are what a ReLU made zero: whoever wins has no gradient.
      if (margin != nullptr && largest != second) *margin = std::min(*margin, largest - second);
    }
  }
  return places;
}

inline Doubles LogSoftmax(const Doubles& x, uint64_t rows) {
  const size_t n = x.size() / rows;
  Doubles y(x.size());
  for (size_t r = 0; r < rows; ++r) {
    double largest = -INFINITY, sum = 0;
    for (size_t j = 0; j < n; ++j) largest = std::max(largest, x[r * n + j]);
    for (size_t j = 0; j < n; ++j) sum += std::exp(x[r * n + j] - largest);
    for (size_t j = 0; j < n; ++j) y[r * n + j] = x[r * n + j] - largest - std::log(sum);
  }
  return y;
}

inline Doubles NllLogSoftmaxBackward(const Doubles& y, uint64_t rows,
                                     const std::vector<int32_t>& labels) {
  const size_t n = y.size() / rows;
  Doubles dx(y.size());
  for (size_t i = 0; i < y.size(); ++i) {
    dx[i] = std::exp(y[i]) - (static_cast<int32_t>(i % n) == labels[i / n] ? 1 : 0);
  }
  return dx;
}

// A Lookup with its memory.
struct OwnLookup {
  Lookup view;
  std::vector<uint32_t> index, starts, places;
  std::vector<float> factors;

  OwnLookup(std::vector<uint32_t> index_of, uint64_t keys, uint32_t fields, uint32_t dim, bool sum,
            std::vector<float> factors_of = {})
      : index(std::move(index_of)), factors(std::move(factors_of)) {
    starts.push_back(0);
    for (uint32_t k = 0; k < keys; ++k) {
      for (uint32_t p = 0; p < index.size(); ++p) {
        if (index[p] == k) places.push_back(p);
      }
      starts.push_back(static_cast<uint32_t>(places.size()));
    }
    view = {.samples = index.size() / fields,
            .keys = keys,
            .fields = fields,
            .dim = dim,
            .sum = sum,
            .index = index.data(),
            .factors = nullptr,
            .starts = starts.data(),
            .places = places.data()};
    if (!factors.empty()) view.factors = factors.data();
  }
  OwnLookup(const OwnLookup&) = delete;

  double factor(size_t place) const { return factors.empty() ? 1 : factors[place]; }
  size_t to(size_t place) const { return view.sum ? place / view.fields : place; }  // row of x
  size_t x_size() const { return view.samples * (view.sum ? 1 : view.fields) * size_t{view.dim}; }
  Doubles Forward(const Doubles& values) const {
    Doubles x(x_size());
    for (size_t p = 0; p < index.size(); ++p) {
      for (size_t d = 0; d < view.dim && index[p] != Lookup::kNone; ++d) {
        x[to(p) * view.dim + d] += factor(p) * values[size_t{index[p]} * view.dim + d];
      }
    }
    return x;
  }
  Doubles Backward(const Doubles& dx) const {
    Doubles gradients(view.keys * view.dim);
    for (size_t p = 0; p < index.size(); ++p) {
      for (size_t d = 0; d < view.dim && index[p] != Lookup::kNone; ++d) {
        gradients[size_t{index[p]} * view.dim + d] += factor(p) * dx[to(p) * view.dim + d];
      }
    }
    return gradients;
  }
};

}  // namespace parley::reference

#endif  // PARLEY_TESTS_CONFORMANCE_DEVICE_REFERENCE_H_
