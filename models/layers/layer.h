// Layer: one stage of a model. A layer knows its shapes, parameters and which operations of the
// Device it is; it owns no activations.
//
// Thread-safety: as Model.
#ifndef PARLEY_MODELS_LAYERS_LAYER_H_
#define PARLEY_MODELS_LAYERS_LAYER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "models/device.h"
#include "models/model.h"
#include "proto/cluster.pb.h"
#include "proto/experiment.pb.h"

namespace parley {

// Where the layer stands in its model.
struct LayerPlace {
  std::string name;
  uint32_t index = 0;  // of the layer in the model
  SampleShape input;
  uint64_t seed = 0;
  Device* device = nullptr;
};

// Neighbours may do a ReLU's work in passing; the ReLU's own stage then does less or nothing.
struct Fusion {
  bool relu_forward = false;   // this linear or conv2d also applies the ReLU that follows it;
                               // that ReLU's forward is done
  bool relu_backward = false;  // this max_pool2d also backs through the ReLU before it; that ReLU's
                               // backward is done
};

class Layer {
 public:
  explicit Layer(LayerPlace place, SampleShape output)
      : place_(std::move(place)), output_(output) {}
  virtual ~Layer() = default;

  const std::string& name() const { return place_.name; }
  SampleShape input() const { return place_.input; }
  SampleShape output() const { return output_; }

  // Tensors of the layer, weight before bias; empty if it has none.
  virtual std::vector<pb::TensorSpec> tensors() const { return {}; }
  // Forward plus backward, without the gradient of the input if nobody needs it.
  virtual double flops_per_sample(bool input_gradient) const { return 0; }

  virtual void SetFusion(Fusion fusion) {}

  // True if y is x in this step, so that no tensor is needed for it; the same of dx and dy.
  virtual bool InPlace(const StepContext& step) const { return false; }
  virtual bool BackwardInPlace(const StepContext& step) const { return InPlace(step); }

  // `weight` and `bias` are null for a layer without tensors. y has been prepared with output().
  struct ForwardArgs {
    const StepContext& step;
    const float* weight;
    const float* bias;
    Tensor* x;
    Tensor* y;
  };
  virtual void Forward(const ForwardArgs& args) = 0;

  // x and y as they were in Forward. dx has been prepared with input(), or is null if the
  // gradient of x is not needed.
  struct BackwardArgs {
    const float* weight;
    float* dweight;
    float* dbias;
    Tensor* x;
    Tensor* y;
    Tensor* dy;
    Tensor* dx;
  };
  virtual void Backward(const BackwardArgs& args) = 0;

 protected:
  Device* device() const { return place_.device; }
  const LayerPlace& place() const { return place_; }

  // PyTorch's default for linear and convolution: uniform in +-1/sqrt(fan_in), weight and bias
  // alike.
  std::vector<pb::TensorSpec> WeightAndBias(std::vector<uint32_t> weight_shape) const;

 private:
  const LayerPlace place_;
  const SampleShape output_;
};

// kInvalidArgument names the layer, the field, its value and what is allowed. `config` must have
// its kind set to anything but log_softmax, which the model makes itself.
absl::StatusOr<std::unique_ptr<Layer>> CreateLayer(const pb::Layer& config, LayerPlace place);

}  // namespace parley

#endif  // PARLEY_MODELS_LAYERS_LAYER_H_
