// FailureDetector: asks a node whose connection may have broken whether it is still there. One that
// neither answers nor is reached by the transport any more, a short time later, counts as gone.
//
// One that is reached is slow, and it was another's connection that broke: how long it may keep
// silent is not for whoever hangs up to shorten. Nodes that merely keep silent are not its
// business. Thread-safety: as Env, everything on the loop.
#ifndef PARLEY_SCHEDULER_FAILURE_DETECTOR_H_
#define PARLEY_SCHEDULER_FAILURE_DETECTOR_H_

#include <map>

#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"
#include "ps/base/env.h"
#include "ps/base/ids.h"
#include "ps/net/rpc.h"
#include "ps/net/transport.h"

namespace parley {

class FailureDetector {
 public:
  // All must outlive this. `gone` is told of each node that did not answer.
  FailureDetector(Env* env, Transport* transport, Rpc* rpc, absl::Duration heartbeat,
                  absl::AnyInvocable<void(NodeId)> gone);
  ~FailureDetector();

  // Its connection broke, as far as the transport can tell. Again while it is being asked: ignored.
  void Suspect(NodeId node);
  // It matters no more.
  void Clear(NodeId node);

 private:
  void Ask(NodeId node);
  void OnSilence(NodeId node, absl::Duration until);
  bool Reaches(NodeId node);

  Env* const env_;
  Transport* const transport_;
  Rpc* const rpc_;
  const absl::Duration patience_;
  absl::AnyInvocable<void(NodeId)> gone_;
  std::map<NodeId, CallId> asked_;
};

}  // namespace parley

#endif  // PARLEY_SCHEDULER_FAILURE_DETECTOR_H_
