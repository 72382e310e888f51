#include "ps/server/hosted_partition.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace parley {

HostedPartition::HostedPartition(std::unique_ptr<TablePartition> values, Setup setup,
                                 NormRequest request_norm)
    : setup_(std::move(setup)),
      values_(std::move(values)),
      guard_(setup_.worker_incarnations),
      aggregator_(Aggregator::Create(setup_.consistency, setup_.worker_incarnations.size())),
      policy_(setup_.worker_incarnations.size(),
              ConsistencyPolicy::StalenessOf(setup_.consistency)),
      request_norm_(std::move(request_norm)),
      here_below_(setup_.worker_incarnations.size(), 0),
      acknowledged_(setup_.worker_incarnations.size(), 0),
      overwritten_(setup_.sparse, setup_.pool) {
  if (setup_.pull_codec != nullptr && setup_.pull_codec->keeps_residual()) {
    published_.emplace(setup_.pull_codec, values_->Read(KeyList()), setup_.pool,
                       keeps_overwritten());
  }
}

absl::Status HostedPartition::CheckSize(const pb::FrameHeader& header, const pb::Part& part) const {
  // A worker without samples pushes so that the step can close; then there is nothing to carry.
  const bool empty = header.weight() == 0;
  if (part.keys() > 0 && (empty || !setup_.sparse)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("push to partition %d names %d keys, allowed is 0 %s", setup_.index,
                        part.keys(), setup_.sparse ? "with weight 0" : "for a dense table"));
  }
  const uint64_t wanted = empty ? 0 : values_->values(part.keys());
  if (part.count() != wanted) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "push to partition %d carries %d elements for %d keys with weight %g, allowed is %d",
        setup_.index, part.count(), part.keys(), header.weight(), wanted));
  }
  return absl::OkStatus();
}

absl::Status HostedPartition::CheckWithoutTick(const pb::FrameHeader& header) const {
  if (setup_.consistency.mode() != pb::Consistency::ASP) {
    return absl::InvalidArgumentError(
        absl::StrFormat("push to partition %d has no tick, allowed is that under ASP only; the "
                        "mode is %s",
                        setup_.index, pb::Consistency::Mode_Name(setup_.consistency.mode())));
  }
  if (setup_.clip != nullptr) {
    return absl::InvalidArgumentError(
        absl::StrFormat("push to partition %d has no tick, which clip_norm needs to know what "
                        "belongs together",
                        setup_.index));
  }
  if (setup_.evicts) {
    return absl::InvalidArgumentError(
        absl::StrFormat("push to partition %d has no tick, allowed is that without eviction: it "
                        "happens at the end of steps and counts rows' ages in them",
                        setup_.index));
  }
  if (HasLeft(header.rank())) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "push to partition %d is of worker %d, which has left", setup_.index, header.rank()));
  }
  if (!std::isfinite(header.weight()) || header.weight() < 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("push to partition %d: weight is %g; allowed: 0 or more, finite",
                        setup_.index, header.weight()));
  }
  return absl::OkStatus();
}

absl::Status HostedPartition::CheckPush(const pb::FrameHeader& header, const pb::Part& part,
                                        ReplayGuard::Verdict* verdict) const {
  absl::Status status = guard_.Check(header.rank(), header.incarnation(), part.sequence(),
                                     part.acked_below(), verdict);
  if (!status.ok() || *verdict == ReplayGuard::Verdict::kDuplicate) return status;
  status = CheckSize(header, part);
  if (!status.ok()) return status;
  if (!header.has_tick()) return CheckWithoutTick(header);
  if (IsSuperseded(header.rank(), header.tick())) {
    // What waits for the step is one push of each worker, as what is held: else one worker could
    // fill memory. A successor begins with none (NewIncarnation).
    const bool again =
        std::any_of(superseding_.begin(), superseding_.end(), [&](const Superseding& push) {
          return push.worker == header.rank() && push.tick == header.tick();
        });
    if (!again) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrFormat(
        "worker %d has pushed tick %d to partition %d before, with another sequence", header.rank(),
        header.tick(), setup_.index));
  }
  if (absl::StatusOr<Aggregator::Verdict> added =
          aggregator_->Check(header.tick(), header.rank(), header.weight());
      !added.ok()) {
    return added.status();
  }
  // Also keeps a peer from piling up gradients for ticks that nobody will close.
  const uint64_t open = policy_.clock(header.rank());
  if (header.tick() >= open + Aggregator::kMaxAhead) {
    return absl::InvalidArgumentError(
        absl::StrFormat("push for tick %d to partition %d, allowed is below %d", header.tick(),
                        setup_.index, open + Aggregator::kMaxAhead));
  }
  return absl::OkStatus();
}

absl::StatusOr<HostedPartition::Ticket> HostedPartition::TakePush(const pb::FrameHeader& header,
                                                                  const pb::Part& part, Buffer keys,
                                                                  Buffer values) {
  ReplayGuard::Verdict verdict;
  absl::Status status = guard_.Check(header.rank(), header.incarnation(), part.sequence(),
                                     part.acked_below(), &verdict);
  if (!status.ok()) return status;
  // Whatever became of it when it came first: an operation up to now, or it is still held.
  Ticket ticket{header.rank(), std::nullopt, last_index_};
  if (header.has_tick()) ticket.tick = header.tick();
  if (verdict == ReplayGuard::Verdict::kDuplicate) {
    Count(&PushCounters::duplicate);
    return ticket;
  }
  if (!header.has_tick()) {
    guard_.Commit(header.rank(), part.sequence(), part.acked_below());
    ApplyWithoutTick(header, part, std::move(keys), std::move(values));
    ticket.index = last_index_;
    return ticket;
  }
  if (IsSuperseded(header.rank(), header.tick())) {
    TakeSuperseded(header, part);
    ticket.index = last_index_;
    return ticket;
  }
  absl::StatusOr<Aggregator::Verdict> added = aggregator_->Add(
      header.tick(), {header.rank(), header.weight(), std::move(values), std::move(keys),
                      header.incarnation(), part.sequence(), part.acked_below()});
  if (!added.ok()) return added.status();
  guard_.Commit(header.rank(), part.sequence(), part.acked_below());
  Count(&PushCounters::accepted);
  ++acknowledged_[header.rank()];
  const bool late = *added == Aggregator::Verdict::kLate;
  if (late) Count(&PushCounters::dropped);
  if (setup_.probe != nullptr) {
    setup_.probe->OnIndex(setup_.table, setup_.index, last_index_);
    setup_.probe->OnAccept(setup_.table, setup_.index, header.rank(), header.tick(), late);
  }
  if (late) {
    NoteDropped(header.rank(), header.tick());
    PublishDrop(header, part, /*superseded=*/false);
  }
  ticket.index = late ? last_index_ : 0;
  Advance();
  return ticket;
}

bool HostedPartition::MayAcknowledge(const Ticket& ticket) const {
  if (!replicated_) return true;
  return ticket.index <= durable_index_ &&
         (!ticket.tick.has_value() || policy_.clock(ticket.worker) > *ticket.tick);
}

// The worker's predecessor had pushed the tick: its gradient is in the weights, or held, or dropped
// for good. Where the tick was closed without any, there is no place for one either.
bool HostedPartition::IsSuperseded(uint32_t worker, uint64_t tick) const {
  if (tick < here_below_[worker] || dropped_ahead_.contains({tick, worker})) return true;
  const Contribution* held = aggregator_->Find(tick, worker);
  return held != nullptr && held->incarnation != guard_.incarnation(worker);
}

void HostedPartition::Count(uint64_t PushCounters::*counter, int64_t n) {
  counts_.*counter += static_cast<uint64_t>(n);
  if (setup_.counters != nullptr) setup_.counters->*counter += static_cast<uint64_t>(n);
}

void HostedPartition::CountSamples(double weight) {
  counts_.samples += weight;
  if (setup_.counters != nullptr) setup_.counters->samples += weight;
}

// At once, and nobody's clock moves: who reads for a tick neither waits for it nor learns of it.
void HostedPartition::ApplyWithoutTick(const pb::FrameHeader& header, const pb::Part& part,
                                       Buffer keys, Buffer values) {
  Count(&PushCounters::accepted);
  Count(&PushCounters::applied);
  CountSamples(header.weight());
  ++acknowledged_[header.rank()];
  StepInfo info;
  info.step = values_->version();  // the only count of steps there is
  info.inverse_weight = header.weight() > 0 ? 1 / header.weight() : 0;
  if (header.weight() > 0) {
    gradients_.clear();
    if (!values.empty()) {
      gradients_.push_back({KeyList(keys), values.floats(), values.on_device()});
    }
    UpdateWith(info);
  }
  // A copy takes it where the CPU can read it.
  if (replicated_) values = values_->ToHost(values);
  PublishWithoutTick(header, part, info, {std::move(keys), std::move(values)});
  if (setup_.probe != nullptr) {
    setup_.probe->OnIndex(setup_.table, setup_.index, last_index_);
    setup_.probe->OnUpdateWithoutTick(setup_.table, setup_.index, header.rank(), part.sequence(),
                                      values_->version());
  }
}

void HostedPartition::OnNorm(NormGroup group, double total) {
  for (PendingStep& pending : pending_) {
    if (pending.group != group) continue;
    pending.norm = total;
    RememberNorm(group, total);
  }
  ApplyReady();
}

void HostedPartition::RememberNorm(NormGroup group, double total) {
  if (!known_norms_.emplace(group, total).second) return;
  // Answers may come in another order than the groups: what is forgotten is the lowest tick.
  const auto of_worker = [&](const auto& known) { return known.first.worker == group.worker; };
  if (std::count_if(known_norms_.begin(), known_norms_.end(), of_worker) > kKnownNorms) {
    known_norms_.erase(std::find_if(known_norms_.begin(), known_norms_.end(), of_worker));
  }
}

std::vector<std::pair<NormGroup, double>> HostedPartition::KnownNorms() const {
  return {known_norms_.begin(), known_norms_.end()};
}

void HostedPartition::OnLeave(uint32_t worker, uint64_t after_tick) {
  if (worker >= workers()) return;
  if (HasLeft(worker) && after_tick >= aggregator_->LeavesAt(worker)) return;
  aggregator_->OnLeave(worker, after_tick);
  leaving_.insert(worker);
  Advance();
}

bool HostedPartition::HasLeft(uint32_t worker) const {
  return !policy_.live(worker) ||
         std::any_of(effects_.begin(), effects_.end(),
                     [worker](const Effect& effect) { return effect.left == worker; });
}

bool HostedPartition::MayAcknowledgeLeave(uint32_t worker) const {
  return !replicated_ || worker >= workers() || !policy_.live(worker);
}

// Readers wait for a leaver as long as a gradient of its is complete but not applied.
void HostedPartition::LetGo() {
  std::erase_if(leaving_, [this](uint32_t worker) {
    const bool busy =
        std::any_of(pending_.begin(), pending_.end(), [&](const PendingStep& pending) {
          return std::find(pending.step.closed.begin(), pending.step.closed.end(), worker) !=
                 pending.step.closed.end();
        });
    if (!busy) PublishLeave(worker);
    return !busy;
  });
}

// Those that carry something, in the order of the step: a sparse partition of which a worker had no
// key takes part in the step by its weight alone.
void HostedPartition::CollectGradients(const CompleteStep& step) {
  gradients_.clear();
  for (const Contribution& c : step.contributions) {
    if (c.weight > 0 && !c.values.empty()) {
      gradients_.push_back({KeyList(c.keys), c.values.floats(), c.values.on_device()});
    }
  }
}

// Moves every step that the aggregator has complete on towards the weights.
void HostedPartition::Advance() {
  PendingStep pending;
  while (aggregator_->PopComplete(&pending.step)) {
    double weight = 0;
    for (const Contribution& c : pending.step.contributions) {
      weight += c.weight;
      if (c.incarnation != guard_.incarnation(c.worker)) {
        here_below_[c.worker] = pending.step.tick + 1;
      }
    }
    pending.inverse_weight = weight > 0 ? 1 / weight : 0;
    const bool by_worker = setup_.consistency.mode() != pb::Consistency::BSP;
    pending.group = {pending.step.tick,
                     by_worker && !pending.step.closed.empty() ? pending.step.closed[0] : 0};
    pending.norm.reset();
    if (setup_.clip == nullptr) pending.norm = 0;
    pending_.push_back(std::move(pending));
    PendingStep& queued = pending_.back();
    if (!queued.norm.has_value()) {
      CollectGradients(queued.step);
      queued.share = values_->SumOfSquares(gradients_, queued.inverse_weight);
      AskNorms();
    }
    pending = PendingStep();
  }
  ApplyReady();
}

// In the order of the groups, and of each worker's no more than others remember (KnownNorms).
void HostedPartition::AskNorms() {
  if (asking_) return;
  asking_ = true;
  while (PendingStep* next = NextToAsk()) {
    next->asked = true;
    const NormGroup group = next->group;
    request_norm_(setup_.index, group, next->share);  // may answer at once, and so change pending_
  }
  asking_ = false;
}

// Null: there is none at present.
HostedPartition::PendingStep* HostedPartition::NextToAsk() {
  if (setup_.clip == nullptr || pending_.empty()) return nullptr;
  std::vector<ptrdiff_t> waiting(workers(), 0);
  for (PendingStep& pending : pending_) {
    const bool may = ++waiting[pending.group.worker] <= kKnownNorms;
    if (may && !pending.asked && !pending.norm.has_value()) return &pending;
  }
  return nullptr;
}

// Applies what has its norm, except a worker's tick ahead of an earlier tick of the same worker:
// its clock would say that both are in the weights.
void HostedPartition::ApplyReady() {
  std::vector<bool> blocked(policy_.workers(), false);
  for (auto it = pending_.begin(); it != pending_.end();) {
    const bool ready =
        it->norm.has_value() && std::none_of(it->step.closed.begin(), it->step.closed.end(),
                                             [&](uint32_t worker) { return blocked[worker]; });
    if (!ready) {
      for (uint32_t worker : it->step.closed) blocked[worker] = true;
      ++it;
      continue;
    }
    Apply(*it);
    it = pending_.erase(it);
  }
  LetGo();
  AskNorms();
}

void HostedPartition::Apply(PendingStep& pending) {
  if (before_step_ != nullptr && pending.step.tick >= hook_step_) {
    absl::AnyInvocable<void()> hook = std::move(before_step_);
    before_step_ = nullptr;
    hook();
  }
  StepInfo info;
  info.step = pending.step.tick;
  info.inverse_weight = pending.inverse_weight;
  if (setup_.clip != nullptr) info.norm_scale = setup_.clip->NormScale(*pending.norm);
  SummedGradient sum;
  gradients_.clear();
  // A step in which nobody had a sample leaves the weights as they are: there is no gradient, not a
  // gradient of zero.
  if (pending.inverse_weight > 0) {
    CollectGradients(pending.step);
    if (replicated_) sum = Together(pending.step);
  }
  if (keeps_overwritten()) KeepOverwritten(pending.step.tick);
  if (pending.inverse_weight > 0) UpdateWith(info);
  values_->EndStep(pending.step.tick);
  Count(&PushCounters::applied, static_cast<int64_t>(pending.step.contributions.size()));
  for (const Contribution& c : pending.step.contributions) CountSamples(c.weight);
  PublishStep(pending, info, std::move(sum));
  if (setup_.probe != nullptr) {
    setup_.probe->OnIndex(setup_.table, setup_.index, last_index_);
    std::vector<uint32_t> workers;
    for (const Contribution& c : pending.step.contributions) workers.push_back(c.worker);
    setup_.probe->OnApply(setup_.table, setup_.index, pending.step.tick, workers,
                          values_->version());
  }
}

bool HostedPartition::keeps_overwritten() const {
  return setup_.keeps_overwritten && !setup_.evicts &&
         setup_.consistency.mode() == pb::Consistency::BSP &&
         setup_.consistency.backup_workers() == 0;
}

// What gradients_ are about to overwrite; published weights keep their own.
void HostedPartition::KeepOverwritten(uint64_t tick) {
  overwritten_.BeforeStep(
      tick, published_ ? absl::Span<const GradientView>() : absl::MakeSpan(gradients_),
      values_.get());
}

// gradients_ into the weights, in one pass that reads them where they lie.
void HostedPartition::UpdateWith(const StepInfo& info) {
  values_->Apply(gradients_, info);
  gradients_.clear();
  if (published_) published_->OnUpdate(values_->Read(KeyList()), values_->version());
}

bool HostedPartition::MayRead(uint64_t tick) const {
  if (tick != kAfterAllLeft) return policy_.MayRead(tick);
  for (uint32_t worker = 0; worker < policy_.workers(); ++worker) {
    if (policy_.live(worker)) return false;
  }
  return aggregator_->held() == 0 && pending_.empty() && durable_index_ == last_index_;
}

std::string HostedPartition::WaitsFor(uint64_t tick) const {
  std::string workers;
  if (!effects_.empty() && AppliedPolicy().MayRead(tick)) {
    return absl::StrCat("the copies of partition ", setup_.index);
  }
  if (tick != kAfterAllLeft) {
    // Clocks say what is closed, and an open step holds all of them back: ask who has not pushed
    // it.
    for (uint32_t worker : aggregator_->Missing()) {
      absl::StrAppend(&workers, workers.empty() ? "" : ", ", "worker ", worker);
    }
    if (workers.empty()) return policy_.WaitsFor(tick);
    return absl::StrCat(workers, " to push step ", policy_.min_clock());
  }
  for (uint32_t worker = 0; worker < policy_.workers(); ++worker) {
    if (policy_.live(worker))
      absl::StrAppend(&workers, workers.empty() ? "" : ", ", "worker ", worker);
  }
  return workers.empty() ? "the last update" : absl::StrCat(workers, " to finish");
}

Buffer HostedPartition::Read(uint32_t worker, uint64_t tick, const pb::Part& asked,
                             const Buffer& keys, pb::Part* answer) {
  answer->set_partition(setup_.index);
  const bool exact = tick == kAfterAllLeft;
  // A replaced worker computes once more the step that was applied last.
  const bool before =
      !exact && overwritten_.Has(tick) && overwritten_.version() != values_->version();
  const uint64_t version = before ? overwritten_.version() : values_->version();
  answer->set_version(version);
  answer->set_min_clock(policy_.min_clock());
  if (setup_.probe != nullptr) {
    setup_.probe->OnIndex(setup_.table, setup_.index, last_index_);
    setup_.probe->OnRead(setup_.table, setup_.index, worker, tick, version);
  }
  if (published_ && !exact) {
    return before ? published_->ReadBefore(asked, answer) : published_->Read(asked, answer);
  }
  const KeyList list(keys);
  if (setup_.sparse) answer->set_keys(static_cast<uint32_t>(list.size()));
  answer->set_count(values_->values(list.size()));
  if (answer->count() == 0) return Buffer();
  if (before) {
    Buffer old = overwritten_.Read(list, values_.get());
    return setup_.pull_codec == nullptr ? old : Encoded(std::move(old), answer);
  }
  if (setup_.pull_codec == nullptr || exact) return values_->Read(list);
  if (setup_.sparse) return Encoded(values_->Read(list), answer);
  if (encoded_version_ != values_->version()) {
    encoded_ = Encoded(values_->Read(list), answer);
    encoded_version_ = values_->version();
  }
  answer->set_value_bytes(encoded_.size());
  return encoded_;
}

Buffer HostedPartition::Encoded(Buffer raw, pb::Part* answer) {
  const uint64_t n = raw.num_floats();
  Buffer encoded = setup_.pool->Allocate(setup_.pull_codec->MaxEncodedBytes(n));
  const uint64_t bytes =
      setup_.pull_codec->Encode(raw.floats(), n, nullptr, encoded.mutable_data());
  answer->set_value_bytes(bytes);
  return encoded.Slice(0, bytes);
}

}  // namespace parley
