// y = x W^T + b on the sample taken as flat; W [out, in].
#ifndef PARLEY_MODELS_LAYERS_LINEAR_H_
#define PARLEY_MODELS_LAYERS_LINEAR_H_

#include <memory>
#include <vector>

#include "models/layers/layer.h"

namespace parley {

class LinearLayer final : public Layer {
 public:
  static absl::StatusOr<std::unique_ptr<Layer>> Create(const pb::Linear& config, LayerPlace place);
  using Layer::Layer;

  std::vector<pb::TensorSpec> tensors() const override;
  double flops_per_sample(bool input_gradient) const override;
  void SetFusion(Fusion fusion) override { fusion_ = fusion; }
  void Forward(const ForwardArgs& args) override;
  void Backward(const BackwardArgs& args) override;

 private:
  Fusion fusion_;
};

}  // namespace parley

#endif  // PARLEY_MODELS_LAYERS_LINEAR_H_
