// [channels, height, width] -> [channels * height * width], in plain order.
#ifndef PARLEY_MODELS_LAYERS_FLATTEN_H_
#define PARLEY_MODELS_LAYERS_FLATTEN_H_

#include <memory>

#include "models/layers/layer.h"

namespace parley {

class FlattenLayer final : public Layer {
 public:
  static absl::StatusOr<std::unique_ptr<Layer>> Create(LayerPlace place);
  using Layer::Layer;

  bool InPlace(const StepContext& step) const override { return true; }
  void Forward(const ForwardArgs& args) override { device()->View(args.x, output()); }
  void Backward(const BackwardArgs& args) override {
    if (args.dx != nullptr) device()->View(args.dy, input());
  }
};

}  // namespace parley

#endif  // PARLEY_MODELS_LAYERS_FLATTEN_H_
