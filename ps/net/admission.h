// Which frames a node listens to at all: those of its protocol version and its job. Pure.
#ifndef PARLEY_PS_NET_ADMISSION_H_
#define PARLEY_PS_NET_ADMISSION_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "proto/wire.pb.h"
#include "ps/wire/frame.h"

namespace parley {

// The number that stands for a job's name in every header; never 0.
uint64_t JobId(const std::string& job);

// kFailedPrecondition naming both protocol versions, or both jobs. `job` 0 is a node that knows no
// job yet; a frame of job 0 passes only as HELLO, FAILED or CONTROL, which may come from who knows
// none.
absl::Status CheckAdmission(const pb::FrameHeader& header, uint64_t job);

// Whether a frame may come from who holds a key of `role`: a HELLO says the role of its key,
// members tell the scheduler, the scheduler alone gives orders, workers push and pull, servers
// copy. What came by a connection that needed no key may be anything. kPermissionDenied names both.
absl::Status CheckPeerRole(PeerRole role, const pb::FrameHeader& header);

}  // namespace parley

#endif  // PARLEY_PS_NET_ADMISSION_H_
