#include "ps/net/frame_size.h"

#include "absl/strings/str_format.h"

namespace parley {

absl::Status CheckFrameSize(const Frame& frame, size_t max_part_bytes, size_t max_parts,
                            const Arenas* lent) {
  if (frame.payload.size() > max_parts) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "frame has %d payload buffers, allowed is 0..%d", frame.payload.size(), max_parts));
  }
  for (const Buffer& buffer : frame.payload) {
    if (buffer.size() > max_part_bytes) {
      return absl::InvalidArgumentError(
          absl::StrFormat("frame has a payload buffer of %d bytes, allowed is 0..%d", buffer.size(),
                          max_part_bytes));
    }
    if (!buffer.on_device()) continue;
    if (lent != nullptr && lent->Find(buffer.data(), buffer.size()).has_value()) continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "frame has a payload buffer of %d bytes in a GPU's memory; allowed is that over shared "
        "memory, to nodes of this host, from this process's own arenas",
        buffer.size()));
  }
  return absl::OkStatus();
}

}  // namespace parley
