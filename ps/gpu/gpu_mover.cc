#include "ps/gpu/gpu_mover.h"

#include <utility>

#include "ps/base/payload_copy.h"

namespace parley {

absl::Status GpuMover::Copy(void* to, Buffer from) {
  if (from.empty()) return absl::OkStatus();
  const bool to_device = arenas_->Find(to, from.size()).has_value();
  absl::Status status;
  if (!to_device && !from.on_device()) {
    CopyPayload(to, from.data(), from.size());
    return status;
  }
  if (to_device && from.on_device()) {
    status = stream_->CopyWithin(to, from.data(), from.size());
  } else {
    status = to_device ? stream_->CopyIn(to, from.data(), from.size())
                       : stream_->CopyOut(to, from.data(), from.size());
    NoteCopied(from.size());
  }
  held_.push_back(std::move(from));
  return status;
}

absl::Status GpuMover::Finish() {
  if (held_.empty()) return absl::OkStatus();
  absl::Status status = stream_->Sync();
  held_.clear();
  return status;
}

}  // namespace parley
