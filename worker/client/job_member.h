// JobMember: how a worker of any kind takes part in a job. It joins through the scheduler,
// registers its tables, reaches the servers it is assigned, and ends with the job.
//
//   JobMember member(env, transport, {.hello = hello, ...}, {.on_welcome = ...});
//   member.Start();                                  // ... on_welcome:
//   member.Register(tables, patience, client_options,
//                   [&](const pb::Assignment&, PsClient* client) { ... });
//
// Errors of the client and of what is asked end the node: `on_end` says why. Thread-safety: as Env,
// everything on the loop.
#ifndef PARLEY_WORKER_CLIENT_JOB_MEMBER_H_
#define PARLEY_WORKER_CLIENT_JOB_MEMBER_H_

#include <memory>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/cluster.pb.h"
#include "ps/base/env.h"
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
    // What to say in the next heartbeat. Empty: what the client waits for.
    absl::AnyInvocable<pb::Heartbeat()> heartbeat = nullptr;
    // Once, at most: OK when the scheduler ended the job well, else why this worker ends.
    absl::AnyInvocable<void(absl::Status)> on_end;
  };
  // Begins the work; an error ends the node. The client is the member's.
  using OnAssigned = absl::AnyInvocable<absl::Status(const pb::Assignment&, PsClient*)>;

  // `env` and `transport` must outlive this.
  JobMember(Env* env, Transport* transport, Options options, Handlers handlers);

  void Start();

  // Says what this worker brings and waits, at most `patience`, for its assignment; then connects
  // to the shards. `client`'s on_error and log are set here. `on_assigned` is not called once the
  // job is over. After on_welcome, once.
  void Register(const pb::Register& registration, absl::Duration patience, PsClient::Options client,
                OnAssigned on_assigned);

  // A request to the scheduler whose answer says nothing but that it was heard; else the node ends.
  // `what` completes "no answer to ... from the scheduler".
  void Ask(pb::Kind kind, std::string body, absl::Duration deadline, const std::string& what,
           absl::AnyInvocable<void()> heard = nullptr);

  // Ends this node from its own side: the scheduler is told why.
  void Fail(const absl::Status& status);

  void Log(const std::string& line);

  // Told to stop, failed or ended: what is under way matters no more.
  bool over() const { return over_; }
  // Valid once on_welcome was called.
  const pb::Welcome& welcome() const { return welcome_; }
  const Rpc& rpc() const { return rpc_; }

 private:
  SchedulerLink::Options LinkOptions() const;
  SchedulerLink::Handlers LinkHandlers();
  absl::Status OnAssignment(absl::StatusOr<Frame> answer, PsClient::Options client,
                            OnAssigned& on_assigned);

  Env* const env_;
  Transport* const transport_;
  Options options_;
  Handlers handlers_;
  Rpc rpc_;
  pb::Welcome welcome_;
  std::unique_ptr<PsClient> client_;
  bool over_ = false;
  SchedulerLink link_;  // last: its handlers use the rest
};

}  // namespace parley

#endif  // PARLEY_WORKER_CLIENT_JOB_MEMBER_H_
