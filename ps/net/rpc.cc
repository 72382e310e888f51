#include "ps/net/rpc.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/net/admission.h"

namespace parley {
namespace {

bool IsAnswer(pb::Kind kind) { return kind == pb::REPLY || kind == pb::PARKED; }

// The status that an answer carries; codes that this build does not know become kUnknown.
absl::Status StatusOf(const pb::FrameHeader& answer) {
  const uint32_t code = answer.status_code();
  if (code == 0) return absl::OkStatus();
  if (code > static_cast<uint32_t>(absl::StatusCode::kUnauthenticated)) {
    return absl::UnknownError(absl::StrFormat("status code %d: %s", code, answer.status_message()));
  }
  return absl::Status(static_cast<absl::StatusCode>(code), answer.status_message());
}

bool IsTemporary(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsResourceExhausted(status);
}

}  // namespace

struct Rpc::Outstanding {
  NodeId to;
  Frame request;
  CallOptions options;
  Callback callback;
  absl::Duration began;    // when it was first sent
  absl::Duration attempt;  // the next silence to bear, before jitter
  uint64_t tries = 0;
  bool parked = false;      // the last we heard is that it is held
  std::string waiting_for;  // what the last PARKED named
  absl::Status trouble;     // the last temporary error, from the peer or the transport
  TimerId attempt_timer = kNoTimer;
  TimerId deadline_timer = kNoTimer;
};

Rpc::Rpc(Env* env, Transport* transport)
    : env_(env),
      transport_(transport),
      // Not from 1: the scheduler keeps its NodeId over a restart, and an answer meant for its
      // former self must not fit a request of the new one.
      next_id_(((env->Random() & 0x7fffffff) << 16) + 1) {
  transport_->SetReceiver([this](NodeId from, Frame frame) { OnFrame(from, std::move(frame)); });
}

Rpc::~Rpc() {
  transport_->SetReceiver([](NodeId, Frame) {});
  for (auto& [id, call] : calls_) {
    env_->Cancel(call->attempt_timer);
    env_->Cancel(call->deadline_timer);
  }
}

void Rpc::SetIdentity(uint64_t job, uint32_t incarnation, uint32_t rank) {
  job_ = job;
  incarnation_ = incarnation;
  rank_ = rank;
}

void Rpc::Stamp(uint64_t request_id, pb::FrameHeader* header) const {
  header->set_request_id(request_id);
  header->set_job(job_);
  if (!header->has_incarnation()) header->set_incarnation(incarnation_);
  if (!header->has_rank()) header->set_rank(rank_);
}

CallId Rpc::Call(NodeId to, Frame request, CallOptions options, Callback callback) {
  const uint64_t id = next_id_++;
  auto call = std::make_unique<Outstanding>();
  call->to = to;
  call->request = std::move(request);
  Stamp(id, &call->request.header);
  call->attempt = options.attempt;
  call->options = std::move(options);
  call->callback = std::move(callback);
  call->began = env_->Now();
  call->deadline_timer = env_->After(call->options.deadline, [this, id] { OnDeadline(id); });
  calls_.emplace(id, std::move(call));
  ++counters_.calls;
  SendAttempt(id);
  return CallId{id};
}

void Rpc::SendAttempt(uint64_t id) {
  Outstanding& call = *calls_.at(id);
  ++call.tries;
  absl::Status sent = transport_->Send(call.to, call.request);
  if (!sent.ok() && !IsTemporary(sent)) {
    // Nothing will come of trying again; but the callback never runs inside Call.
    call.attempt_timer =
        env_->After(absl::ZeroDuration(), [this, id, sent = std::move(sent)] { Finish(id, sent); });
    return;
  }
  if (!sent.ok()) call.trouble = std::move(sent);
  ArmAttempt(id, call.attempt);
  call.attempt = std::min(call.attempt * 2, call.options.max_attempt);
}

void Rpc::ArmAttempt(uint64_t id, absl::Duration silence) {
  Outstanding& call = *calls_.at(id);
  env_->Cancel(call.attempt_timer);
  // Jitter keeps nodes that lost the same peer from all coming back at once.
  const double unit = static_cast<double>(env_->Random() >> 11) * 0x1p-53;
  call.attempt_timer =
      env_->After(silence * (0.75 + 0.5 * unit), [this, id] { OnAttemptTimeout(id); });
}

void Rpc::OnAttemptTimeout(uint64_t id) {
  Outstanding& call = *calls_.at(id);
  call.attempt_timer = kNoTimer;
  if (call.parked) {
    // A probe, not a retry: is it still held there? If silence follows, it counts as loss again.
    call.parked = false;
    call.attempt = call.options.attempt;
  } else {
    ++counters_.retries;
  }
  SendAttempt(id);
}

void Rpc::OnDeadline(uint64_t id) {
  Outstanding& call = *calls_.at(id);
  call.deadline_timer = kNoTimer;
  ++counters_.deadline_exceeded;
  std::string message = absl::StrFormat(
      "%s: it did not answer within %s (%d tries)",
      call.options.what.empty()
          ? absl::StrCat(pb::Kind_Name(call.request.header.kind()), " to node ", ToString(call.to))
          : call.options.what,
      absl::FormatDuration(call.options.parked_extends
                               ? absl::Trunc(env_->Now() - call.began, absl::Milliseconds(1))
                               : call.options.deadline),
      call.tries);
  if (!call.waiting_for.empty()) {
    absl::StrAppend(&message, "; it is held there, waiting for ", call.waiting_for);
  }
  if (!call.trouble.ok()) absl::StrAppend(&message, "; last error: ", call.trouble.ToString());
  Finish(id, absl::DeadlineExceededError(message));
}

std::unique_ptr<Rpc::Outstanding> Rpc::Take(uint64_t id) {
  auto found = calls_.find(id);
  if (found == calls_.end()) return nullptr;
  std::unique_ptr<Outstanding> call = std::move(found->second);
  calls_.erase(found);
  env_->Cancel(call->attempt_timer);
  env_->Cancel(call->deadline_timer);
  return call;
}

void Rpc::Finish(uint64_t id, absl::StatusOr<Frame> result) {
  std::unique_ptr<Outstanding> call = Take(id);
  if (call == nullptr) return;
  Callback callback = std::move(call->callback);
  call.reset();  // gives the request's payload back before the callback may want to reuse it
  callback(std::move(result));
}

void Rpc::Cancel(CallId id) { Take(static_cast<uint64_t>(id)); }

void Rpc::Tell(NodeId to, Frame frame) {
  Stamp(0, &frame.header);
  transport_->Send(to, std::move(frame)).IgnoreError();  // unreliable by contract
}

void Rpc::Handle(pb::Kind kind, Handler handler) { handlers_[kind] = std::move(handler); }

void Rpc::SetAdmission(absl::AnyInvocable<absl::Status(NodeId, const pb::FrameHeader&)> admission) {
  admission_ = std::move(admission);
}

std::string Rpc::ParkedFor(CallId id) const {
  auto found = calls_.find(static_cast<uint64_t>(id));
  return found == calls_.end() ? "" : found->second->waiting_for;
}

void Rpc::Reply(NodeId to, const pb::FrameHeader& request, Frame answer) {
  if (request.request_id() == 0) return;  // one-way: nobody waits
  if (answer.header.kind() != pb::PARKED) answer.header.set_kind(pb::REPLY);
  answer.header.clear_incarnation();  // an answer is this node's own, whatever it was made from
  answer.header.clear_rank();
  Stamp(request.request_id(), &answer.header);
  // A lost answer is as good as a lost request: the asker asks again. One that can never be sent is
  // an error to tell.
  absl::Status sent = transport_->Send(to, std::move(answer));
  if (!absl::IsInvalidArgument(sent)) return;
  Frame error;
  error.header.set_kind(pb::REPLY);
  error.header.set_status_code(static_cast<uint32_t>(absl::StatusCode::kInternal));
  error.header.set_status_message(absl::StrCat("the answer cannot be sent: ", sent.message()));
  Stamp(request.request_id(), &error.header);
  transport_->Send(to, std::move(error)).IgnoreError();
}

void Rpc::ReplyError(NodeId to, const pb::FrameHeader& request, const absl::Status& status) {
  Frame answer;
  answer.header.set_status_code(static_cast<uint32_t>(status.raw_code()));
  answer.header.set_status_message(std::string(status.message()));
  Reply(to, request, std::move(answer));
}

void Rpc::ReplyParked(NodeId to, const pb::FrameHeader& request, const std::string& waiting_for) {
  Frame answer;
  answer.header.set_kind(pb::PARKED);
  answer.header.set_status_message(waiting_for);
  Reply(to, request, std::move(answer));
}

void Rpc::OnFrame(NodeId from, Frame frame) {
  absl::Status admitted = CheckPeerRole(frame.peer_role, frame.header);
  if (!admitted.ok()) {
    transport_->NoteRefusal(std::string(admitted.message()));
  } else if (admission_) {
    admitted = admission_(from, frame.header);
  }
  if (IsAnswer(frame.header.kind())) {
    OnAnswer(from, std::move(frame), admitted);
  } else if (!admitted.ok()) {
    ReplyError(from, frame.header, admitted);
  } else if (auto handler = handlers_.find(frame.header.kind()); handler != handlers_.end()) {
    handler->second(from, std::move(frame));
  } else {
    ReplyError(from, frame.header,
               absl::UnimplementedError(absl::StrFormat("this node does not serve %s",
                                                        pb::Kind_Name(frame.header.kind()))));
  }
}

void Rpc::OnAnswer(NodeId from, Frame frame, const absl::Status& admitted) {
  const uint64_t id = frame.header.request_id();
  auto found = calls_.find(id);
  // An answer to a call that is over, or from somebody who was not asked.
  if (found == calls_.end() || found->second->to != from) {
    ++counters_.late_answers;
    return;
  }
  if (!admitted.ok()) {
    // The one asked is of another release or job, and will be next time, too: say so at once.
    Finish(id, admitted);
    return;
  }
  Outstanding& call = *found->second;
  if (frame.header.kind() == pb::PARKED) {
    ++counters_.parked;
    call.parked = true;
    call.waiting_for = frame.header.status_message();
    ArmAttempt(id, call.options.max_attempt);
    if (call.options.parked_extends) {
      env_->Cancel(call.deadline_timer);
      const absl::Duration left =
          std::min(call.options.deadline, call.options.longest - (env_->Now() - call.began));
      call.deadline_timer =
          env_->After(std::max(left, absl::ZeroDuration()), [this, id] { OnDeadline(id); });
    }
    // Last, since the call may be over when it returns.
    auto on_parked = std::exchange(call.options.on_parked, nullptr);
    if (on_parked) on_parked();
    return;
  }
  absl::Status status = StatusOf(frame.header);
  if (IsTemporary(status)) {
    // As silence: the running timer is the back-off. A parked call goes back to short silences.
    if (call.parked) {
      call.parked = false;
      call.attempt = call.options.attempt;
      ArmAttempt(id, call.attempt);
    }
    call.trouble = std::move(status);
    return;
  }
  if (!status.ok()) {
    Finish(id, std::move(status));
  } else {
    Finish(id, std::move(frame));
  }
}

}  // namespace parley
