// Who holds what at the start: the first partition map, and the parts of the data. Pure functions.
#ifndef PARLEY_SCHEDULER_ASSIGNMENT_H_
#define PARLEY_SCHEDULER_ASSIGNMENT_H_

#include <vector>

#include "absl/status/statusor.h"
#include "proto/cluster.pb.h"
#include "scheduler/membership.h"

namespace parley {

// Partition p of every table goes to shard p modulo the number of shards; epoch 1. All partitions
// of a table are of equal size, so this is balanced to within one. Under BSP the weights do not
// depend on it. kInvalidArgument: a table that cannot be laid out. REQUIRES: servers and workers
// are complete and ordered by rank.
absl::StatusOr<pb::Assignment> MakeAssignment(const pb::Register& tables,
                                              const std::vector<Member*>& servers,
                                              const std::vector<Member*>& workers);

}  // namespace parley

#endif  // PARLEY_SCHEDULER_ASSIGNMENT_H_
