// JobMember: how a worker of any kind takes part in a job. It joins through the scheduler,
// registers its tables, hosts the logical workers it is given, and ends with the job.
//
//   JobMember member(env, transport, {.hello = hello, ...}, {.on_welcome = ...});
//   member.Start();                                  // ... on_welcome:
//   member.Register(tables, patience, client_options,
//                   {.begin = [&](const JobMember::Hosted& worker) { ... use worker.client ... },
//                    .drop = [&](uint32_t rank) { ... }});
//
// A logical worker is a rank: its part of the data, its ticks, its sequences. A node hosts one,
// several or none; which ones, the scheduler says in the answer to REGISTER and at any time later
// (ASSIGN). Of two assignments the newer counts, in whatever order they come. Within a generation a
// logical worker that stays only gets to know the new map; a new generation begins everything anew.
//
// Errors of a client and of what is asked end the node: `on_end` says why. Thread-safety: as Env,
// everything on the loop.
#ifndef PARLEY_WORKER_CLIENT_JOB_MEMBER_H_
#define PARLEY_WORKER_CLIENT_JOB_MEMBER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/cluster.pb.h"
#include "ps/base/env.h"
#include "ps/base/ids.h"
#include "ps/net/rpc.h"
#include "ps/net/scheduler_link.h"
#include "ps/net/transport.h"
#include "worker/client/ps_client.h"

namespace parley {

class JobMember {
 public:
  struct Options {
    std::string scheduler;  // endpoint
    absl::Duration join_timeout = absl::Seconds(60);
    pb::Hello hello = {};  // its role is set here
    // Gets lines for the log; empty = silent.
    absl::AnyInvocable<void(const std::string&)> log = nullptr;
  };
  struct Handlers {
    absl::AnyInvocable<void(const pb::Welcome&)> on_welcome;
    // What to say in the next heartbeat. Empty: what the clients wait for.
    absl::AnyInvocable<pb::Heartbeat()> heartbeat = nullptr;
    // Once, at most: OK when the scheduler ended the job well, else why this worker ends.
    absl::AnyInvocable<void(absl::Status)> on_end;
  };
  // A logical worker that is this node's.
  struct Hosted {
    uint32_t rank = 0, incarnation = 0;
    uint64_t generation = 0;
    uint32_t workers = 1;        // of the job; ranks are below
    uint64_t first_tick = 0;     // with which its generation began
    uint64_t start_tick = 0;     // with which it begins
    uint64_t skip_below = 0;     // it pushes nothing but empty gradients below
    uint32_t shards = 0;         // of the map, for people
    PsClient* client = nullptr;  // the member's, until `drop` has returned
  };
  struct Hosting {
    // Begins its work; an error ends the node.
    absl::AnyInvocable<absl::Status(const Hosted&)> begin;
    // It is another node's, or begins anew: stop, and forget its client. Empty: this kind of worker
    // hosts one, which cannot be moved; being told to do so ends the node.
    absl::AnyInvocable<void(uint32_t rank)> drop = nullptr;
  };

  // `env` and `transport` must outlive this.
  JobMember(Env* env, Transport* transport, Options options, Handlers handlers);

  void Start();

  // Says what this worker brings and waits, at most `patience`, for its first assignment. The
  // client of each logical worker is made with `client`, but its rank, incarnation, on_error and
  // log. Nothing is begun once the job is over. After on_welcome, once.
  void Register(const pb::Register& registration, absl::Duration patience, PsClient::Options client,
                Hosting hosting);

  // A request to the scheduler whose answer says nothing but that it was heard; else the node ends.
  // `what` completes "no answer to ... from the scheduler".
  void Ask(pb::Kind kind, std::string body, absl::Duration deadline, const std::string& what,
           absl::AnyInvocable<void()> heard = nullptr);
  // The same for a logical worker: once it is dropped, the answer matters no more. Nor does a
  // refusal by kFailedPrecondition: it is another's already, and the assignment that says so is on
  // its way. REQUIRES: it is hosted here.
  void AskFor(uint32_t rank, pb::Kind kind, std::string body, absl::Duration deadline,
              const std::string& what, absl::AnyInvocable<void()> heard = nullptr);
  // FINISHED of a logical worker: fills in whose it is, and asks as AskFor.
  void Finish(uint32_t rank, pb::Finished finished, absl::Duration deadline);

  // Ends this node from its own side: the scheduler is told why.
  void Fail(const absl::Status& status);

  void Log(const std::string& line);

  // Told to stop, failed or ended: what is under way matters no more.
  bool over() const { return over_; }
  // Valid once on_welcome was called.
  const pb::Welcome& welcome() const { return welcome_; }
  const Rpc& rpc() const { return rpc_; }

 private:
  struct Seat {
    uint32_t incarnation = 0;
    std::unique_ptr<PsClient> client;
    std::shared_ptr<bool> alive;  // for answers that come too late
  };

  SchedulerLink::Options LinkOptions() const;
  SchedulerLink::Handlers LinkHandlers();
  pb::Heartbeat Waiting() const;
  void OnRegistered(absl::StatusOr<Frame> answer);
  absl::StatusOr<std::string> OnAssign(const pb::Assignment& assignment);
  absl::Status Take(const pb::Assignment& assignment);
  absl::Status ConnectShards(const pb::PartitionMap& map);
  void DisconnectOthers(const pb::PartitionMap& map);
  absl::Status Drop(uint32_t rank);
  absl::Status Begin(const pb::Assignment& assignment, uint32_t rank);
  bool IsOurs(const pb::Assignment& assignment, uint32_t rank) const;

  Env* const env_;
  Transport* const transport_;
  Options options_;
  Handlers handlers_;
  Rpc rpc_;
  pb::Welcome welcome_;
  // Set by Register.
  bool registered_ = false;
  PsClient::Options client_options_;
  Hosting hosting_;
  // Of the newest assignment.
  bool assigned_ = false;
  uint64_t generation_ = 0, epoch_ = 0;
  std::map<NodeId, std::string> shards_;  // connected: node -> endpoint
  std::map<uint32_t, Seat> seats_;        // by rank
  uint64_t retries_told_ = 0;             // by FINISHED
  bool over_ = false;
  SchedulerLink link_;  // last: its handlers use the rest
};

}  // namespace parley

#endif  // PARLEY_WORKER_CLIENT_JOB_MEMBER_H_
