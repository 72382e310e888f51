// Who holds what at the start: the first partition map, and the parts of the data. Pure functions.
#ifndef PARLEY_SCHEDULER_ASSIGNMENT_H_
#define PARLEY_SCHEDULER_ASSIGNMENT_H_

#include <vector>

#include "absl/status/statusor.h"
#include "proto/cluster.pb.h"
#include "scheduler/membership.h"

namespace parley {

// The partitions of all tables, dense and sparse, are dealt out to the shards in turn, table after
// table; epoch 1. All partitions of a table are of equal size, or of equal expected size, so each
// table is balanced to within one of them, and so is their number over all tables. Under BSP the
// weights do not depend on it. kInvalidArgument: a table that cannot be laid out, or two of one id.
// REQUIRES: servers and workers are complete and ordered by rank.
absl::StatusOr<pb::Assignment> MakeAssignment(const pb::Register& tables,
                                              const std::vector<Member*>& servers,
                                              const std::vector<Member*>& workers);

}  // namespace parley

#endif  // PARLEY_SCHEDULER_ASSIGNMENT_H_
