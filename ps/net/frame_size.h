// What of a frame a transport takes to send. Pure.
#ifndef PARLEY_PS_NET_FRAME_SIZE_H_
#define PARLEY_PS_NET_FRAME_SIZE_H_

#include <cstddef>

#include "absl/status/status.h"
#include "ps/base/arenas.h"
#include "ps/wire/frame.h"

namespace parley {

// kInvalidArgument: the frame has more than `max_parts` payload buffers, or one of more than
// `max_part_bytes`; the receiver would refuse it. Or one in a GPU's memory, which no CPU can copy,
// outside what this transport can lend: `lent`, null for those that lend none.
absl::Status CheckFrameSize(const Frame& frame, size_t max_part_bytes, size_t max_parts,
                            const Arenas* lent = nullptr);

}  // namespace parley

#endif  // PARLEY_PS_NET_FRAME_SIZE_H_
