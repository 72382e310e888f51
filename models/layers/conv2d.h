// Convolution with a square kernel, stride 1 and zero padding; W [out, in, kernel, kernel].
#ifndef PARLEY_MODELS_LAYERS_CONV2D_H_
#define PARLEY_MODELS_LAYERS_CONV2D_H_

#include <memory>
#include <vector>

#include "models/layers/layer.h"

namespace parley {

class Conv2dLayer final : public Layer {
 public:
  static absl::StatusOr<std::unique_ptr<Layer>> Create(const pb::Conv2d& config, LayerPlace place);
  Conv2dLayer(LayerPlace place, SampleShape output, Conv2dGeometry geometry)
      : Layer(std::move(place), output), geometry_(geometry) {}

  std::vector<pb::TensorSpec> tensors() const override;
  double flops_per_sample(bool input_gradient) const override;
  void SetFusion(Fusion fusion) override { fusion_ = fusion; }
  void Forward(const ForwardArgs& args) override;
  void Backward(const BackwardArgs& args) override;

 private:
  const Conv2dGeometry geometry_;
  Fusion fusion_;
};

}  // namespace parley

#endif  // PARLEY_MODELS_LAYERS_CONV2D_H_
