// The head of a safetensors file: 8 bytes with the length of a JSON object, little-endian, and the
// object, which names the tensors whose bytes follow one after another. Pure functions.
#ifndef PARLEY_PS_CHECKPOINT_SAFETENSORS_H_
#define PARLEY_PS_CHECKPOINT_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/cluster.pb.h"

namespace parley {

struct SafetensorsTensor {
  std::string name;
  pb::StateArray array;  // dtype and shape; its own name is not looked at
};

struct SafetensorsHead {
  std::string bytes;                // what the file begins with; a multiple of 8
  std::vector<uint64_t> offset;     // by tensor, as given: of its bytes in the file
  std::vector<size_t> write_order;  // indices of the tensors: what follows, one after another
  uint64_t file_bytes = 0;
};

// Tensors of large elements come first, so that all are aligned to theirs in a file that is mapped.
// kInvalidArgument names a tensor: its name is not UTF-8, "__metadata__" or there twice, its dtype
// is unknown, its shape overflows; or all are too many for a head (100 MB, as readers want it).
absl::StatusOr<SafetensorsHead> MakeSafetensorsHead(
    absl::Span<const SafetensorsTensor> tensors,
    const std::map<std::string, std::string>& metadata);

}  // namespace parley

#endif  // PARLEY_PS_CHECKPOINT_SAFETENSORS_H_
