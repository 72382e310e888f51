// max(0, x). A linear or conv2d layer before it does its forward pass, a max_pool2d after it its
// backward pass; see Fusion.
#ifndef PARLEY_MODELS_LAYERS_RELU_H_
#define PARLEY_MODELS_LAYERS_RELU_H_

#include "models/layers/layer.h"

namespace parley {

class ReluLayer final : public Layer {
 public:
  explicit ReluLayer(LayerPlace place) : Layer(place, place.input) {}

  void SetFusion(Fusion fusion) override { fusion_ = fusion; }
  bool InPlace(const StepContext& step) const override { return fusion_.relu_forward; }
  bool BackwardInPlace(const StepContext& step) const override { return true; }
  void Forward(const ForwardArgs& args) override;
  void Backward(const BackwardArgs& args) override;

 private:
  Fusion fusion_;
};

}  // namespace parley

#endif  // PARLEY_MODELS_LAYERS_RELU_H_
