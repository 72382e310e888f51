#include "ps/base/device_memory.h"

#include "absl/strings/str_format.h"
#include "ps/base/payload_copy.h"

namespace parley {

absl::Status HostMover::Copy(void* to, Buffer from) {
  if (from.on_device()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%d bytes of payload lie in a GPU's memory, allowed is host memory", from.size()));
  }
  CopyPayload(to, from.data(), from.size());
  return absl::OkStatus();
}

}  // namespace parley
