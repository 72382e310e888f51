// Rounds: tells all nodes of a new assignment, the servers first. Docs: decision 014, "a round".
//
// ASSIGN to every live server; once all have answered, the assignment is complete: workers that
// begin know with which step. Then ASSIGN to every worker node. A round that is begun while another
// is under way takes its place. Thread-safety: as Env, everything on the loop.
#ifndef PARLEY_SCHEDULER_ROUNDS_H_
#define PARLEY_SCHEDULER_ROUNDS_H_

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/cluster.pb.h"
#include "ps/base/env.h"
#include "ps/base/ids.h"
#include "ps/net/rpc.h"

namespace parley {

class Rounds {
 public:
  struct Target {
    NodeId node = kNoNode;
    std::string name;  // for errors: "server 1 shard 0 (host:42)"
  };
  struct Handlers {
    // Every server does as the assignment says; `workers_to_tell` is asked then.
    absl::AnyInvocable<void(const pb::Assignment&)> on_servers_ready;
    absl::AnyInvocable<std::vector<Target>()> workers_to_tell;
    // And every worker node knows of it; how long it took since Run.
    absl::AnyInvocable<void(absl::Duration)> on_done;
    // A node has answered with an error, or not within the deadline. The round waits until it is
    // cancelled, or run again.
    absl::AnyInvocable<void(NodeId, const absl::Status&)> on_error;
    // A server has lost copies that it should become primary of (Assigned.lacks). Likewise.
    absl::AnyInvocable<void(NodeId, const pb::Assigned&)> on_lacks;
  };

  // Both must outlive this. `deadline` is for each node's answer, and for its silence while it says
  // that it is at it (PARKED): a checkpoint may take long to read.
  Rounds(Env* env, Rpc* rpc, absl::Duration deadline, Handlers handlers);
  ~Rounds();

  // `skip`: worker_loss SKIP, workers begin with what nobody has anything of.
  void Run(pb::Assignment assignment, const std::vector<Target>& servers, bool skip);
  void Cancel();
  // A server that matters no more is not waited for.
  void Drop(NodeId server);

  // Servers that have not answered yet.
  const std::map<NodeId, CallId>& awaited() const { return servers_; }

  // A server has said that it is at it.
  bool parked() const;

  // Whether `node`, by `assignment`, is the primary of any partition.
  static bool OwnsAny(const pb::Assignment& assignment, NodeId node);

 private:
  void Call(const Target& target, std::map<NodeId, CallId>* calls,
            absl::AnyInvocable<void(NodeId, Frame)> answered);
  void OnServer(NodeId node, const Frame& answer);
  void OnServersReady();
  void FillStarts();
  void TellWorkers();
  void Done();

  Env* const env_;
  Rpc* const rpc_;
  const absl::Duration deadline_;
  Handlers handlers_;
  pb::Assignment assignment_;
  bool skip_ = false;
  absl::Duration began_;
  std::map<NodeId, CallId> servers_, workers_;  // that have not answered
  std::vector<pb::Assigned> answers_;           // of those that own partitions
};

}  // namespace parley

#endif  // PARLEY_SCHEDULER_ROUNDS_H_
