// The names of layers that have none of their own: kind and count, "conv1", "fc2". They become part
// of tensor names, so they are a promise. Pure, thread-safe.
#ifndef PARLEY_PS_BASE_LAYER_NAMES_H_
#define PARLEY_PS_BASE_LAYER_NAMES_H_

#include <string>
#include <vector>

#include "proto/experiment.pb.h"

namespace parley {

// A name for each layer, its own where it has one. A layer without a kind counts as "layer".
// Nothing is checked.
std::vector<std::string> LayerNames(const pb::Model& model);

}  // namespace parley

#endif  // PARLEY_PS_BASE_LAYER_NAMES_H_
