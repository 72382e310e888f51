// Which borrowed bytes must not change under their reader, and their copies.
//
// Thread-safety: pure functions over what they are given.
#ifndef PARLEY_PS_NET_SHM_PRIVATE_PARTS_H_
#define PARLEY_PS_NET_SHM_PRIVATE_PARTS_H_

#include <vector>

#include "absl/status/status.h"
#include "ps/base/buffer.h"
#include "ps/wire/frame.h"

namespace parley::shm {

// Replaces those of the frame's `borrowed` buffers [payload.size()] that hold keys or encoded
// values by copies from `pool`. Such bytes say where something is read or written (a row, an
// element), so they are checked before they are used, and a peer that changed them in between would
// be believed. Plain float32 values are only computed with. kInvalidArgument, and nothing is
// copied: it would be more than kMaxPayloadBytes, for which a peer needs no more than references to
// the same bytes; or they lie in a GPU's memory. REQUIRES: DecodeFrame made the frame.
absl::Status CopyDecidingParts(const std::vector<bool>& borrowed, BufferPool* pool, Frame* frame);

}  // namespace parley::shm

#endif  // PARLEY_PS_NET_SHM_PRIVATE_PARTS_H_
