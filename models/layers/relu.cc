#include "models/layers/relu.h"

namespace parley {

void ReluLayer::Forward(const ForwardArgs& args) {
  if (!fusion_.relu_forward) device()->ReluForward(args.x, args.y);
}

void ReluLayer::Backward(const BackwardArgs& args) {
  if (args.dx == nullptr || fusion_.relu_backward) return;
  device()->ReluBackward(args.y, args.dy, args.dx);
}

}  // namespace parley
