// Responder: answers requests about tables - at once where everything that they name allows it,
// later where it does not. Whoever waits is told so, and for whom.
//
//   PUSH       when every part may be acknowledged: with copies elsewhere, once they have it
//   PULL       when the consistency policy allows the read on every partition
//   PUSH_PULL  when both
//   LEAVE      when every partition may acknowledge it
//
// Owned by one loop; not thread-safe.
#ifndef PARLEY_PS_SERVER_RESPONDER_H_
#define PARLEY_PS_SERVER_RESPONDER_H_

#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "ps/base/env.h"
#include "ps/base/ids.h"
#include "ps/net/rpc.h"
#include "ps/server/parked_requests.h"
#include "ps/server/table_request.h"

namespace parley {

class Responder {
 public:
  // Both must outlive this.
  Responder(Env* env, Rpc* rpc) : env_(env), rpc_(rpc) {}
  ~Responder();
  Responder(const Responder&) = delete;
  Responder& operator=(const Responder&) = delete;

  // Whether this request is held already: then its sender asks if it was lost, and is told what it
  // waits for.
  bool TellIfHeld(NodeId from, const pb::FrameHeader& header);

  // Answers now, or keeps it, and says so at once if `tell`; answers kResourceExhausted if there is
  // no room. REQUIRES: it is not held.
  void Answer(NodeId from, TableRequest&& request, bool tell = false);

  // Something was applied, became durable, or somebody left: answers what may be answered now, in
  // the order of arrival.
  void Release();
  // The same, soon: many changes make one pass.
  void ReleaseSoon();

  // Answers those for which `which` holds with `status`, and forgets them.
  void Refuse(absl::FunctionRef<bool(NodeId from, const TableRequest&)> which,
              const absl::Status& status);

  // What the oldest request that was told so waits for; empty if there is none.
  std::string WaitingFor();

 private:
  // Answers if everything allows it; a read without memory with kResourceExhausted.
  bool TryAnswer(NodeId from, const TableRequest& request);
  // REQUIRES: the policy allows it. Throws std::bad_alloc.
  static Frame Read(const TableRequest& request);
  static bool MayAcknowledge(const TableRequest& request);
  static std::string WaitsFor(const TableRequest& request);
  void Notify();

  Env* const env_;
  Rpc* const rpc_;
  ParkedRequests parked_;
  TimerId timer_ = kNoTimer;
  TimerId release_timer_ = kNoTimer;
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_RESPONDER_H_
