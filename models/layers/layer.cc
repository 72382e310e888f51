#include "models/layers/layer.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "models/layers/conv2d.h"
#include "models/layers/dropout.h"
#include "models/layers/flatten.h"
#include "models/layers/linear.h"
#include "models/layers/max_pool2d.h"
#include "models/layers/relu.h"

namespace parley {

std::vector<pb::TensorSpec> Layer::WeightAndBias(std::vector<uint32_t> weight_shape) const {
  double fan_in = 1;
  for (size_t i = 1; i < weight_shape.size(); ++i) fan_in *= weight_shape[i];
  pb::TensorSpec weight, bias;
  weight.set_name(absl::StrCat(name(), ".weight"));
  weight.mutable_shape()->Add(weight_shape.begin(), weight_shape.end());
  bias.set_name(absl::StrCat(name(), ".bias"));
  bias.add_shape(weight_shape[0]);
  for (pb::TensorSpec* tensor : {&weight, &bias}) {
    tensor->set_init(pb::TensorSpec::UNIFORM);
    tensor->set_bound(static_cast<float>(1 / std::sqrt(fan_in)));
  }
  return {weight, bias};
}

absl::StatusOr<std::unique_ptr<Layer>> CreateLayer(const pb::Layer& config, LayerPlace place) {
  switch (config.kind_case()) {
    case pb::Layer::kLinear:
      return LinearLayer::Create(config.linear(), std::move(place));
    case pb::Layer::kConv2D:
      return Conv2dLayer::Create(config.conv2d(), std::move(place));
    case pb::Layer::kMaxPool2D:
      return MaxPool2dLayer::Create(config.max_pool2d(), std::move(place));
    case pb::Layer::kRelu:
      return std::make_unique<ReluLayer>(std::move(place));
    case pb::Layer::kDropout:
      return DropoutLayer::Create(config.dropout(), std::move(place));
    case pb::Layer::kFlatten:
      return FlattenLayer::Create(std::move(place));
    case pb::Layer::kEmbedding:  // the worker's, in front of the chain
    case pb::Layer::kLogSoftmax:
    case pb::Layer::KIND_NOT_SET:
      break;
  }
  return absl::InternalError(absl::StrCat("layer '", place.name, "': no such kind here"));
}

}  // namespace parley
