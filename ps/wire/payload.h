// Which bytes of a frame's payload belong to which of its parts.
//
// The payload buffers, in order, hold for each part in order first its keys and then its values.
// Each such run lies in one buffer; a buffer may hold several runs, so that partitions that lie
// side by side in memory travel as one. Pure functions, thread-safe.
#ifndef PARLEY_PS_WIRE_PAYLOAD_H_
#define PARLEY_PS_WIRE_PAYLOAD_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "proto/wire.pb.h"
#include "ps/base/buffer.h"
#include "ps/wire/frame.h"

namespace parley {

inline constexpr size_t kMaxPayloadBytes = size_t{1} << 30;  // each payload buffer

// Bytes of the values of a part as they travel.
inline uint64_t ValueBytes(const pb::Part& part) {
  return part.has_value_bytes() ? part.value_bytes() : part.count() * sizeof(float);
}

// Whether `payload` is what the parts of `header` say, or empty where that is allowed: a PULL and
// control frames may name counts without carrying them. kInvalidArgument names the part or buffer.
absl::Status CheckPayload(const pb::FrameHeader& header, const std::vector<Buffer>& payload);

// The runs of one part; empty where it has none.
struct PartPayload {
  Buffer keys;    // uint64 [part.keys], little-endian, unaligned
  Buffer values;  // ValueBytes(part) bytes, unaligned
};

// By part; references into the frame's buffers, no copies. REQUIRES: CheckPayload was OK, which it
// is for every frame that DecodeFrame made.
std::vector<PartPayload> SplitPayload(const Frame& frame);

}  // namespace parley

#endif  // PARLEY_PS_WIRE_PAYLOAD_H_
