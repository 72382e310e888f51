#include "ps/server/hosted_partition.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace parley {

HostedPartition::HostedPartition(const pb::TableSpec& table, const DenseLayout& layout, Setup setup,
                                 BufferPool* pool, NormRequest request_norm)
    : setup_(std::move(setup)),
      dense_(table, layout, setup_.index, setup_.optimizer, pool),
      guard_(setup_.worker_incarnations),
      aggregator_(Aggregator::Create(setup_.consistency, setup_.worker_incarnations.size())),
      policy_(setup_.worker_incarnations.size(),
              ConsistencyPolicy::StalenessOf(setup_.consistency)),
      request_norm_(std::move(request_norm)) {}

absl::Status HostedPartition::CheckPush(const pb::FrameHeader& header, const pb::Part& part) const {
  const bool empty = header.weight() == 0;
  if (part.count() != (empty ? 0 : size())) {
    return absl::InvalidArgumentError(
        absl::StrFormat("push to partition %d carries %d elements with weight %g, allowed is %d",
                        setup_.index, part.count(), header.weight(), empty ? 0 : size()));
  }
  ReplayGuard::Verdict verdict;
  absl::Status status = guard_.Check(header.rank(), header.incarnation(), part.sequence(),
                                     part.acked_below(), &verdict);
  if (!status.ok() || verdict == ReplayGuard::Verdict::kDuplicate) return status;
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

absl::Status HostedPartition::TakePush(const pb::FrameHeader& header, const pb::Part& part,
                                       Buffer gradient) {
  ReplayGuard::Verdict verdict;
  absl::Status status = guard_.Check(header.rank(), header.incarnation(), part.sequence(),
                                     part.acked_below(), &verdict);
  if (!status.ok()) return status;
  if (verdict == ReplayGuard::Verdict::kDuplicate) {
    ++setup_.counters->duplicate;
    return absl::OkStatus();
  }
  absl::StatusOr<Aggregator::Verdict> added =
      aggregator_->Add(header.tick(), {header.rank(), header.weight(), std::move(gradient)});
  if (!added.ok()) return added.status();
  guard_.Commit(header.rank(), part.sequence(), part.acked_below());
  ++setup_.counters->accepted;
  const bool late = *added == Aggregator::Verdict::kLate;
  if (late) ++setup_.counters->dropped;
  if (setup_.probe != nullptr) {
    setup_.probe->OnAccept(setup_.table, setup_.index, header.rank(), header.tick(), late);
  }
  Advance();
  return absl::OkStatus();
}

void HostedPartition::OnNorm(NormGroup group, double total) {
  for (PendingStep& pending : pending_) {
    if (pending.group == group) pending.norm = total;
  }
  ApplyReady();
}

void HostedPartition::OnLeave(uint32_t worker, uint64_t after_tick) {
  aggregator_->OnLeave(worker, after_tick);
  leaving_.insert(worker);
  Advance();
}

// Readers wait for a leaver as long as a gradient of its is complete but not applied.
void HostedPartition::LetGo() {
  std::erase_if(leaving_, [this](uint32_t worker) {
    const bool busy =
        std::any_of(pending_.begin(), pending_.end(), [&](const PendingStep& pending) {
          return std::find(pending.step.closed.begin(), pending.step.closed.end(), worker) !=
                 pending.step.closed.end();
        });
    if (!busy) policy_.OnLeave(worker);
    return !busy;
  });
}

// Moves every step that the aggregator has complete on towards the weights.
void HostedPartition::Advance() {
  PendingStep pending;
  while (aggregator_->PopComplete(&pending.step)) {
    double weight = 0;
    for (const Contribution& c : pending.step.contributions) weight += c.weight;
    pending.inverse_weight = weight > 0 ? 1 / weight : 0;
    const bool by_worker = setup_.consistency.mode() != pb::Consistency::BSP;
    pending.group = {pending.step.tick,
                     by_worker && !pending.step.closed.empty() ? pending.step.closed[0] : 0};
    pending.norm.reset();
    if (setup_.optimizer->clip_norm() == 0) pending.norm = 0;
    pending_.push_back(std::move(pending));
    PendingStep& queued = pending_.back();
    if (!queued.norm.has_value()) {
      gradients_.clear();
      for (const Contribution& c : queued.step.contributions) {
        if (c.weight > 0) gradients_.push_back(c.gradient.floats());
      }
      const NormGroup group = queued.group;
      const double share = Optimizer::SumOfSquares(size(), gradients_, queued.inverse_weight);
      request_norm_(setup_.index, group, share);  // may answer at once, and so change pending_
    }
    pending = PendingStep();
  }
  ApplyReady();
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
}

void HostedPartition::Apply(PendingStep& pending) {
  std::vector<uint32_t> workers;
  gradients_.clear();
  for (const Contribution& c : pending.step.contributions) {
    workers.push_back(c.worker);
    if (c.weight > 0) gradients_.push_back(c.gradient.floats());
  }
  // A step in which nobody had a sample leaves the weights as they are: there is no gradient, not a
  // gradient of zero.
  if (!gradients_.empty()) {
    StepInfo info;
    info.step = pending.step.tick;
    info.inverse_weight = pending.inverse_weight;
    info.norm_scale = setup_.optimizer->NormScale(*pending.norm);
    dense_.Apply(gradients_, info);
  }
  setup_.counters->applied += workers.size();
  for (uint32_t worker : pending.step.closed) policy_.OnTick(worker, pending.step.tick);
  if (setup_.probe != nullptr) {
    setup_.probe->OnApply(setup_.table, setup_.index, pending.step.tick, workers, dense_.version());
  }
}

bool HostedPartition::MayRead(uint64_t tick) const {
  if (tick != kAfterAllLeft) return policy_.MayRead(tick);
  for (uint32_t worker = 0; worker < policy_.workers(); ++worker) {
    if (policy_.live(worker)) return false;
  }
  return aggregator_->held() == 0 && pending_.empty();
}

std::string HostedPartition::WaitsFor(uint64_t tick) const {
  std::string workers;
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

Buffer HostedPartition::Read(uint32_t worker, uint64_t tick, pb::Part* part) {
  part->set_partition(setup_.index);
  part->set_count(size());
  part->set_version(dense_.version());
  part->set_min_clock(policy_.min_clock());
  if (setup_.probe != nullptr) {
    setup_.probe->OnRead(setup_.table, setup_.index, worker, tick, dense_.version());
  }
  return dense_.Read();
}

}  // namespace parley
