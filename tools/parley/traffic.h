// What a worker and a server will say to each other in a step, before anything runs.
//
// Payload is exact for codecs of a fixed size, and a bound with zstd. Frame headers are real ones,
// made with the numbers that a run has in its middle, so what the transports count (header and
// payload, without TCP's own) is foretold within about a percent. Not foretold: what happens once
// (joining, the first pull, which a codec with state sends whole), heartbeats, evaluation, repeats.
// Pure.
#ifndef PARLEY_TOOLS_PARLEY_TRAFFIC_H_
#define PARLEY_TOOLS_PARLEY_TRAFFIC_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/cluster.pb.h"
#include "proto/experiment.pb.h"
#include "ps/base/dense_layout.h"
#include "worker/stage_plan.h"
#include "worker/workload.h"

namespace parley {

// Bytes a step between one worker and one server, all its shards together; the mean of the steps
// that were looked at.
struct LinkTraffic {
  double pushed = 0, pulled = 0;        // values as they travel, and keys with what they go along
  double to_server = 0, to_worker = 0;  // frames, as TransportCounters count them
  double requests = 0;
};

struct Traffic {
  std::vector<LinkTraffic> links;  // by server; every worker has one to each
  bool bound = false;              // zstd: what is sent is at most that
  double keys = 0;                 // of an embedding, each once: by a worker in a step
};

// `steps`: of the whole run. Errors: codecs that there are not, tables that cannot be.
absl::StatusOr<Traffic> ForetellTraffic(const pb::Experiment& experiment, const Workload& workload,
                                        const DenseLayout& layout, uint64_t steps);

}  // namespace parley

#endif  // PARLEY_TOOLS_PARLEY_TRAFFIC_H_
