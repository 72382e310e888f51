#include "scheduler/failure_detector.h"

#include <algorithm>
#include <utility>

namespace parley {
namespace {

// A connection that broke while both ends live stands again within about 0.1 s.
constexpr absl::Duration kShortest = absl::Milliseconds(150), kLongest = absl::Milliseconds(400);

}  // namespace

FailureDetector::FailureDetector(Env* env, Transport* transport, Rpc* rpc, absl::Duration heartbeat,
                                 absl::AnyInvocable<void(NodeId)> gone)
    : env_(env),
      transport_(transport),
      rpc_(rpc),
      patience_(std::clamp(heartbeat, kShortest, kLongest)),
      gone_(std::move(gone)) {}

FailureDetector::~FailureDetector() {
  for (const auto& [node, call] : asked_) rpc_->Cancel(call);
}

void FailureDetector::Suspect(NodeId node) {
  if (!asked_.contains(node)) Ask(node);
}

void FailureDetector::Ask(NodeId node) {
  Frame frame;
  frame.header.set_kind(pb::PING);
  CallOptions call{.deadline = patience_,
                   .attempt = patience_ / 4,
                   .max_attempt = patience_ / 2,
                   .what = "sign of life"};
  const absl::Duration until = env_->Now() + patience_;
  asked_[node] = rpc_->Call(
      node, std::move(frame), std::move(call), [this, node, until](absl::StatusOr<Frame> answer) {
        asked_.erase(node);
        // Whatever else it says, it lives.
        const absl::StatusCode code = answer.status().code();
        if (code == absl::StatusCode::kDeadlineExceeded || code == absl::StatusCode::kUnavailable) {
          OnSilence(node, until);
        }
      });
}

void FailureDetector::OnSilence(NodeId node, absl::Duration until) {
  // Timers run before messages are read: if this process itself stood still, the answer may be
  // here.
  if (env_->Now() - until > patience_ / 4) return Ask(node);
  if (!Reaches(node)) gone_(node);
}

// By the transport's word for one more frame: it does not say so of the ones before.
bool FailureDetector::Reaches(NodeId node) {
  Frame frame;
  frame.header.set_kind(pb::PING);
  return !absl::IsUnavailable(transport_->Send(node, std::move(frame)));
}

void FailureDetector::Clear(NodeId node) {
  auto found = asked_.find(node);
  if (found == asked_.end()) return;
  rpc_->Cancel(found->second);
  asked_.erase(found);
}

}  // namespace parley
