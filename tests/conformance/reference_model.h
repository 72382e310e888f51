// Loss and gradients of a model in float64: the operations of device_reference.h in a chain.
//
// A ReLU or a maximum decides, and a value that is rounded may decide otherwise: then the gradient
// goes another way and differs by much more than rounding. So the decisions are taken in a forward
// pass whose factors are rounded as the device's are, and the pass that counts is exact with these
// decisions. What the rounding does to values and gradients is bounded, then.
#ifndef PARLEY_TESTS_CONFORMANCE_REFERENCE_MODEL_H_
#define PARLEY_TESTS_CONFORMANCE_REFERENCE_MODEL_H_

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "models/layers/dropout.h"
#include "models/model.h"
#include "ps/base/philox.h"
#include "ps/gpu/gpu.h"
#include "tests/conformance/device_reference.h"

namespace parley::reference {

// A factor of a product as the math has it: to nearest, by way of the bits of a float.
inline double Rounded(double x, GemmMath math) {
  if (math == GemmMath::kFp32) return x;
  uint32_t bits = std::bit_cast<uint32_t>(static_cast<float>(x));
  if (math == GemmMath::kTf32) {
    bits = (bits + 0x1000) & 0xFFFFE000;
  } else {
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000;
  }
  return std::bit_cast<float>(bits);
}

struct StepResult {
  double loss = 0;
  uint64_t correct = 0;
  std::vector<Doubles> gradients;  // of each tensor
  Doubles dx;
  // The least distance of a ReLU's input from zero, of a maximum from the second.
  double margin = INFINITY;
};

class ReferenceStep {
 public:
  ReferenceStep(const pb::Model& config, SampleShape input, uint64_t seed,
                std::vector<Doubles> tensors)
      : config_(config), input_(input), seed_(seed), tensors_(std::move(tensors)) {}

  StepResult Run(const Doubles& x, const std::vector<int32_t>& labels, const StepContext& context,
                 GemmMath math) const {
    StepResult result;
    std::vector<Layer> layers = Layers();
    const uint64_t rows = labels.size();
    Forward(x, rows, context, math, layers, &result.margin);
    const Doubles y = Forward(x, rows, context, GemmMath::kFp32, layers, nullptr);
    const size_t n = y.size() / rows;
    for (size_t r = 0; r < rows; ++r) {
      const auto row = y.begin() + static_cast<int64_t>(r * n);
      const auto largest = std::max_element(row, row + static_cast<int64_t>(n)) - row;
      result.loss -= row[labels[r]];
      result.correct += largest == labels[r] ? 1 : 0;
    }
    if (context.train) Backward(y, labels, layers, &result);
    return result;
  }

 private:
  struct Layer {
    const pb::Layer* config;
    SampleShape in, out;
    size_t tensor = 0;  // its first
    Doubles x = {};
    std::vector<double> factor = {};  // of each element: a ReLU's, a dropout's
    std::vector<size_t> places = {};  // of maxima
  };

  std::vector<Layer> Layers() const {
    std::vector<Layer> layers;
    SampleShape shape = input_;
    size_t tensor = 0;
    for (const pb::Layer& config : config_.layer()) {
      Layer& layer = layers.emplace_back(Layer{.config = &config, .in = shape, .out = shape});
      layer.tensor = tensor;
      if (config.has_linear() || config.has_conv2d()) tensor += 2;
      if (config.has_linear()) layer.out = {config.linear().out(), 1, 1};
      if (config.has_flatten()) layer.out = {static_cast<uint32_t>(shape.size()), 1, 1};
      if (config.has_conv2d()) {
        layer.out = ConvOutput(shape, Geometry(config), config.conv2d().out_channels());
      }
      if (config.has_max_pool2d()) {
        const uint32_t kernel = config.max_pool2d().kernel();
        layer.out = {shape.channels, shape.height / kernel, shape.width / kernel};
      }
      shape = layer.out;
    }
    return layers;
  }
  static Conv2dGeometry Geometry(const pb::Layer& config) {
    return {config.conv2d().kernel(), config.conv2d().padding()};
  }
  static Doubles RoundAll(Doubles x, GemmMath math) {
    for (double& v : x) v = Rounded(v, math);
    return x;
  }

  // `margin`: the decisions are taken, else they are those taken before.
  Doubles Forward(Doubles x, uint64_t rows, const StepContext& context, GemmMath math,
                  std::vector<Layer>& layers, double* margin) const {
    for (size_t i = 0; i < layers.size(); ++i) {
      Layer& layer = layers[i];
      layer.x = x;
      if (layer.config->has_linear()) {
        x = Linear(RoundAll(x, math), rows, RoundAll(tensors_[layer.tensor], math),
                   tensors_[layer.tensor + 1]);
      } else if (layer.config->has_conv2d()) {
        x = Conv(RoundAll(x, math), layer.in, rows, Geometry(*layer.config),
                 RoundAll(tensors_[layer.tensor], math), tensors_[layer.tensor + 1]);
      } else if (layer.config->has_log_softmax()) {
        x = LogSoftmax(x, rows);
      } else if (layer.config->has_max_pool2d()) {
        if (margin != nullptr) {
          layer.places = MaxPlaces(x, layer.in, rows, layer.config->max_pool2d().kernel(), margin);
        }
        x.clear();
        for (const size_t place : layer.places) x.push_back(layer.x[place]);
      } else {
        if (margin != nullptr) Decide(i, context, &layer, margin);
        for (size_t j = 0; j < layer.factor.size(); ++j) x[j] *= layer.factor[j];
      }
    }
    return x;
  }

  void Decide(size_t index, const StepContext& context, Layer* layer, double* margin) const {
    layer->factor.assign(layer->x.size(), 1);
    if (layer->config->has_relu()) {
      for (size_t j = 0; j < layer->x.size(); ++j) {
        layer->factor[j] = layer->x[j] > 0 ? 1 : 0;
        // Zero to the bit is what an earlier ReLU or a dropout left.
        if (layer->x[j] != 0) *margin = std::min(*margin, std::abs(layer->x[j]));
      }
    } else if (layer->config->has_dropout() && context.train) {
      const float p = layer->config->dropout().p();
      const uint64_t stream = DropoutLayer::StreamOf(static_cast<uint32_t>(index), context.tick);
      for (size_t j = 0; j < layer->x.size(); ++j) {
        const bool kept = UniformAt(seed_, stream, context.first_row * layer->in.size() + j) >= p;
        layer->factor[j] = kept ? 1 / (1 - static_cast<double>(p)) : 0;
      }
    }
  }

  void Backward(const Doubles& y, const std::vector<int32_t>& labels,
                const std::vector<Layer>& layers, StepResult* result) const {
    const uint64_t rows = labels.size();
    result->gradients.resize(tensors_.size());
    Doubles d;
    for (size_t i = layers.size(); i-- > 0;) {
      const Layer& layer = layers[i];
      if (layer.config->has_log_softmax()) {
        d = NllLogSoftmaxBackward(y, rows, labels);
      } else if (layer.config->has_linear() || layer.config->has_conv2d()) {
        const Doubles& weight = tensors_[layer.tensor];
        Gradients g = layer.config->has_linear()
                          ? LinearBackward(layer.x, d, rows, weight)
                          : ConvBackward(layer.x, layer.in, d, rows, Geometry(*layer.config),
                                         layer.out.channels, weight);
        result->gradients[layer.tensor] = std::move(g.weight);
        result->gradients[layer.tensor + 1] = std::move(g.bias);
        d = std::move(g.x);
      } else if (layer.config->has_max_pool2d()) {
        Doubles dx(layer.x.size());
        for (size_t j = 0; j < layer.places.size(); ++j) dx[layer.places[j]] += d[j];
        d = std::move(dx);
      } else {
        for (size_t j = 0; j < layer.factor.size(); ++j) d[j] *= layer.factor[j];
      }
    }
    result->dx = std::move(d);
  }

  const pb::Model config_;
  const SampleShape input_;
  const uint64_t seed_;
  const std::vector<Doubles> tensors_;
};

}  // namespace parley::reference

#endif  // PARLEY_TESTS_CONFORMANCE_REFERENCE_MODEL_H_
