// Codec: a frame's first message part, from and to bytes. The other parts are payload and go as
// they are.
//
// The Protobuf header travels in an envelope of 16 bytes, little-endian (proto/PROTOCOL.md):
//
//   0  4  magic "PRLY"
//   4  2  envelope version, 1
//   6  2  reserved, 0
//   8  4  length of the Protobuf bytes, which follow and end the part
//   12 4  CRC-32 (zlib) of the Protobuf bytes
//
// Pure functions, thread-safe. Decoding is where a stranger's bytes enter: it checks everything
// that can be checked without knowing who asks, and costs at most a small multiple of the bytes it
// is given.
#ifndef PARLEY_PS_WIRE_CODEC_H_
#define PARLEY_PS_WIRE_CODEC_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/wire.pb.h"
#include "ps/base/buffer.h"
#include "ps/wire/frame.h"

namespace parley {

inline constexpr std::string_view kEnvelopeMagic = "PRLY";
inline constexpr uint16_t kEnvelopeVersion = 1;
inline constexpr size_t kEnvelopeBytes = 16;

// Bounds on one frame. A frame is far smaller in practice (max_request_kib); these are what a node
// can be made to hold by one message.
inline constexpr size_t kMaxHeaderBytes = size_t{64} << 20;
inline constexpr size_t kMaxParts = 65536;

// The first message part. REQUIRES: the header is one that DecodeFrame takes.
std::string EncodeHeader(const pb::FrameHeader& header);

// A frame from its message parts. kInvalidArgument names the field, its value and what is allowed.
// A frame that comes out holds to this: its kind is one of pb::Kind and not KIND_UNKNOWN, its
// weight is finite and >= 0, it has at most kMaxParts parts, and `payload` holds what the parts say
// (CheckPayload in payload.h), or nothing where that is allowed.
absl::StatusOr<Frame> DecodeFrame(std::string_view first_part, std::vector<Buffer> payload);

}  // namespace parley

#endif  // PARLEY_PS_WIRE_CODEC_H_
