// Largest of each kernel x kernel window; windows lie side by side and the remainder is cut off.
#ifndef PARLEY_MODELS_LAYERS_MAX_POOL2D_H_
#define PARLEY_MODELS_LAYERS_MAX_POOL2D_H_

#include <memory>

#include "models/layers/layer.h"

namespace parley {

class MaxPool2dLayer final : public Layer {
 public:
  static absl::StatusOr<std::unique_ptr<Layer>> Create(const pb::MaxPool2d& config,
                                                       LayerPlace place);
  MaxPool2dLayer(LayerPlace place, SampleShape output, uint32_t kernel)
      : Layer(std::move(place), output), kernel_(kernel), argmax_(device()->NewWorkspace()) {}

  void SetFusion(Fusion fusion) override { fusion_ = fusion; }
  void Forward(const ForwardArgs& args) override;
  void Backward(const BackwardArgs& args) override;

 private:
  const uint32_t kernel_;
  const std::unique_ptr<Workspace> argmax_;
  Fusion fusion_;
};

}  // namespace parley

#endif  // PARLEY_MODELS_LAYERS_MAX_POOL2D_H_
