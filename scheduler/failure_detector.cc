#include "scheduler/failure_detector.h"

#include <algorithm>
#include <utility>

namespace parley {
namespace {

// A connection that broke while both ends live stands again within about 0.1 s.
constexpr absl::Duration kShortest = absl::Milliseconds(150), kLongest = absl::Milliseconds(400);
// For one that is there as far as the transport knows: at least so long, and two heartbeats.
constexpr absl::Duration kLeastForSlow = absl::Seconds(1);

}  // namespace

FailureDetector::FailureDetector(Env* env, Transport* transport, Rpc* rpc, absl::Duration heartbeat,
                                 absl::AnyInvocable<void(NodeId)> gone)
    : env_(env),
      transport_(transport),
      rpc_(rpc),
      short_(std::clamp(heartbeat, kShortest, kLongest)),
      long_(std::max(kLeastForSlow, 2 * heartbeat)),
      gone_(std::move(gone)) {}

FailureDetector::~FailureDetector() {
  for (const auto& [node, call] : asked_) rpc_->Cancel(call);
}

void FailureDetector::Suspect(NodeId node) {
  if (!asked_.contains(node)) Ask(node, short_, false);
}

void FailureDetector::Ask(NodeId node, absl::Duration patience, bool last) {
  Frame frame;
  frame.header.set_kind(pb::PING);
  CallOptions call{.deadline = patience,
                   .attempt = short_ / 4,
                   .max_attempt = short_ / 2,
                   .what = "sign of life"};
  const absl::Duration until = env_->Now() + patience;
  asked_[node] = rpc_->Call(
      node, std::move(frame), std::move(call),
      [this, node, until, patience, last](absl::StatusOr<Frame> answer) {
        asked_.erase(node);
        // Whatever else it says, it lives.
        const absl::StatusCode code = answer.status().code();
        if (code == absl::StatusCode::kDeadlineExceeded || code == absl::StatusCode::kUnavailable) {
          OnSilence(node, until, patience, last);
        }
      });
}

void FailureDetector::OnSilence(NodeId node, absl::Duration until, absl::Duration patience,
                                bool last) {
  // Timers run before messages are read: if this process itself stood still, the answer may be
  // here.
  if (env_->Now() - until > patience / 4) return Ask(node, patience, last);
  if (!last && Reaches(node)) return Ask(node, long_ - short_, true);
  gone_(node);
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
