#include "scheduler/etcd_store.h"

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
    absl::StatusOr<int64_t> lease = client_.Grant(options_.ttl);
    if (!lease.ok()) return lease.status();
    absl::StatusOr<bool> claimed = client_.Claim(LeaderKey(), options_.self, *lease);
    if (claimed.ok() && *claimed) {
      lease_ = *lease;
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

absl::StatusOr<std::optional<std::string>> EtcdStore::OpenNow() {
  if (lease_ == 0) {
    if (absl::Status status = Lead(); !status.ok()) {
      // Who waits already goes on waiting.
      const bool patient = absl::IsUnavailable(status) && !waiting_for_.empty();
      return patient ? absl::AbortedError(status.message()) : status;
    }
  }
  absl::StatusOr<std::optional<std::string>> state = client_.Get(StateKey());
  if (!state.ok() || state->has_value() || !seen_state_) return state;
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
  // A timeout leaves open whether it was done; doing it again does no harm.
  absl::StatusOr<bool> saved = false;
  for (int i = 0; i < kBeatsPerLease; ++i) {
    saved = client_.PutWhile(LeaderKey(), lease_, StateKey(), state);
    if (!absl::IsUnavailable(saved.status()) && !absl::IsDeadlineExceeded(saved.status())) break;
  }
  if (!saved.ok()) return saved.status();
  return *saved ? absl::OkStatus() : NoMoreLeader();
}

absl::Status EtcdStore::Forget() {
  if (lease_ == 0) return absl::OkStatus();
  absl::Status status = client_.PutWhile(LeaderKey(), lease_, StateKey(), std::nullopt).status();
  status.Update(client_.Revoke(std::exchange(lease_, 0)));
  return status;
}

void EtcdStore::Attach(Env* env) {
  OffloadedStore::Attach(env);
  beating_ = false;
  expiry_ = kNoTimer;  // of the other loop
  if (lease_ != 0) OnOpened();
}

void EtcdStore::OnOpened() {
  if (std::exchange(beating_, true)) return;
  NoteAlive(env()->Now());
  ScheduleBeat(options_.ttl / kBeatsPerLease);
}

void EtcdStore::ScheduleBeat(absl::Duration after) {
  env()->After(after, [this] { Beat(); });
}

void EtcdStore::Beat() {
  auto result = std::make_shared<absl::Status>();
  env()->Offload([this, result] { *result = client_.KeepAlive(lease_); },
                 [this, result, asked = env()->Now()] { OnBeat(asked, *result); });
}

void EtcdStore::OnBeat(absl::Duration asked, const absl::Status& status) {
  if (lost_) return;
  if (status.ok()) NoteAlive(asked);
  if (absl::IsNotFound(status)) {
    if (options_.log) options_.log(std::string(status.message()));
    return Lose();
  }
  const absl::Duration pause = status.ok() ? options_.ttl / kBeatsPerLease : kSilentPause;
  ScheduleBeat(pause - (env()->Now() - asked));
}

// Not by the beats alone: timers run before messages are read, so nothing is decided any more.
void EtcdStore::NoteAlive(absl::Duration since) {
  env()->Cancel(expiry_);
  expiry_ = env()->After(since + options_.ttl - env()->Now(), [this] { Lose(); });
}

void EtcdStore::Lose() {
  if (std::exchange(lost_, true)) return;
  env()->Cancel(expiry_);
  if (options_.on_lost) options_.on_lost(NoMoreLeader());
}

}  // namespace parley
