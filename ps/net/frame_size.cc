#include "ps/net/frame_size.h"

#include "absl/strings/str_format.h"

namespace parley {

absl::Status CheckFrameSize(const Frame& frame, size_t max_part_bytes, size_t max_parts) {
  if (frame.payload.size() > max_parts) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "frame has %d payload buffers, allowed is 0..%d", frame.payload.size(), max_parts));
  }
  for (const Buffer& buffer : frame.payload) {
    if (buffer.size() <= max_part_bytes) continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "frame has a payload buffer of %d bytes, allowed is 0..%d", buffer.size(), max_part_bytes));
  }
  return absl::OkStatus();
}

}  // namespace parley
