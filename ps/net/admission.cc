#include "ps/net/admission.h"

#include <string_view>

#include "absl/strings/str_format.h"
#include "ps/base/ids.h"

namespace parley {

uint64_t JobId(const std::string& job) {
  // FNV-1a, 64 bit: stable across builds and machines. It tells jobs apart by mistake, not by
  // malice.
  uint64_t hash = 0xcbf29ce484222325;
  for (unsigned char c : job) hash = (hash ^ c) * 0x100000001b3;
  return hash == 0 ? 1 : hash;
}

absl::Status CheckAdmission(const pb::FrameHeader& header, uint64_t job) {
  if (header.protocol() != kProtocolVersion) {
    return absl::FailedPreconditionError(
        absl::StrFormat("the sender speaks protocol version %d, this node %d", header.protocol(),
                        kProtocolVersion));
  }
  // Answers too: a node may be asked something before its own admission has reached it.
  const bool may_be_jobless = header.kind() == pb::HELLO || header.kind() == pb::FAILED ||
                              header.kind() == pb::REPLY || header.kind() == pb::PARKED ||
                              header.kind() == pb::CONTROL;
  if (job == 0 || header.job() == job || (header.job() == 0 && may_be_jobless)) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrFormat("the frame is of job %016x, this node is of job %016x", header.job(), job));
}

}  // namespace parley
