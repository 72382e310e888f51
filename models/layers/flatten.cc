#include "models/layers/flatten.h"

#include "absl/strings/str_format.h"

namespace parley {

absl::StatusOr<std::unique_ptr<Layer>> FlattenLayer::Create(LayerPlace place) {
  const SampleShape in = place.input;
  if (in.size() > UINT32_MAX) {
    return absl::InvalidArgumentError(
        absl::StrFormat("layer '%s': its input %s has %d elements a sample, allowed is up to %d",
                        place.name, ToString(in), in.size(), UINT32_MAX));
  }
  return std::make_unique<FlattenLayer>(std::move(place),
                                        SampleShape{static_cast<uint32_t>(in.size()), 1, 1});
}

}  // namespace parley
