#include "scheduler/failure_detector.h"

#include <algorithm>
#include <utility>

namespace parley {
namespace {

// A connection that broke while both ends live stands again within about 0.1 s.
constexpr absl::Duration kShortest = absl::Milliseconds(150), kLongest = absl::Milliseconds(400);

}  // namespace

FailureDetector::FailureDetector(Rpc* rpc, absl::Duration heartbeat,
                                 absl::AnyInvocable<void(NodeId)> gone)
    : rpc_(rpc), patience_(std::clamp(heartbeat, kShortest, kLongest)), gone_(std::move(gone)) {}

FailureDetector::~FailureDetector() {
  for (const auto& [node, call] : asked_) rpc_->Cancel(call);
}

void FailureDetector::Suspect(NodeId node) {
  if (asked_.contains(node)) return;
  Frame frame;
  frame.header.set_kind(pb::PING);
  CallOptions call{.deadline = patience_,
                   .attempt = patience_ / 4,
                   .max_attempt = patience_ / 2,
                   .what = "sign of life"};
  asked_[node] = rpc_->Call(
      node, std::move(frame), std::move(call), [this, node](absl::StatusOr<Frame> answer) {
        asked_.erase(node);
        // Whatever else it says, it lives.
        const absl::StatusCode code = answer.status().code();
        if (code == absl::StatusCode::kDeadlineExceeded || code == absl::StatusCode::kUnavailable) {
          gone_(node);
        }
      });
}

void FailureDetector::Clear(NodeId node) {
  auto found = asked_.find(node);
  if (found == asked_.end()) return;
  rpc_->Cancel(found->second);
  asked_.erase(found);
}

}  // namespace parley
