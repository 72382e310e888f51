#include "models/layers/max_pool2d.h"

#include <algorithm>

#include "absl/strings/str_format.h"

namespace parley {

absl::StatusOr<std::unique_ptr<Layer>> MaxPool2dLayer::Create(const pb::MaxPool2d& config,
                                                              LayerPlace place) {
  constexpr uint32_t kMaxKernel = 15;  // the place of a maximum in its window fits a byte
  const SampleShape in = place.input;
  const uint32_t limit = std::min({in.height, in.width, kMaxKernel});
  if (config.kernel() < 1 || config.kernel() > limit) {
    return absl::InvalidArgumentError(
        absl::StrFormat("layer '%s': max_pool2d.kernel is %d, allowed is 1..%d for its input %s",
                        place.name, config.kernel(), limit, ToString(in)));
  }
  const SampleShape out{in.channels, in.height / config.kernel(), in.width / config.kernel()};
  return std::make_unique<MaxPool2dLayer>(std::move(place), out, config.kernel());
}

void MaxPool2dLayer::Forward(const ForwardArgs& args) {
  device()->MaxPoolForward(args.x, kernel_, fusion_.relu_backward, args.y, argmax_.get());
}

void MaxPool2dLayer::Backward(const BackwardArgs& args) {
  if (args.dx != nullptr) device()->MaxPoolBackward(args.dy, kernel_, argmax_.get(), args.dx);
}

}  // namespace parley
