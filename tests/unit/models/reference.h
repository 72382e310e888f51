// The loss of a model in float64, written as plainly as the definitions: what gradients are checked
// against by central differences.
#ifndef PARLEY_TESTS_UNIT_MODELS_REFERENCE_H_
#define PARLEY_TESTS_UNIT_MODELS_REFERENCE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "models/layers/dropout.h"
#include "models/model.h"
#include "ps/base/philox.h"

namespace parley {

struct ReferenceModel {
  pb::Model config;
  SampleShape input;
  uint64_t seed;

  // Sum of the NLL of `rows` samples x [rows, input]; parameters in the model's order.
  double Loss(const std::vector<double>& parameters, const std::vector<float>& x,
              const std::vector<int32_t>& labels, const StepContext& step) const {
    double loss = 0;
    for (size_t r = 0; r < labels.size(); ++r) {
      const auto begin = x.begin() + static_cast<int64_t>(r * input.size());
      std::vector<double> v(begin, begin + static_cast<int64_t>(input.size()));
      loss -= Sample(parameters, std::move(v), step, step.first_row + r)[labels[r]];
    }
    return loss;
  }

 private:
  using Vector = std::vector<double>;

  Vector Sample(const Vector& parameters, Vector v, const StepContext& step, uint64_t row) const {
    SampleShape s = input;
    const double* p = parameters.data();
    for (int i = 0; i < config.layer_size(); ++i) {
      const pb::Layer& layer = config.layer(i);
      if (layer.has_linear()) {
        v = Linear(v, layer.linear().out(), &p);
        s = {layer.linear().out(), 1, 1};
      } else if (layer.has_conv2d()) {
        v = Conv(v, &s, layer.conv2d(), &p);
      } else if (layer.has_max_pool2d()) {
        v = Pool(v, &s, layer.max_pool2d().kernel());
      } else if (layer.has_flatten()) {
        s = {static_cast<uint32_t>(s.size()), 1, 1};
      } else if (layer.has_relu()) {
        for (double& e : v) e = std::max(e, 0.0);
      } else if (layer.has_dropout()) {
        const float rate = layer.dropout().p();
        const uint64_t stream = DropoutLayer::StreamOf(static_cast<uint32_t>(i), step.tick);
        for (size_t j = 0; j < v.size(); ++j) {
          const bool kept = UniformAt(seed, stream, row * v.size() + j) >= rate;
          v[j] = kept ? v[j] / (1 - static_cast<double>(rate)) : 0;
        }
      } else if (layer.has_log_softmax()) {
        double sum = 0;
        for (const double e : v) sum += std::exp(e);
        for (double& e : v) e -= std::log(sum);
      }
    }
    return v;
  }

  static Vector Linear(const Vector& v, uint32_t out, const double** p) {
    Vector y((*p) + out * v.size(), (*p) + out * v.size() + out);
    for (uint32_t o = 0; o < out; ++o) {
      for (size_t i = 0; i < v.size(); ++i) y[o] += (*p)[o * v.size() + i] * v[i];
    }
    *p += out * (v.size() + 1);
    return y;
  }

  static Vector Conv(const Vector& v, SampleShape* s, const pb::Conv2d& c, const double** p) {
    const int64_t k = c.kernel(), pad = c.padding(), channels = s->channels;
    const int64_t h = s->height, w = s->width, out = c.out_channels();
    const int64_t oh = h + 2 * pad - k + 1, ow = w + 2 * pad - k + 1;
    const double* bias = *p + out * channels * k * k;
    Vector y;
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t i = 0; i < oh * ow; ++i) {
        double sum = bias[o];
        for (int64_t j = 0; j < channels * k * k; ++j) {
          const int64_t r = i / ow + j / k % k - pad, q = i % ow + j % k - pad;
          if (r < 0 || r >= h || q < 0 || q >= w) continue;
          sum += (*p)[o * channels * k * k + j] * v[(j / (k * k) * h + r) * w + q];
        }
        y.push_back(sum);
      }
    }
    *p = bias + out;
    *s = {c.out_channels(), static_cast<uint32_t>(oh), static_cast<uint32_t>(ow)};
    return y;
  }

  static Vector Pool(const Vector& v, SampleShape* s, uint32_t k) {
    const SampleShape out{s->channels, s->height / k, s->width / k};
    Vector y;
    for (uint32_t c = 0; c < out.channels; ++c) {
      for (uint32_t i = 0; i < out.height * out.width; ++i) {
        double best = -INFINITY;
        for (uint32_t j = 0; j < k * k; ++j) {
          const uint32_t r = i / out.width * k + j / k, q = i % out.width * k + j % k;
          best = std::max(best, v[(c * s->height + r) * s->width + q]);
        }
        y.push_back(best);
      }
    }
    *s = out;
    return y;
  }
};

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_MODELS_REFERENCE_H_
