#include "ps/base/layer_names.h"

#include <map>

#include "absl/strings/str_cat.h"

namespace parley {
namespace {

const char* Stem(const pb::Layer& layer) {
  switch (layer.kind_case()) {
    case pb::Layer::kLinear:
      return "fc";
    case pb::Layer::kConv2D:
      return "conv";
    case pb::Layer::kMaxPool2D:
      return "pool";
    case pb::Layer::kRelu:
      return "relu";
    case pb::Layer::kDropout:
      return "dropout";
    case pb::Layer::kFlatten:
      return "flatten";
    case pb::Layer::kLogSoftmax:
      return "log_softmax";
    case pb::Layer::kEmbedding:
      return "embedding";
    case pb::Layer::KIND_NOT_SET:
      break;
  }
  return "layer";
}

}  // namespace

std::vector<std::string> LayerNames(const pb::Model& model) {
  std::vector<std::string> names;
  std::map<std::string, int> count;
  for (const pb::Layer& layer : model.layer()) {
    const int number = ++count[Stem(layer)];
    names.push_back(layer.has_name() ? layer.name() : absl::StrCat(Stem(layer), number));
  }
  return names;
}

}  // namespace parley
