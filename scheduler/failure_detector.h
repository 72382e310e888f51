// FailureDetector: asks a node whose connection broke whether it is still there. One that does not
// answer, by anything, within a short time counts as dead at once: its process is gone, not slow.
//
// Nodes that merely keep silent are not its business. Thread-safety: as Env, everything on the
// loop.
#ifndef PARLEY_SCHEDULER_FAILURE_DETECTOR_H_
#define PARLEY_SCHEDULER_FAILURE_DETECTOR_H_

#include <map>

#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"
#include "ps/base/ids.h"
#include "ps/net/rpc.h"

namespace parley {

class FailureDetector {
 public:
  // `rpc` must outlive this. `gone` is told of each node that did not answer.
  FailureDetector(Rpc* rpc, absl::Duration heartbeat, absl::AnyInvocable<void(NodeId)> gone);
  ~FailureDetector();

  // Its connection broke, as far as the transport can tell. Again while it is being asked: ignored.
  void Suspect(NodeId node);
  // It said something, or matters no more.
  void Clear(NodeId node);

  absl::Duration patience() const { return patience_; }

 private:
  Rpc* const rpc_;
  const absl::Duration patience_;
  absl::AnyInvocable<void(NodeId)> gone_;
  std::map<NodeId, CallId> asked_;
};

}  // namespace parley

#endif  // PARLEY_SCHEDULER_FAILURE_DETECTOR_H_
