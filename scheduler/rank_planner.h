// The workers' part of a plan: which node hosts which logical worker. Pure; see planner.h.
#ifndef PARLEY_SCHEDULER_RANK_PLANNER_H_
#define PARLEY_SCHEDULER_RANK_PLANNER_H_

#include "scheduler/planner.h"

namespace parley {

// Fills in worker_node and worker_incarnation of plan->next, moved_ranks, orphans and settled.
//   ranks of dead nodes   to the node with the fewest; if several have, to the one of that place
//   a node with two or more than another gives it one
//   a slow node           gives its ranks to a node that has none, or else to the fastest, if that
//                         does two of them sooner than the slow one its own
void PlanRanks(const PlanInput& input, const pb::Assignment& current, Plan* plan);

}  // namespace parley

#endif  // PARLEY_SCHEDULER_RANK_PLANNER_H_
