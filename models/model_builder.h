// From the description of a model to its layers: names, shapes, fusion. Internal to models.
#ifndef PARLEY_MODELS_MODEL_BUILDER_H_
#define PARLEY_MODELS_MODEL_BUILDER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "models/layers/layer.h"
#include "models/layers/log_softmax.h"

namespace parley {

struct LayerChain {
  std::vector<std::unique_ptr<Layer>> layers;  // the last one is `loss`
  LogSoftmaxLayer* loss = nullptr;
};

// Errors as Model::Create.
absl::StatusOr<LayerChain> BuildLayers(const pb::Model& config, SampleShape input, uint32_t classes,
                                       uint64_t seed, Device* device);

}  // namespace parley

#endif  // PARLEY_MODELS_MODEL_BUILDER_H_
