#include "models/model_builder.h"

#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

#include "ps/base/layer_names.h"

namespace parley {
namespace {

// Dropout's stream of random numbers has 16 bits for the layer; nobody needs so many.
constexpr int kMaxLayers = 1000;

// A name becomes part of tensor names and metrics.
absl::Status CheckName(int index, const std::string& name) {
  bool allowed = !name.empty() && name.size() <= 64;
  for (const char c : name) {
    allowed = allowed && ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                          (c >= '0' && c <= '9') || c == '_' || c == '-');
  }
  if (allowed) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "layer[%d]: name is '%s', allowed are 1..64 of the characters a-z A-Z 0-9 _ -", index, name));
}

absl::StatusOr<std::vector<std::string>> Names(const pb::Model& config) {
  std::vector<std::string> names = LayerNames(config);
  std::map<std::string, int> first;
  for (int i = 0; i < config.layer_size(); ++i) {
    const pb::Layer& layer = config.layer(i);
    if (layer.kind_case() == pb::Layer::KIND_NOT_SET) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "layer[%d]%s: its kind is not set, allowed is one of linear, conv2d, max_pool2d, relu, "
          "dropout, flatten, log_softmax",
          i, layer.has_name() ? absl::StrCat(" '", layer.name(), "'") : ""));
    }
    if (absl::Status status = CheckName(i, names[i]); !status.ok()) return status;
    const auto [earlier, fresh] = first.emplace(names[i], i);
    if (!fresh) {
      return absl::InvalidArgumentError(
          absl::StrFormat("layer[%d]: name '%s' is that of layer[%d] already; names must be unique",
                          i, names[i], earlier->second));
    }
  }
  return names;
}

// log_softmax at the end and nowhere else.
absl::Status CheckLoss(const pb::Model& config, const std::vector<std::string>& names) {
  const int last = config.layer_size() - 1;
  for (int i = 0; i < last; ++i) {
    if (config.layer(i).has_log_softmax()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("layer '%s': log_softmax is layer %d of %d, allowed is only the last",
                          names[i], i + 1, last + 1));
    }
  }
  if (config.layer(last).has_log_softmax()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("layer '%s': the last layer must be log_softmax, as the loss is the negative "
                      "log-likelihood; add layer { log_softmax {} }",
                      names[last]));
}

absl::Status CheckInput(SampleShape input, uint32_t classes) {
  if (input.size() == 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "model: the input shape is %s, every extent must be 1 or more", ToString(input)));
  }
  if (classes < 2) {
    return absl::InvalidArgumentError(
        absl::StrFormat("model: the data has %d classes, at least 2 are needed", classes));
  }
  return absl::OkStatus();
}

// A ReLU right after a linear or conv2d layer is applied by that layer as it writes its result, and
// a max_pool2d right after a ReLU backs through it on the smaller side.
void Fuse(const pb::Model& config, std::vector<std::unique_ptr<Layer>>& layers) {
  for (int i = 0; i < config.layer_size(); ++i) {
    const auto is_relu = [&](int j) {
      return j >= 0 && j < config.layer_size() && config.layer(j).has_relu();
    };
    const pb::Layer& layer = config.layer(i);
    Fusion fusion;
    if (layer.has_relu()) {
      fusion.relu_forward =
          i > 0 && (config.layer(i - 1).has_linear() || config.layer(i - 1).has_conv2d());
      fusion.relu_backward = i + 1 < config.layer_size() && config.layer(i + 1).has_max_pool2d();
    } else {
      fusion.relu_forward = is_relu(i + 1);
      fusion.relu_backward = is_relu(i - 1);
    }
    layers[i]->SetFusion(fusion);
  }
}

}  // namespace

absl::StatusOr<LayerChain> BuildLayers(const pb::Model& config, SampleShape input, uint32_t classes,
                                       uint64_t seed, Device* device) {
  if (absl::Status status = CheckInput(input, classes); !status.ok()) return status;
  if (config.layer_size() < 1 || config.layer_size() > kMaxLayers) {
    return absl::InvalidArgumentError(absl::StrFormat("model: it has %d layers, allowed is 1..%d",
                                                      config.layer_size(), kMaxLayers));
  }
  absl::StatusOr<std::vector<std::string>> names = Names(config);
  if (!names.ok()) return names.status();
  if (absl::Status status = CheckLoss(config, *names); !status.ok()) return status;

  LayerChain chain;
  SampleShape shape = input;
  for (int i = 0; i + 1 < config.layer_size(); ++i) {
    absl::StatusOr<std::unique_ptr<Layer>> layer = CreateLayer(
        config.layer(i), LayerPlace{(*names)[i], static_cast<uint32_t>(i), shape, seed, device});
    if (!layer.ok()) return layer.status();
    shape = (*layer)->output();
    chain.layers.push_back(*std::move(layer));
  }
  // [classes], however it is spelled: [1, 1, classes] of a bare input is the same numbers.
  if (shape.size() != classes) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "layer '%s': its input is %s, allowed is [%d]: one score for each of the %d classes",
        names->back(), ToString(shape), classes, classes));
  }
  auto loss = std::make_unique<LogSoftmaxLayer>(
      LayerPlace{names->back(), static_cast<uint32_t>(chain.layers.size()), shape, seed, device});
  chain.loss = loss.get();
  chain.layers.push_back(std::move(loss));
  Fuse(config, chain.layers);
  return chain;
}

}  // namespace parley
