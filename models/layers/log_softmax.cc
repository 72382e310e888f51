#include "models/layers/log_softmax.h"

namespace parley {

void LogSoftmaxLayer::Forward(const ForwardArgs& args) {
  device()->LogSoftmaxForward(args.x, args.y);
  device()->NllForward(args.y, labels_, &result_.loss_sum, &result_.correct);
}

void LogSoftmaxLayer::Backward(const BackwardArgs& args) {
  if (args.dx != nullptr) device()->NllLogSoftmaxBackward(args.y, labels_, args.dx);
}

}  // namespace parley
