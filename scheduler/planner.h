// The planner: which partitions and logical workers go where, when nodes have died, come, or are
// to go. Docs: decision 014, "a round".
//
// A pure function, and without memory: what is under way can be seen in the current assignment (a
// copy that is not synced is being brought up; a copy too many is there to take over).
// Deterministic. A partition is always owned by who owned it or by a synced copy, or by one that
// stands by, which was synced when the present owner was appointed, if that has refused; no process
// holds it twice.
#ifndef PARLEY_SCHEDULER_PLANNER_H_
#define PARLEY_SCHEDULER_PLANNER_H_

#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "proto/cluster.pb.h"
#include "ps/base/ids.h"

namespace parley {

struct PlanServer {
  NodeId node = kNoNode;
  uint64_t process = 0;  // equal for all shards of one process
  uint32_t rank = 0;     // of the process
  uint32_t shard = 0;
  std::string endpoint;
  uint32_t incarnation = 1;
  std::string host = "";  // copies of a partition go to different ones, where there are
};
struct PlanWorker {
  NodeId node = kNoNode;
  uint32_t place = 0;       // the rank that it was admitted as: preferred to others
  bool slow = false;        // gives its ranks away where that helps, and is given none
  double step_seconds = 0;  // computing of one step; 0: not known
};

struct PlanInput {
  std::vector<PlanServer> servers;  // all shards of the processes that live
  std::vector<PlanWorker> workers;  // nodes that live and are ready
  uint32_t servers_wanted = 1;      // processes that shall hold partitions; the others are spares
  uint32_t replicas = 0;
  std::set<uint32_t> finished;  // ranks that are done: they need no node any more
  bool move_living = true;      // ranks of living nodes may move, too
  // False: no partition is copied, so none moves on purpose, and `replicas` counts for nothing.
  bool partitions_move = true;
  uint32_t max_moves = 4;  // partitions that are on their way at the same time for balance
  // Partitions, with their table's place in the map, whose owner has nothing to begin with and has
  // said so: it was appointed by the current assignment or one before, and never was the primary.
  std::set<std::pair<size_t, uint32_t>> vacant;
};

struct Plan {
  // A partition has lost its primary and has no synced copy: nothing in `next` is of use.
  bool lost = false;
  uint32_t lost_table = 0, lost_partition = 0;

  bool changed = false;  // from the current assignment; the epoch of `next` is one more then
  pb::Assignment next;
  uint32_t taken_over = 0;            // partitions whose primary had died
  std::set<NodeId> heirs;             // who took them over
  uint32_t moved = 0;                 // partitions whose primary lives, and is another now
  std::vector<uint32_t> moved_ranks;  // logical workers that go to another node
  bool orphans = false;               // ranks are left that no living node could take
  bool settled = true;                // no copy is being brought up and nothing is left to move
};

// REQUIRES: `current` is a whole assignment: every partition has an owner, every rank a node.
Plan MakePlan(const PlanInput& input, const pb::Assignment& current);

}  // namespace parley

#endif  // PARLEY_SCHEDULER_PLANNER_H_
