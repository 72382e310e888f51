// Which frames a node listens to at all: those of its protocol version and its job. Pure.
#ifndef PARLEY_PS_NET_ADMISSION_H_
#define PARLEY_PS_NET_ADMISSION_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "proto/wire.pb.h"

namespace parley {

// The number that stands for a job's name in every header; never 0.
uint64_t JobId(const std::string& job);

// kFailedPrecondition naming both protocol versions, or both jobs. `job` 0 is a node that knows no
// job yet; a frame of job 0 passes only as HELLO, FAILED or CONTROL, which may come from who knows
// none.
absl::Status CheckAdmission(const pb::FrameHeader& header, uint64_t job);

}  // namespace parley

#endif  // PARLEY_PS_NET_ADMISSION_H_
