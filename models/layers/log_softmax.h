// Log-probabilities of the scores, and the negative log-likelihood that ends every model.
#ifndef PARLEY_MODELS_LAYERS_LOG_SOFTMAX_H_
#define PARLEY_MODELS_LAYERS_LOG_SOFTMAX_H_

#include "models/layers/layer.h"

namespace parley {

class LogSoftmaxLayer final : public Layer {
 public:
  explicit LogSoftmaxLayer(LayerPlace place) : Layer(place, place.input) {}

  // The labels of this step's rows; borrowed until its last Backward.
  void SetLabels(const int32_t* labels) { labels_ = labels; }
  const BatchResult& result() const { return result_; }

  void Forward(const ForwardArgs& args) override;
  // dy is not used: the gradient of the loss starts here.
  void Backward(const BackwardArgs& args) override;

 private:
  const int32_t* labels_ = nullptr;
  BatchResult result_;
};

}  // namespace parley

#endif  // PARLEY_MODELS_LAYERS_LOG_SOFTMAX_H_
