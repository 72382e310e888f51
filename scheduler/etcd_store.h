// EtcdStore: a StateStore in etcd, for schedulers on several hosts of which one leads at a time.
//
//   /parley/JOB/leader  who leads, bound to the leader's lease: gone when the lease is
//   /parley/JOB/state   the last state saved
//
// The state is written only while the writer's lease holds the first, and only over what the writer
// knows to be there: a save that comes late undoes no other.
//
// Open waits until nobody leads. The one that has it keeps its lease alive; if it cannot for as
// long as the lease lasts, or the lease is gone, `on_lost` is called once: another may lead by
// then, so this process must end without telling anybody. Saves fail with kFailedPrecondition then.
// A process that has stood still for that long is told by a timer of the loop's next round. Before
// it come only messages of the round in which it stopped, and the ends of saves; what is decided
// upon them is not saved any more, so not done. The timer does not see a machine that was suspended
// with all its clocks: that process is told by etcd, when it next keeps its lease alive.
//
// Errors: as EtcdClient. Open: kUnavailable or kResourceExhausted if etcd does not answer, or is
// too busy, the first time (who waits, or leads by now, asks again); kCancelled if it has waited,
// and the job is over: its state is gone, which a leader that dies leaves. Save: kResourceExhausted
// for a state that is too large for etcd (1.5 MiB by default). Thread-safety: as OffloadedStore;
// give the loop two threads to offload to, so that a long work elsewhere does not cost the lease.
#ifndef PARLEY_SCHEDULER_ETCD_STORE_H_
#define PARLEY_SCHEDULER_ETCD_STORE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "scheduler/etcd_client.h"
#include "scheduler/offloaded_store.h"

namespace parley {

class EtcdStore : public OffloadedStore {
 public:
  struct Options {
    std::vector<std::string> addresses;  // EtcdClient::ParseAddresses
    std::string job;
    std::string self;  // for people: "host:pid"
    // How long a leader may be silent before another takes over. Shorter: a quicker change;
    // longer: a leader outlives a longer hiccup of the network. Whole seconds, 2 at least.
    absl::Duration ttl = absl::Seconds(5);
    // Gets lines for people; may be null.
    absl::AnyInvocable<void(const std::string&)> log = nullptr;
    absl::AnyInvocable<void(const absl::Status&)> on_lost = nullptr;
  };
  explicit EtcdStore(Options options);

  void Attach(Env* env) override;
  absl::Status Forget() override;

  // Who led the job when Open had to wait; empty: nobody did.
  const std::string& waited_for() const { return waiting_for_; }

 protected:
  absl::StatusOr<std::optional<std::string>> OpenNow() override;
  absl::Status SaveNow(const std::string& state) override;
  void OnOpened() override;

 private:
  std::string LeaderKey() const { return "/parley/" + options_.job + "/leader"; }
  std::string StateKey() const { return "/parley/" + options_.job + "/state"; }
  absl::Status Lead();
  bool MayHaveRunOut() const;
  absl::Status NoMoreLeader() const;
  void ScheduleBeat(absl::Duration after);
  void Beat();
  void OnBeat(absl::Duration asked, const absl::Status& status);
  void AwaitExpiry();
  void Lose();

  Options options_;
  EtcdClient client_;
  int64_t lease_ = 0;        // OpenNow's until opened_, and from then on only read, until Forget
  std::string waiting_for_;  // OpenNow's: who leads
  bool seen_state_ = false;  // OpenNow's: the one that leads had saved something
  bool opened_ = false;      // with this lease, so that it is kept alive
  int64_t revision_ = 0;     // of the state in etcd, by OpenNow or the last save
  // When the last question went out by whose answer the lease was there, by SteadyNow(): an Env's
  // clock ends with it. Lead's until Open is done, then the loop's.
  absl::Duration proved_;

  // Owned by the loop.
  TimerId expiry_ = kNoTimer;  // when the lease ends, by the last proof that it is there
  bool beating_ = false, lost_ = false;
};

}  // namespace parley

#endif  // PARLEY_SCHEDULER_ETCD_STORE_H_
