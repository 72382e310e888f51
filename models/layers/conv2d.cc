#include "models/layers/conv2d.h"

#include <algorithm>

#include "absl/strings/str_format.h"

namespace parley {

absl::StatusOr<std::unique_ptr<Layer>> Conv2dLayer::Create(const pb::Conv2d& config,
                                                           LayerPlace place) {
  constexpr uint32_t kMaxChannels = 1 << 16;
  constexpr uint64_t kMaxKernel = 255;
  if (config.out_channels() < 1 || config.out_channels() > kMaxChannels) {
    return absl::InvalidArgumentError(
        absl::StrFormat("layer '%s': conv2d.out_channels is %d, allowed is 1..%d", place.name,
                        config.out_channels(), kMaxChannels));
  }
  const SampleShape in = place.input;
  const uint64_t side = std::min(in.height, in.width);
  const uint64_t padding = config.padding();
  const uint64_t limit = std::min(side + 2 * padding, kMaxKernel);
  if (config.kernel() < 1 || config.kernel() > limit) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "layer '%s': conv2d.kernel is %d, allowed is 1..%d for its input %s and padding %d",
        place.name, config.kernel(), limit, ToString(in), padding));
  }
  // More would only convolve zeros.
  if (padding >= config.kernel()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("layer '%s': conv2d.padding is %d, allowed is 0..%d (less than the kernel)",
                        place.name, padding, config.kernel() - 1));
  }
  const uint32_t grow = 2 * config.padding() + 1;
  const SampleShape out{config.out_channels(), in.height + grow - config.kernel(),
                        in.width + grow - config.kernel()};
  return std::make_unique<Conv2dLayer>(std::move(place), out,
                                       Conv2dGeometry{config.kernel(), config.padding()});
}

std::vector<pb::TensorSpec> Conv2dLayer::tensors() const {
  return WeightAndBias({output().channels, input().channels, geometry_.kernel, geometry_.kernel});
}

double Conv2dLayer::flops_per_sample(bool input_gradient) const {
  const double product =
      2.0 * output().size() * input().channels * geometry_.kernel * geometry_.kernel;
  return product * (input_gradient ? 3 : 2);
}

void Conv2dLayer::Forward(const ForwardArgs& args) {
  device()->Conv2dForward(args.x, geometry_, args.weight, args.bias, fusion_.relu_forward, args.y);
}

void Conv2dLayer::Backward(const BackwardArgs& args) {
  device()->Conv2dBackwardWeights(args.x, args.dy, geometry_, args.dweight, args.dbias);
  if (args.dx != nullptr) device()->Conv2dBackwardData(args.dy, geometry_, args.weight, args.dx);
}

}  // namespace parley
