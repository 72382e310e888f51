#include "scheduler/etcd_store.h"

#include <chrono>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"

namespace parley {
namespace {

// A third of the lease for each try, so that one may be lost.
constexpr int kBeatsPerLease = 3;
constexpr absl::Duration kSilentPause = absl::Milliseconds(200);
// What etcd takes in one request, unless its administrator says otherwise.
constexpr size_t kMaxState = 1536u << 10;

absl::Duration SteadyNow() {
  return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

// What a cluster says that chooses a leader, or has too much to do.
bool IsPassing(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsResourceExhausted(status);
}

}  // namespace

EtcdStore::EtcdStore(Options options)
    : options_(std::move(options)), client_(options_.addresses, options_.ttl / kBeatsPerLease) {}

absl::Status EtcdStore::NoMoreLeader() const {
  return absl::FailedPreconditionError(absl::StrCat(
      "the lease of job '", options_.job, "' in etcd is lost: another scheduler may lead it now"));
}

absl::Status EtcdStore::Lead() {
  absl::StatusOr<std::optional<std::string>> leader = client_.Get(LeaderKey());
  if (!leader.ok()) return leader.status();
  if (!*leader) {
    const absl::Duration asked = SteadyNow();
    absl::StatusOr<int64_t> lease = client_.Grant(options_.ttl);
    if (!lease.ok()) return lease.status();
    absl::StatusOr<bool> claimed = client_.Claim(LeaderKey(), options_.self, *lease);
    if (claimed.ok() && *claimed) {
      lease_ = *lease;
      proved_ = asked;
      return absl::OkStatus();
    }
    client_.Revoke(*lease).IgnoreError();  // it would run out by itself
    if (!claimed.ok()) return claimed.status();
  }
  const std::string name = leader->value_or("another scheduler");
  if (waiting_for_ != name && options_.log) {
    options_.log(absl::StrCat(name, " leads job '", options_.job,
                              "'; waiting until its lease in etcd is gone"));
  }
  waiting_for_ = name;
  if (!seen_state_) {
    absl::StatusOr<std::optional<std::string>> state = client_.Get(StateKey());
    seen_state_ = state.ok() && state->has_value();
  }
  return absl::AbortedError(absl::StrCat(name, " leads job '", options_.job, "'"));
}

bool EtcdStore::MayHaveRunOut() const { return SteadyNow() - proved_ >= options_.ttl; }

absl::StatusOr<std::optional<std::string>> EtcdStore::OpenNow() {
  if (lease_ == 0) {
    if (absl::Status status = Lead(); !status.ok()) {
      // Who waits already goes on waiting.
      const bool patient = IsPassing(status) && !waiting_for_.empty();
      return patient ? absl::AbortedError(status.message()) : status;
    }
  }
  absl::StatusOr<std::optional<std::string>> state = client_.Get(StateKey(), &revision_);
  // Nobody keeps the lease alive yet; afterwards, who does sees its end.
  if (!opened_ && MayHaveRunOut()) {
    client_.Revoke(std::exchange(lease_, 0)).IgnoreError();
    return absl::AbortedError("etcd was too slow: the lease may have run out");
  }
  // To give up would end the job, whose leader this one is.
  if (IsPassing(state.status())) return absl::AbortedError(state.status().message());
  if (!state.ok()) return state.status();
  if (state->has_value() || !seen_state_ || opened_) {
    opened_ = true;
    return state;
  }
  client_.Revoke(std::exchange(lease_, 0)).IgnoreError();
  return absl::CancelledError(
      absl::StrCat("job '", options_.job, "' is over: ", waiting_for_, " led it to its end"));
}

absl::Status EtcdStore::SaveNow(const std::string& state) {
  if (state.size() > kMaxState) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the scheduler's state of ", state.size(), " bytes is too large for etcd; allowed: ",
        kMaxState, "; a larger cluster.partition_kib makes it smaller, --state DIR has no bound"));
  }
  absl::Status status;
  for (int i = 0; i < kBeatsPerLease; ++i) {
    absl::StatusOr<EtcdClient::Put> put =
        client_.PutWhile(LeaderKey(), lease_, StateKey(), revision_, state);
    if (!put.ok()) {
      status = put.status();
      if (!IsPassing(status)) break;
      continue;
    }
    if (!put->claimed) return NoMoreLeader();
    revision_ = put->revision;
    if (put->holds) return absl::OkStatus();
    // Nobody else writes there: a save that was given up has been done after all.
    status = absl::UnavailableError("an earlier save of the state came late");
  }
  return status;
}

absl::Status EtcdStore::Forget() {
  if (lease_ == 0) return absl::OkStatus();
  absl::Status status;
  for (int i = 0; i < kBeatsPerLease; ++i) {
    status = client_.Release(LeaderKey(), lease_, StateKey());
    if (!IsPassing(status)) break;
  }
  opened_ = false;
  status.Update(client_.Revoke(std::exchange(lease_, 0)));
  return status;
}

void EtcdStore::Attach(Env* env) {
  OffloadedStore::Attach(env);
  beating_ = false;
  expiry_ = kNoTimer;  // of the other loop
  if (opened_) OnOpened();
}

// The lease is as old as its last proof, whatever has happened since.
void EtcdStore::OnOpened() {
  if (std::exchange(beating_, true)) return;
  AwaitExpiry();
  ScheduleBeat(options_.ttl / kBeatsPerLease - (SteadyNow() - proved_));
}

void EtcdStore::ScheduleBeat(absl::Duration after) {
  env()->After(after, [this] { Beat(); });
}

void EtcdStore::Beat() {
  auto result = std::make_shared<absl::Status>();
  env()->Offload([this, result] { *result = client_.KeepAlive(lease_); },
                 [this, result, asked = SteadyNow()] { OnBeat(asked, *result); });
}

void EtcdStore::OnBeat(absl::Duration asked, const absl::Status& status) {
  if (lost_) return;
  if (status.ok()) {
    proved_ = asked;
    AwaitExpiry();
  }
  if (absl::IsNotFound(status)) {
    if (options_.log) options_.log(std::string(status.message()));
    return Lose();
  }
  const absl::Duration pause = status.ok() ? options_.ttl / kBeatsPerLease : kSilentPause;
  ScheduleBeat(pause - (SteadyNow() - asked));
}

// Not by the beats alone: timers run before messages are read, so nothing is decided any more.
void EtcdStore::AwaitExpiry() {
  env()->Cancel(expiry_);
  expiry_ = env()->After(proved_ + options_.ttl - SteadyNow(), [this] { Lose(); });
}

void EtcdStore::Lose() {
  if (std::exchange(lost_, true)) return;
  env()->Cancel(expiry_);
  if (options_.on_lost) options_.on_lost(NoMoreLeader());
}

}  // namespace parley
