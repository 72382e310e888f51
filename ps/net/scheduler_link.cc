#include "ps/net/scheduler_link.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"

namespace parley {
namespace {

// Time for the last answer to leave this node before it goes away.
constexpr absl::Duration kLinger = absl::Milliseconds(200);
// Who joins asks each place for so long, twice at least.
constexpr absl::Duration kJoinTurn = absl::Seconds(1);
constexpr absl::Duration kJoinAttempt = absl::Milliseconds(400);

}  // namespace

SchedulerLink::SchedulerLink(Env* env, Transport* transport, Rpc* rpc, Options options,
                             Handlers handlers)
    : env_(env),
      transport_(transport),
      rpc_(rpc),
      options_(std::move(options)),
      places_(absl::StrSplit(options_.scheduler, ',')),
      handlers_(std::move(handlers)) {
  transport_->SetPeerGone([this](NodeId peer) { OnPeerGone(peer); });
}

SchedulerLink::~SchedulerLink() {
  transport_->SetPeerGone([](NodeId) {});
  env_->Cancel(beat_timer_);
  env_->Cancel(turn_timer_);
  env_->Cancel(end_timer_);
}

void SchedulerLink::Start() {
  // The first comes last, and stays; a place that is none is found out now, not when it is needed.
  for (auto place = places_.rbegin(); place != places_.rend(); ++place) {
    if (absl::Status status = transport_->Connect(kSchedulerNode, *place); !status.ok()) {
      End(status, absl::ZeroDuration());
      return;
    }
  }
  Serve();
  Frame hello;
  hello.header.set_kind(pb::HELLO);
  hello.header.set_body(options_.hello.SerializeAsString());
  CallOptions call{.deadline = options_.join_timeout,
                   .what = absl::StrCat("join request to the scheduler at ", options_.scheduler)};
  // Impatient at first: the scheduler of a job that is just starting may be a moment late.
  call.attempt = absl::Milliseconds(200);
  call.max_attempt = places_.size() > 1 ? kJoinAttempt : absl::Seconds(2);
  rpc_->Call(kSchedulerNode, std::move(hello), std::move(call),
             [this](absl::StatusOr<Frame> answer) { OnHelloAnswer(std::move(answer)); });
  if (places_.size() > 1) turn_timer_ = env_->After(kJoinTurn, [this] { LookElsewhere(); });
}

// The next in turn. Whoever does not lead answers nothing, most likely does not even listen.
void SchedulerLink::LookElsewhere() {
  place_ = (place_ + 1) % places_.size();
  last_turn_ = env_->Now();
  transport_->Connect(kSchedulerNode, places_[place_]).IgnoreError();  // looked at by Start
  if (!joined_) turn_timer_ = env_->After(kJoinTurn, [this] { LookElsewhere(); });
}

// A scheduler that takes over counts those as dead who have not come within node_timeout_ms. All
// have looked at each place by then: they begin after a half of it, and go round in a quarter, or
// as fast as heartbeats go.
absl::Duration SchedulerLink::Turn() const {
  const pb::Cluster& cluster = welcome_.experiment().cluster();
  return std::max(absl::Milliseconds(cluster.heartbeat_ms()),
                  absl::Milliseconds(cluster.node_timeout_ms()) / (4 * places_.size()));
}

void SchedulerLink::Serve() {
  rpc_->Handle(pb::STOP, [this](NodeId from, Frame request) {
    pb::Stop stop;
    // Only the scheduler may stop a job.
    if (from != kSchedulerNode || !ParseBody(request, &stop).ok()) {
      rpc_->ReplyError(from, request.header,
                       absl::PermissionDeniedError("STOP is the scheduler's to say"));
      return;
    }
    rpc_->Reply(from, request.header, Frame());
    if (handlers_.on_stop && !ending_) handlers_.on_stop(stop);
    End(stop.ok() ? absl::OkStatus() : absl::AbortedError(stop.reason()), kLinger);
  });
  rpc_->Handle(pb::PING,
               [this](NodeId from, Frame request) { rpc_->Reply(from, request.header, Frame()); });
  if (!handlers_.on_assign) return;
  rpc_->Handle(pb::ASSIGN, [this](NodeId from, Frame request) { OnAssign(from, request); });
}

void SchedulerLink::OnAssign(NodeId from, const Frame& request) {
  pb::Assignment assignment;
  absl::Status status = from == kSchedulerNode
                            ? ParseBody(request, &assignment)
                            : absl::PermissionDeniedError("ASSIGN is the scheduler's to say");
  // The Welcome may be overtaken by what follows from it.
  if (status.ok() && !joined_) status = absl::UnavailableError("this node is not admitted yet");
  if (status.ok() && ending_) status = absl::FailedPreconditionError("this node is ending");
  if (!status.ok()) {
    rpc_->ReplyError(from, request.header, status);
    return;
  }
  absl::StatusOr<std::string> body = handlers_.on_assign(assignment);
  if (!body.ok()) {
    rpc_->ReplyError(from, request.header, body.status());
    return;
  }
  Frame answer;
  answer.header.set_body(*std::move(body));
  rpc_->Reply(from, request.header, std::move(answer));
}

void SchedulerLink::OnHelloAnswer(absl::StatusOr<Frame> answer) {
  env_->Cancel(turn_timer_);
  if (ending_) return;
  if (answer.ok()) {
    absl::Status parsed = ParseBody(*answer, &welcome_);
    if (!parsed.ok()) answer = parsed;
  }
  if (!answer.ok()) {
    absl::Status status = answer.status();
    if (absl::IsDeadlineExceeded(status)) {
      status = absl::DeadlineExceededError(absl::StrCat(
          status.message(), "; is it running there? --join-timeout is how long to look for it"));
    }
    End(std::move(status), absl::ZeroDuration());
    return;
  }
  rpc_->SetIdentity(welcome_.job_id(), welcome_.incarnation(), welcome_.rank());
  last_heard_ = env_->Now();
  joined_ = true;
  handlers_.on_welcome(welcome_);
  if (!ending_) Beat();
}

// The scheduler may be back already, or take its place again in a moment: the sooner it hears of
// this node, the better. A connection that breaks again and again is no reason for more than a few
// heartbeats a period.
void SchedulerLink::OnPeerGone(NodeId peer) {
  if (peer != kSchedulerNode || !joined_ || ending_) return;
  const absl::Duration period = absl::Milliseconds(welcome_.experiment().cluster().heartbeat_ms());
  if (env_->Now() - last_beat_ < period / 4) return;
  env_->Cancel(beat_timer_);
  Beat();
}

void SchedulerLink::Beat() {
  const pb::Cluster& cluster = welcome_.experiment().cluster();
  last_beat_ = env_->Now();
  const absl::Duration silence = last_beat_ - last_heard_;
  const absl::Duration silent = absl::Milliseconds(cluster.node_timeout_ms());
  const absl::Duration borne = std::max(silent, absl::Milliseconds(cluster.scheduler_timeout_ms()));
  if (silence > borne) {
    // Nobody is there to be told; end at once.
    End(absl::UnavailableError(absl::StrFormat(
            "the scheduler at %s has not answered a heartbeat for %.1f s (scheduler_timeout_ms is "
            "%d)",
            options_.scheduler, absl::ToDoubleSeconds(silence), cluster.scheduler_timeout_ms())),
        absl::ZeroDuration());
    return;
  }
  if (silence > silent) NoteAway(silence);
  if (places_.size() > 1 && silence > silent / 2 && last_beat_ - last_turn_ >= Turn()) {
    LookElsewhere();
  }
  Frame frame;
  frame.header.set_kind(pb::HEARTBEAT);
  frame.header.set_body(handlers_.heartbeat().SerializeAsString());
  const absl::Duration period = absl::Milliseconds(cluster.heartbeat_ms());
  // One try each: the next heartbeat is the retry.
  CallOptions call{
      .deadline = silent, .attempt = silent, .max_attempt = silent, .what = "heartbeat"};
  rpc_->Call(kSchedulerNode, std::move(frame), std::move(call),
             [this](absl::StatusOr<Frame> answer) {
               if (answer.ok()) {
                 OnHeard();
               } else if (answer.status().code() != absl::StatusCode::kDeadlineExceeded) {
                 // The scheduler answers but does not know this node: it has given it up, or has
                 // come back without its memory.
                 End(answer.status(), absl::ZeroDuration());
               }
             });
  beat_timer_ = env_->After(period, [this] { Beat(); });
}

void SchedulerLink::NoteAway(absl::Duration silence) {
  // A transport may have given up a peer that it lost; one that has not does nothing.
  transport_->Connect(kSchedulerNode, places_[place_]).IgnoreError();
  if (std::exchange(away_, true)) return;
  Log(absl::StrFormat(
      "the scheduler at %s has not answered for %.1f s; going on without it, for at most "
      "scheduler_timeout_ms %d",
      options_.scheduler, absl::ToDoubleSeconds(silence),
      welcome_.experiment().cluster().scheduler_timeout_ms()));
}

void SchedulerLink::OnHeard() {
  const absl::Duration silence = env_->Now() - last_heard_;
  last_heard_ = env_->Now();
  if (!std::exchange(away_, false)) return;
  const std::string where = places_.size() > 1 ? absl::StrCat(" at ", places_[place_]) : "";
  Log(absl::StrFormat("the scheduler is back%s after %.1f s", where,
                      absl::ToDoubleSeconds(silence)));
}

void SchedulerLink::Log(const std::string& line) {
  if (handlers_.log) handlers_.log(line);
}

void SchedulerLink::Ask(pb::Kind kind, std::string body, absl::Duration deadline,
                        const std::string& what, Rpc::Callback callback) {
  Frame frame;
  frame.header.set_kind(kind);
  frame.header.set_body(std::move(body));
  CallOptions call{.deadline = deadline, .what = absl::StrCat(what, " to the scheduler")};
  rpc_->Call(kSchedulerNode, std::move(frame), std::move(call), std::move(callback));
}

void SchedulerLink::Fail(const absl::Status& status) {
  if (ending_) return;
  Frame frame;
  frame.header.set_kind(pb::FAILED);
  pb::Stop reason;
  reason.set_ok(false);
  reason.set_reason(std::string(status.message()));
  frame.header.set_body(reason.SerializeAsString());
  rpc_->Tell(kSchedulerNode, std::move(frame));
  End(status, kLinger);
}

void SchedulerLink::End(absl::Status status, absl::Duration after) {
  if (ending_) return;  // the first reason counts
  ending_ = true;
  env_->Cancel(beat_timer_);
  end_timer_ = env_->After(after, [this, status = std::move(status)] {
    ended_ = true;
    handlers_.on_end(status);
  });
}

}  // namespace parley
