#include "ps/net/shm/private_parts.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "ps/base/payload_copy.h"
#include "ps/wire/payload.h"

namespace parley::shm {

absl::Status CopyDecidingParts(const std::vector<bool>& borrowed, BufferPool* pool, Frame* frame) {
  std::vector<Buffer>& payload = frame->payload;
  if (std::find(borrowed.begin(), borrowed.end(), true) == borrowed.end()) return absl::OkStatus();
  std::vector<bool> to_copy(payload.size(), false);
  // Runs lie in the buffers in the order of the parts, none across two of them (payload.h).
  size_t at = 0, offset = 0;
  const auto pass = [&](uint64_t bytes, bool decides) {
    if (bytes == 0 || at == payload.size()) return;
    if (offset == payload[at].size()) {
      offset = 0;
      if (++at == payload.size()) return;
    }
    offset += bytes;
    if (decides) to_copy[at] = borrowed[at];
  };
  for (const pb::Part& part : frame->header.part()) {
    pass(part.key_bytes(), true);
    pass(ValueBytes(part), part.has_value_bytes());
  }
  uint64_t bytes = 0;
  for (size_t i = 0; i < payload.size(); ++i) bytes += to_copy[i] ? payload[i].size() : 0;
  if (bytes > kMaxPayloadBytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("keys and encoded values lie in lent buffers of %d bytes, allowed is 0..%d",
                        bytes, kMaxPayloadBytes));
  }
  for (size_t i = 0; i < payload.size(); ++i) {
    if (!to_copy[i] || !payload[i].on_device()) continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "keys or encoded values lie in a lent buffer of %d bytes in a GPU's memory, allowed are "
        "plain values",
        payload[i].size()));
  }
  for (size_t i = 0; i < payload.size(); ++i) {
    if (!to_copy[i]) continue;
    Buffer copy = pool->Allocate(payload[i].size());
    CopyPayload(copy.mutable_data(), payload[i].data(), payload[i].size());
    payload[i] = std::move(copy);
  }
  return absl::OkStatus();
}

}  // namespace parley::shm
