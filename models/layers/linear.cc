#include "models/layers/linear.h"

#include "absl/strings/str_format.h"

namespace parley {

absl::StatusOr<std::unique_ptr<Layer>> LinearLayer::Create(const pb::Linear& config,
                                                           LayerPlace place) {
  constexpr uint32_t kMaxOut = 1 << 20;
  if (config.out() < 1 || config.out() > kMaxOut) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "layer '%s': linear.out is %d, allowed is 1..%d", place.name, config.out(), kMaxOut));
  }
  // A weight's shape is 32-bit per extent.
  if (place.input.size() > UINT32_MAX) {
    return absl::InvalidArgumentError(
        absl::StrFormat("layer '%s': its input %s has %d elements a sample, allowed is up to %d",
                        place.name, ToString(place.input), place.input.size(), UINT32_MAX));
  }
  return std::make_unique<LinearLayer>(std::move(place), SampleShape{config.out(), 1, 1});
}

std::vector<pb::TensorSpec> LinearLayer::tensors() const {
  return WeightAndBias({output().channels, static_cast<uint32_t>(input().size())});
}

double LinearLayer::flops_per_sample(bool input_gradient) const {
  const double product = 2.0 * input().size() * output().size();
  return product * (input_gradient ? 3 : 2);
}

void LinearLayer::Forward(const ForwardArgs& args) {
  device()->LinearForward(args.x, args.weight, args.bias, fusion_.relu_forward, args.y);
}

void LinearLayer::Backward(const BackwardArgs& args) {
  device()->LinearBackwardWeights(args.x, args.dy, args.dweight, args.dbias);
  if (args.dx != nullptr) device()->LinearBackwardData(args.dy, args.weight, args.dx);
}

}  // namespace parley
