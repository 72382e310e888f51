// Zeroes each element with probability p and scales the others by 1/(1-p); the identity in
// evaluation.
#ifndef PARLEY_MODELS_LAYERS_DROPOUT_H_
#define PARLEY_MODELS_LAYERS_DROPOUT_H_

#include <memory>

#include "models/layers/layer.h"

namespace parley {

class DropoutLayer final : public Layer {
 public:
  static absl::StatusOr<std::unique_ptr<Layer>> Create(const pb::Dropout& config, LayerPlace place);
  DropoutLayer(LayerPlace place, float p)
      : Layer(place, place.input), p_(p), kept_(device()->NewWorkspace()) {}

  // The stream of random numbers of one layer in one tick: no two pairs share one while ticks stay
  // below 2^40.
  static uint64_t StreamOf(uint32_t layer, uint64_t tick);

  bool InPlace(const StepContext& step) const override { return !step.train || p_ == 0; }
  void Forward(const ForwardArgs& args) override;
  void Backward(const BackwardArgs& args) override;

 private:
  const float p_;
  const std::unique_ptr<Workspace> kept_;
};

}  // namespace parley

#endif  // PARLEY_MODELS_LAYERS_DROPOUT_H_
