#include "models/layers/dropout.h"

#include "absl/strings/str_format.h"
#include "ps/base/philox.h"

namespace parley {

absl::StatusOr<std::unique_ptr<Layer>> DropoutLayer::Create(const pb::Dropout& config,
                                                            LayerPlace place) {
  if (!(config.p() >= 0 && config.p() < 1)) {  // also refuses NaN
    return absl::InvalidArgumentError(absl::StrFormat(
        "layer '%s': dropout.p is %g, allowed is 0 <= p < 1", place.name, config.p()));
  }
  return std::make_unique<DropoutLayer>(std::move(place), config.p());
}

uint64_t DropoutLayer::StreamOf(uint32_t layer, uint64_t tick) {
  return Stream(RandomPurpose::kDropout, (uint64_t{layer} << 40) ^ tick);
}

void DropoutLayer::Forward(const ForwardArgs& args) {
  if (InPlace(args.step)) return;
  const DropoutPattern pattern{p_, place().seed, StreamOf(place().index, args.step.tick),
                               args.step.first_row};
  device()->DropoutForward(args.x, pattern, args.y, kept_.get());
}

void DropoutLayer::Backward(const BackwardArgs& args) {
  // Backward follows training only: then it is in place exactly if p is 0.
  if (args.dx == nullptr || p_ == 0) return;
  device()->DropoutBackward(args.dy, p_, kept_.get(), args.dx);
}

}  // namespace parley
