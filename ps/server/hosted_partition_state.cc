// The state of a HostedPartition: what a backup, or a run that begins again, is made from.
#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/base/sparse_layout.h"
#include "ps/server/hosted_partition.h"

namespace parley {
namespace {

// What names of the server's own arrays begin with; the table knows nothing of them.
constexpr char kOwn[] = "server.";

std::string HeldName(int number, const char* what) {
  return absl::StrCat(kOwn, "held.", number, ".", what);
}

// Moves the server's own arrays out of `state`. REQUIRES: state.Check().
TableState TakeOwn(TableState* state) {
  TableState own, rest;
  rest.header = state->header;
  rest.header.clear_array();
  for (int i = 0; i < state->header.array_size(); ++i) {
    TableState& to = absl::StartsWith(state->header.array(i).name(), kOwn) ? own : rest;
    *to.header.add_array() = std::move(*state->header.mutable_array(i));
    to.bytes.push_back(std::move(state->bytes[static_cast<size_t>(i)]));
  }
  *state = std::move(rest);
  return own;
}

// Ticks and indices of a peer: far from where counting on would overflow.
absl::Status CheckCount(const char* what, uint64_t value) {
  constexpr uint64_t kMost = uint64_t{1} << 62;
  if (value < kMost) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("saved state: %s is %d; allowed: below %d", what, value, kMost));
}

uint64_t Mix(uint64_t digest, uint64_t value) {
  return KeyHash(digest ^ (value + 0x9E3779B97F4A7C15)) * 0xFF51AFD7ED558CCD;
}

}  // namespace

uint64_t HostedPartition::Digest() const {
  uint64_t digest = values_->Digest();
  if (published_) digest = Mix(digest, published_->Digest());
  const ConsistencyPolicy applied = AppliedPolicy();
  for (uint32_t worker = 0; worker < workers(); ++worker) {
    digest = Mix(digest, 2 * applied.clock(worker) + (applied.live(worker) ? 1 : 0));
  }
  return digest;
}

PartitionSnapshot HostedPartition::Save() {
  PartitionSnapshot snapshot;
  snapshot.index = last_index_;
  snapshot.values = values_->Save();
  pb::HostedState state;
  Aggregator::State gradients = aggregator_->Save();
  // What waits for its norm is not in the weights: whoever goes on from here asks for the norm.
  for (const PendingStep& pending : pending_) gradients.Return(pending.step);
  SaveWorkers(gradients, &state);
  for (const auto& [tick, c] : gradients.held) {
    const int number = state.held_size();
    pb::HostedState::Held* held = state.add_held();
    held->set_tick(tick);
    held->set_worker(c.worker);
    held->set_incarnation(c.incarnation);
    held->set_sequence(c.sequence);
    held->set_acked_below(c.acked_below);
    held->set_weight(c.weight);
    TableState* arrays = &snapshot.values;
    if (!c.keys.empty()) {
      arrays->Add(HeldName(number, "keys"), "U64", {c.keys.size() / sizeof(uint64_t)}, c.keys);
    }
    if (!c.values.empty()) {
      arrays->Add(HeldName(number, "values"), "F32", {c.values.num_floats()},
                  values_->ToHost(c.values));
    }
  }
  for (const Superseding& push : superseding_) {
    pb::HostedState::Superseded* superseding = state.add_superseding();
    superseding->set_tick(push.tick);
    superseding->set_worker(push.worker);
    superseding->set_sequence(push.sequence);
    superseding->set_acked_below(push.acked_below);
  }
  for (const auto& [tick, worker] : dropped_ahead_) {
    pb::HostedState::Dropped* dropped = state.add_dropped_ahead();
    dropped->set_tick(tick);
    dropped->set_worker(worker);
  }
  for (const auto& [group, total] : known_norms_) {
    pb::HostedState::KnownNorm* norm = state.add_norm();
    norm->set_tick(group.tick);
    norm->set_worker(group.worker);
    norm->set_total(total);
  }
  state.set_accepted(counts_.accepted);
  state.set_applied(counts_.applied);
  state.set_dropped(counts_.dropped);
  state.set_duplicate(counts_.duplicate);
  state.set_superseded(counts_.superseded);
  state.set_samples(counts_.samples);
  overwritten_.Save(*values_, &state, &snapshot.values);
  if (published_) published_->Save(&state, &snapshot.values);
  snapshot.server_state = state.SerializeAsString();
  snapshot.digest = Digest();
  return snapshot;
}

void HostedPartition::SaveWorkers(const Aggregator::State& gradients,
                                  pb::HostedState* state) const {
  const ConsistencyPolicy applied = AppliedPolicy();
  for (uint32_t w = 0; w < workers(); ++w) {
    pb::HostedState::Worker* worker = state->add_worker();
    ReplayGuard::State window = guard_.Save(w);
    worker->set_incarnation(window.incarnation);
    worker->set_seen_below(window.seen_below);
    worker->set_seen(std::move(window.seen));
    worker->set_clock(applied.clock(w));
    worker->set_left(!applied.live(w));
    worker->set_next_tick(gradients.next_tick[w]);
    if (gradients.leaves_at[w] != Aggregator::kNever) {
      worker->set_leaves_at(gradients.leaves_at[w]);
    }
    worker->set_leaving(leaving_.contains(w));
    worker->set_here_below(here_below_[w]);
    worker->set_acknowledged(acknowledged_[w]);
  }
}

absl::Status HostedPartition::Load(PartitionSnapshot snapshot) {
  pb::HostedState state;
  if (!state.ParseFromString(snapshot.server_state)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "saved state of partition %d: the server's own is no message of its kind", setup_.index));
  }
  absl::Status status = snapshot.values.Check();
  if (status.ok()) status = CheckCount("index", snapshot.index);
  if (!status.ok()) return status;
  const TableState own = TakeOwn(&snapshot.values);
  Aggregator::State gradients;
  status = values_->Load(snapshot.values);
  snapshot.values = TableState();  // copied: it need not lie beside what is still to be copied
  if (status.ok()) status = LoadWorkers(state, &gradients);
  if (status.ok()) status = LoadHeld(state, own, &gradients);
  if (status.ok()) status = aggregator_->Load(std::move(gradients));
  if (status.ok()) status = LoadPushes(state);
  if (status.ok()) status = LoadCounts(state);
  if (status.ok()) status = overwritten_.Load(state, own, *values_);
  if (status.ok() && published_) status = published_->Load(state, own);
  if (!status.ok()) return status;
  pending_.clear();
  effects_.clear();
  known_norms_.clear();
  for (const pb::HostedState::KnownNorm& norm : state.norm()) {
    RememberNorm({norm.tick(), norm.worker()}, norm.total());
  }
  encoded_version_.reset();
  last_index_ = durable_index_ = snapshot.index;
  if (setup_.probe != nullptr) setup_.probe->OnIndex(setup_.table, setup_.index, last_index_);
  if (const uint64_t digest = Digest(); digest != snapshot.digest) {
    return absl::DataLossError(
        absl::StrFormat("partition %d as of operation %d has the digest %016x here, where it was "
                        "saved %016x",
                        setup_.index, snapshot.index, digest, snapshot.digest));
  }
  return absl::OkStatus();
}

absl::Status HostedPartition::LoadWorkers(const pb::HostedState& state,
                                          Aggregator::State* gradients) {
  if (static_cast<uint32_t>(state.worker_size()) != workers()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("saved state of partition %d is of %d workers, allowed is %d", setup_.index,
                        state.worker_size(), workers()));
  }
  std::vector<uint64_t> clocks;
  std::vector<bool> live;
  leaving_.clear();
  for (uint32_t w = 0; w < workers(); ++w) {
    const pb::HostedState::Worker& worker = state.worker(static_cast<int>(w));
    absl::Status status = CheckCount("clock", worker.clock());
    if (status.ok()) {
      status = guard_.Load(w, {worker.incarnation(), worker.seen_below(), worker.seen()});
    }
    if (!status.ok()) return status;
    clocks.push_back(worker.clock());
    live.push_back(!worker.left());
    gradients->next_tick.push_back(worker.next_tick());
    gradients->leaves_at.push_back(worker.has_leaves_at() ? worker.leaves_at()
                                                          : Aggregator::kNever);
    if (worker.leaving()) leaving_.insert(w);
    here_below_[w] = worker.here_below();
    acknowledged_[w] = worker.acknowledged();
  }
  policy_.Load(std::move(clocks), std::move(live));
  return absl::OkStatus();
}

absl::Status HostedPartition::LoadHeld(const pb::HostedState& state, const TableState& arrays,
                                       Aggregator::State* gradients) const {
  for (int i = 0; i < state.held_size(); ++i) {
    const pb::HostedState::Held& held = state.held(i);
    Contribution c;
    c.worker = held.worker();
    c.weight = held.weight();
    if (const Buffer* keys = arrays.Find(HeldName(i, "keys"))) c.keys = *keys;
    if (const Buffer* values = arrays.Find(HeldName(i, "values"))) c.values = *values;
    c.incarnation = held.incarnation();
    c.sequence = held.sequence();
    c.acked_below = held.acked_below();
    const KeyList keys(c.keys);
    if (absl::Status status = values_->CheckKeys(keys); !status.ok()) return status;
    const uint64_t wanted = c.weight == 0 ? 0 : values_->values(keys.size()) * sizeof(float);
    if (c.values.size() != wanted || (c.weight == 0 && !keys.empty())) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "gradient of worker %d held for tick %d: %d bytes for %d keys with weight %g, allowed is "
          "%d",
          c.worker, held.tick(), c.values.size(), keys.size(), c.weight, wanted));
    }
    gradients->held.emplace_back(held.tick(), std::move(c));
  }
  return absl::OkStatus();
}

absl::Status HostedPartition::LoadPushes(const pb::HostedState& state) {
  superseding_.clear();
  for (const pb::HostedState::Superseded& push : state.superseding()) {
    ReplayGuard::Verdict verdict;
    absl::Status status = push.worker() >= workers()
                              ? absl::InvalidArgumentError(absl::StrFormat(
                                    "worker is %d; allowed: below %d", push.worker(), workers()))
                              : guard_.Check(push.worker(), guard_.incarnation(push.worker()),
                                             push.sequence(), push.acked_below(), &verdict);
    if (!status.ok()) return status;
    superseding_.push_back({push.worker(), push.tick(), push.sequence(), push.acked_below()});
  }
  dropped_ahead_.clear();
  for (const pb::HostedState::Dropped& push : state.dropped_ahead()) {
    if (push.worker() >= workers()) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "saved state: dropped push of worker %d; allowed: below %d", push.worker(), workers()));
    }
    NoteDropped(push.worker(), push.tick());
  }
  return absl::OkStatus();
}

absl::Status HostedPartition::LoadCounts(const pb::HostedState& state) {
  if (!std::isfinite(state.samples()) || state.samples() < 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "saved state: %g samples were applied; allowed: 0 or more, finite", state.samples()));
  }
  counts_ = {.accepted = state.accepted(),
             .applied = state.applied(),
             .dropped = state.dropped(),
             .duplicate = state.duplicate(),
             .superseded = state.superseded(),
             .samples = state.samples()};
  return absl::OkStatus();
}

TableState HostedPartition::SaveCheckpoint(bool changes_only) {
  TableState state = changes_only ? values_->SaveChanges() : values_->Save();
  if (published_) published_->SaveWeights(&state);
  return state;
}

absl::Status HostedPartition::LoadCheckpoint(std::vector<TableState> states, uint64_t step) {
  if (states.empty()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("checkpoint of partition %d: there is no state in it", setup_.index));
  }
  absl::Status status = CheckCount("step", step);
  for (size_t i = 0; i < states.size() && status.ok(); ++i) {
    status = states[i].Check();
    if (!status.ok()) break;
    const TableState own = TakeOwn(&states[i]);
    status = values_->Load(states[i]);
    if (status.ok() && published_) status = published_->LoadWeights(own, values_->version());
  }
  if (!status.ok()) return status;
  // All begin with `step`, those that had left before the end, too: they leave again.
  Aggregator::State gradients;
  gradients.next_tick.assign(workers(), step);
  gradients.leaves_at.assign(workers(), Aggregator::kNever);
  status = aggregator_->Load(std::move(gradients));
  if (!status.ok()) return status;
  policy_.Load(std::vector<uint64_t>(workers(), step), std::vector<bool>(workers(), true));
  encoded_version_.reset();
  return absl::OkStatus();
}

}  // namespace parley
