// SchedulerLink: a server's or worker's tie to the scheduler. It joins the job, beats, and learns
// when to stop.
//
// Join: HELLO until a Welcome or a refusal, within `join_timeout`. Then a HEARTBEAT every
// heartbeat_ms of the experiment, and one at once when the connection breaks. A scheduler that
// answers none for node_timeout_ms is away: the node goes on without it, and keeps asking, for
// scheduler_timeout_ms. One that answers that it does not know this node ends it. STOP, ASSIGN and
// PING may come at any time and are answered as often as they are asked. Where several schedulers
// may lead, one is asked at a time, and the next in turn when it keeps silent: sooner than the one
// that takes over gives this node up. Thread-safety: as Env, everything on the loop.
#ifndef PARLEY_PS_NET_SCHEDULER_LINK_H_
#define PARLEY_PS_NET_SCHEDULER_LINK_H_

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/cluster.pb.h"
#include "ps/base/env.h"
#include "ps/net/rpc.h"

namespace parley {

class SchedulerLink {
 public:
  struct Options {
    // Endpoint, "tcp://host:port"; with commas between them those of all schedulers of which one
    // leads.
    std::string scheduler;
    absl::Duration join_timeout = absl::Seconds(60);
    pb::Hello hello;
  };
  struct Handlers {
    // Admitted; identity is set on the Rpc already. Once.
    absl::AnyInvocable<void(const pb::Welcome&)> on_welcome;
    // What to say in the next heartbeat.
    absl::AnyInvocable<pb::Heartbeat()> heartbeat;
    // ASSIGN, whenever it comes: what it returns is the body of the answer, or its error
    // (kUnavailable: ask again). Empty: ASSIGN is not served here.
    absl::AnyInvocable<absl::StatusOr<std::string>(const pb::Assignment&)> on_assign;
    // Told to stop; on_end follows. Once; may be empty.
    absl::AnyInvocable<void(const pb::Stop&)> on_stop;
    // One line: the scheduler is away, it is back. May be empty.
    absl::AnyInvocable<void(const std::string&)> log;
    // The end, once, at most: OK after a STOP with ok (a little later, so that the answer gets
    // out); else why: refused, nobody there, scheduler silent, or the reason of the STOP.
    absl::AnyInvocable<void(absl::Status)> on_end;
  };

  // All of them must outlive this; `transport` gets connected to the scheduler by Start, and its
  // SetPeerGone is this link's.
  SchedulerLink(Env* env, Transport* transport, Rpc* rpc, Options options, Handlers handlers);
  ~SchedulerLink();

  void Start();

  // Ends the node from its own side: tells the scheduler why (best effort) and calls on_end(status)
  // a little later.
  void Fail(const absl::Status& status);

  // A request to the scheduler with a deadline; `what` completes "no answer to ... from the
  // scheduler".
  void Ask(pb::Kind kind, std::string body, absl::Duration deadline, const std::string& what,
           Rpc::Callback callback);

  bool ended() const { return ended_; }

 private:
  void Serve();
  void OnAssign(NodeId from, const Frame& request);
  void OnHelloAnswer(absl::StatusOr<Frame> answer);
  void OnPeerGone(NodeId peer);
  void Beat();
  void NoteAway(absl::Duration silence);
  void LookElsewhere();
  absl::Duration Turn() const;
  void OnHeard();
  void Log(const std::string& line);
  void End(absl::Status status, absl::Duration after);

  Env* const env_;
  Transport* const transport_;
  Rpc* const rpc_;
  const Options options_;
  const std::vector<std::string> places_;  // of options_.scheduler, one at least
  size_t place_ = 0;                       // where it is looked for now
  Handlers handlers_;
  pb::Welcome welcome_;
  bool ending_ = false;
  bool ended_ = false;
  bool joined_ = false;
  bool away_ = false;  // the log says so
  absl::Duration last_heard_, last_beat_;
  absl::Duration last_turn_;  // when the place changed
  TimerId beat_timer_ = kNoTimer;
  TimerId turn_timer_ = kNoTimer;  // until joined
  TimerId end_timer_ = kNoTimer;
};

// Parses a request's or answer's body; kInvalidArgument names the message type.
template <typename Message>
absl::Status ParseBody(const Frame& frame, Message* message) {
  if (message->ParseFromString(frame.header.body())) return absl::OkStatus();
  return absl::InvalidArgumentError("the body of kind " + pb::Kind_Name(frame.header.kind()) +
                                    " is no valid " + message->GetTypeName());
}

}  // namespace parley

#endif  // PARLEY_PS_NET_SCHEDULER_LINK_H_
