// Rpc: requests and answers over a Transport, with deadlines; the only retry loop in Parley.
//
// A request is resent with exponential back-off and jitter until it is answered or its deadline
// passes. The answerer may see a request several times and must answer each: request_id is the same
// in all of them. An answer PARKED says "I hold it, you wait for X": the caller stops taking
// silence for loss for a while, and X is named should the deadline pass. Answers kResourceExhausted
// and kUnavailable are retried like silence, after a back-off; any other status is final.
//
// Thread-safety: as Env, everything on the loop. Callbacks may start and cancel calls.
#ifndef PARLEY_PS_NET_RPC_H_
#define PARLEY_PS_NET_RPC_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "ps/base/env.h"
#include "ps/net/transport.h"

namespace parley {

enum class CallId : uint64_t {};

struct CallOptions {
  // From the call to the last moment an answer is of use; then the callback gets kDeadlineExceeded.
  absl::Duration deadline = absl::Seconds(60);
  // Silence after which the request is sent again; doubles with every try up to max_attempt, +-25%
  // jitter.
  absl::Duration attempt = absl::Milliseconds(1000);
  absl::Duration max_attempt = absl::Seconds(8);
  // What is asked of whom, for the error: "push of step 7 to server 1".
  std::string what;
  // May be empty. Runs at the first PARKED, once a call; it may start and cancel calls, this one,
  // too.
  absl::AnyInvocable<void()> on_parked = nullptr;
  // The deadline counts from the last PARKED: it is for silence, and what is held may take its
  // time, but not more than this in all.
  bool parked_extends = false;
  absl::Duration longest = absl::InfiniteDuration();
};

struct RpcCounters {
  uint64_t calls = 0, retries = 0, parked = 0, deadline_exceeded = 0, late_answers = 0;
};

class Rpc {
 public:
  using Callback = absl::AnyInvocable<void(absl::StatusOr<Frame>)>;
  using Handler = absl::AnyInvocable<void(NodeId from, Frame request)>;

  // Takes over the transport's receiver. `env` and `transport` must outlive this.
  Rpc(Env* env, Transport* transport);
  ~Rpc();
  Rpc(const Rpc&) = delete;
  Rpc& operator=(const Rpc&) = delete;

  // What every outgoing header carries from now on (job, incarnation, rank); zero before admission.
  // A request or a one-way frame that comes with an incarnation or a rank of its own keeps it: a
  // node may host several logical workers.
  void SetIdentity(uint64_t job, uint32_t incarnation, uint32_t rank);

  // Sends `request` (kind, tick, parts ... set; request_id and identity are filled in here) and
  // calls back exactly once unless cancelled: the answer's frame, or the answer's error status, or
  // kDeadlineExceeded naming options.what, the peer's last PARKED reason and the number of tries.
  // Payload Buffers are held until then.
  CallId Call(NodeId to, Frame request, CallOptions options, Callback callback);

  // The callback will not run. Unknown ids are ignored.
  void Cancel(CallId id);

  // What the answerer last said this call is parked for; empty if it has not.
  std::string ParkedFor(CallId id) const;

  // One-way, unreliable: heartbeats and last words.
  void Tell(NodeId to, Frame frame);

  // Requests and one-way frames of `kind`; without a handler they are answered kUnimplemented.
  void Handle(pb::Kind kind, Handler handler);

  // Answers to `request` (only its request_id is used). Each may be sent any number of times.
  void Reply(NodeId to, const pb::FrameHeader& request, Frame answer);
  void ReplyError(NodeId to, const pb::FrameHeader& request, const absl::Status& status);
  void ReplyParked(NodeId to, const pb::FrameHeader& request, const std::string& waiting_for);

  // Called with every incoming frame before anything else; an error refuses it: a request is
  // answered with the error, an answer ends the call it belongs to with the error. Used to refuse
  // other jobs and protocol versions in one place; by default all are admitted.
  void SetAdmission(
      absl::AnyInvocable<absl::Status(NodeId from, const pb::FrameHeader&)> admission);

  const RpcCounters& counters() const { return counters_; }
  size_t in_flight() const { return calls_.size(); }

 private:
  struct Outstanding;
  void Stamp(uint64_t request_id, pb::FrameHeader* header) const;
  void OnFrame(NodeId from, Frame frame);
  void OnAnswer(NodeId from, Frame frame, const absl::Status& admitted);
  void SendAttempt(uint64_t id);
  void ArmAttempt(uint64_t id, absl::Duration silence);
  void OnAttemptTimeout(uint64_t id);
  void OnDeadline(uint64_t id);
  std::unique_ptr<Outstanding> Take(uint64_t id);  // out of calls_, timers cancelled
  void Finish(uint64_t id, absl::StatusOr<Frame> result);

  Env* const env_;
  Transport* const transport_;
  uint64_t job_ = 0;
  uint32_t incarnation_ = 0, rank_ = 0;
  uint64_t next_id_;
  absl::flat_hash_map<uint64_t, std::unique_ptr<Outstanding>> calls_;
  std::map<int, Handler> handlers_;  // stays put when a handler adds another
  absl::AnyInvocable<absl::Status(NodeId, const pb::FrameHeader&)> admission_;
  RpcCounters counters_;
};

}  // namespace parley

#endif  // PARLEY_PS_NET_RPC_H_
