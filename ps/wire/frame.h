// Frame: what nodes exchange. A Protobuf header and, beside it, raw little-endian tensor payloads
// that no codec copies.
//
// Value type; not thread-safe. The payload Buffers may refer to received messages or to live
// weights.
#ifndef PARLEY_PS_WIRE_FRAME_H_
#define PARLEY_PS_WIRE_FRAME_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "proto/wire.pb.h"
#include "ps/base/buffer.h"

namespace parley {

// Whose key the connection of a received frame was proven with. kUnproven: keys are not in use, or
// the frame came from this machine's own user, over shared memory or a unix socket.
enum class PeerRole : uint8_t { kUnproven, kScheduler, kServer, kWorker };

struct Frame {
  pb::FrameHeader header;
  std::vector<Buffer>
      payload;  // keys and values of the parts, end to end (payload.h), or none at all
  PeerRole peer_role = PeerRole::kUnproven;  // set by the transport that received it; never sent

  size_t payload_bytes() const {
    size_t bytes = 0;
    for (const Buffer& buffer : payload) bytes += buffer.size();
    return bytes;
  }
};

}  // namespace parley

#endif  // PARLEY_PS_WIRE_FRAME_H_
