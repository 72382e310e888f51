// Membership: who is in the job, as what, and who has been heard from. Pure state: no network, time
// is passed in. Owned by the scheduler's loop; not thread-safe.
#ifndef PARLEY_SCHEDULER_MEMBERSHIP_H_
#define PARLEY_SCHEDULER_MEMBERSHIP_H_

#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/cluster.pb.h"
#include "proto/scheduler.pb.h"
#include "ps/base/ids.h"

namespace parley {

struct Member {
  NodeId node = kNoNode;
  pb::Role role = pb::ROLE_UNKNOWN;
  uint32_t rank = 0;   // servers: of the process; workers: of the worker
  uint32_t shard = 0;  // servers
  uint32_t incarnation = 1;
  bool spare = false;    // has no work: beyond what the experiment asks for, or wants none yet
  uint64_t process = 0;  // servers
  bool ready = false;    // workers: has registered
  bool slow = false;     // workers: gives its work away (slow_worker_factor)
  std::string name;      // "host:pid", as the node calls itself
  std::string endpoint;  // servers
  absl::Duration last_heard;
  bool heard_heartbeat = false;

  // "worker 1 (host:4242)", "server 0 shard 2 (host:4243/2)".
  std::string Describe(bool with_shard) const;
};

class Membership {
 public:
  // Nodes that may wait beyond those the experiment asks for, per role.
  static constexpr uint32_t kMaxSpares = 64;
  // Bytes of what a node calls itself, and of its endpoint: they are kept and shown.
  static constexpr size_t kMaxName = 256;

  Membership(std::string job, const pb::Cluster& cluster);

  // Admits a node, or finds it admitted already (HELLO may come twice). The errors are the reason
  // of the refusal: kFailedPrecondition: another job. kInvalidArgument: no role, no endpoint, a
  // shard index beyond shards_per_server or taken. kFailedPrecondition: too many spares, or a node
  // that was removed: it has to come back under another NodeId.
  absl::StatusOr<Member*> Admit(NodeId node, const pb::Hello& hello, absl::Duration now);

  Member* Find(NodeId node);
  void Heard(NodeId node, absl::Duration now);
  // All that do not count as gone: they could not be heard before.
  void HeardAll(absl::Duration now);
  // Forgets any node: it has died, or is let go. Its rank is free.
  void Remove(NodeId node);

  // Before the job has begun: spares that are ready for it take the places of those that have died,
  // under their ranks. Returns who did.
  std::vector<Member*> FillPlaces();

  // For the state that outlives this process, and back. Whoever is there again was heard `now`.
  void Save(pb::SchedulerState* state) const;
  void Load(const pb::SchedulerState& state, absl::Duration now);

  // All that the experiment asks for, ordered by rank and shard; fewer while some are missing.
  std::vector<Member*> servers();
  std::vector<Member*> workers();
  std::vector<Member*> all();
  // Shards of one server process.
  std::vector<Member*> ShardsOf(uint64_t process);

  bool servers_complete() const;
  bool workers_complete() const;
  // "server 1, worker 0, worker 2"; empty when complete.
  std::string Missing() const;

  // The node that has been silent longest, if that is longer than `allowed`; else null.
  Member* Silent(absl::Duration now, absl::Duration allowed);

 private:
  absl::StatusOr<Member*> AdmitServer(NodeId node, const pb::Hello& hello, Member member);
  absl::StatusOr<Member*> AdmitWorker(NodeId node, const pb::Hello& hello, Member member);
  // The rank to give: the one that is asked for, if it is one of `places` and free, else the lowest
  // free one.
  static uint32_t PickRank(const pb::Hello& hello, const std::set<uint32_t>& taken,
                           uint32_t places);
  static constexpr size_t kMaxGone = 1024;
  absl::Status CheckSpares(pb::Role role) const;

  const std::string job_;
  const uint32_t servers_wanted_, shards_, workers_wanted_;
  std::map<NodeId, Member> members_;
  std::map<uint64_t, uint32_t> process_rank_;       // of server processes
  std::set<uint32_t> server_ranks_, worker_ranks_;  // taken
  std::deque<NodeId> gone_;  // the newest that were removed: a HELLO of theirs is only late
};

}  // namespace parley

#endif  // PARLEY_SCHEDULER_MEMBERSHIP_H_
