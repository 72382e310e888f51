// PullHandler: answers pulls, and the second half of a PUSH_PULL - at once where the consistency
// policy allows it for every partition named, later where it does not. Whoever waits is told so,
// and for whom.
//
// Owned by one loop; not thread-safe.
#ifndef PARLEY_PS_SERVER_PULL_HANDLER_H_
#define PARLEY_PS_SERVER_PULL_HANDLER_H_

#include <string>

#include "ps/base/env.h"
#include "ps/base/ids.h"
#include "ps/net/rpc.h"
#include "ps/server/parked_pulls.h"
#include "ps/server/table_request.h"

namespace parley {

class PullHandler {
 public:
  // Both must outlive this.
  PullHandler(Env* env, Rpc* rpc) : env_(env), rpc_(rpc) {}
  ~PullHandler() { env_->Cancel(timer_); }
  PullHandler(const PullHandler&) = delete;
  PullHandler& operator=(const PullHandler&) = delete;

  // Whether this request is held already: then its sender asks if it was lost, and is told what it
  // waits for.
  bool TellIfHeld(NodeId from, const pb::FrameHeader& header);

  // Answers now, or keeps it; answers kResourceExhausted if there is no room. REQUIRES: it is not
  // held.
  void Pull(NodeId from, TableRequest&& request);

  // Something was applied, or somebody left: answers what may read now, in the order of arrival.
  void Release();

  // What the oldest pull that was told so waits for; empty if there is none.
  std::string WaitingFor();

 private:
  // Answers if the policy allows it for every partition; without memory, kResourceExhausted.
  bool Answer(NodeId from, const TableRequest& request);
  // REQUIRES: the policy allows it. Throws std::bad_alloc.
  static Frame Read(const TableRequest& request);
  static std::string WaitsFor(const TableRequest& request);
  void Notify();

  Env* const env_;
  Rpc* const rpc_;
  ParkedPulls parked_;
  TimerId timer_ = kNoTimer;
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_PULL_HANDLER_H_
