// The operations of a HostedPartition: how a primary makes them and when they are durable, and how
// a backup does what they say.
#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_format.h"
#include "ps/server/hosted_partition.h"

namespace parley {
namespace {

void AddPush(uint32_t worker, uint64_t sequence, uint64_t acked_below, double weight,
             pb::ReplicaOp* op) {
  pb::ReplicaOp::Push* push = op->add_push();
  push->set_worker(worker);
  if (sequence > 0) {
    push->set_sequence(sequence);
    push->set_acked_below(acked_below);
  }
  push->set_weight(weight);
}

}  // namespace

void HostedPartition::SetReplicated(bool any_backup) {
  replicated_ = any_backup;
  if (!replicated_) OnDurable(last_index_);
}

void HostedPartition::OnDurable(uint64_t index) {
  durable_index_ = std::max(durable_index_, std::min(index, last_index_));
  while (!effects_.empty() && effects_.front().index <= durable_index_) {
    Take(effects_.front());
    effects_.pop_front();
  }
}

void HostedPartition::Take(const Effect& effect) {
  if (effect.tick.has_value()) {
    for (uint32_t worker : effect.closed) policy_.OnTick(worker, *effect.tick);
  }
  if (effect.left.has_value()) policy_.OnLeave(*effect.left);
}

// As it is once all that was done here is durable.
ConsistencyPolicy HostedPartition::AppliedPolicy() const {
  ConsistencyPolicy applied = policy_;
  for (const Effect& effect : effects_) {
    if (effect.tick.has_value()) {
      for (uint32_t worker : effect.closed) applied.OnTick(worker, *effect.tick);
    }
    if (effect.left.has_value()) applied.OnLeave(*effect.left);
  }
  return applied;
}

uint64_t HostedPartition::applied_clock() const {
  return effects_.empty() ? policy_.min_clock() : AppliedPolicy().min_clock();
}

void HostedPartition::BeforeStep(uint64_t step, absl::AnyInvocable<void()> hook) {
  before_step_ = nullptr;
  if (setup_.consistency.mode() != pb::Consistency::BSP || HasApplied(step)) return;
  hook_step_ = step;
  before_step_ = std::move(hook);
}

uint64_t HostedPartition::Missing(uint32_t worker) const {
  if (replicated_) return policy_.clock(worker);
  uint64_t tick = aggregator_->NextTick(worker);
  while (aggregator_->Find(tick, worker) != nullptr) ++tick;
  return tick;
}

void HostedPartition::Resume() {
  for (PendingStep& pending : pending_) pending.asked = false;
  Advance();
}

// gradients_ as one, which takes their place there. That of a single worker is handed on as it
// came.
SummedGradient HostedPartition::Together(const CompleteStep& step) {
  SummedGradient sum;
  if (gradients_.empty()) return sum;
  if (gradients_.size() > 1) {
    sum = values_->Sum(gradients_);
    gradients_.clear();
    if (!sum.values.empty()) gradients_.push_back({KeyList(sum.keys), sum.values.floats()});
    return sum;
  }
  for (const Contribution& c : step.contributions) {
    if (c.weight > 0 && !c.values.empty()) {
      sum.keys = c.keys;
      sum.values = values_->ToHost(c.values);
    }
  }
  return sum;
}

void HostedPartition::PublishStep(const PendingStep& pending, const StepInfo& info,
                                  SummedGradient sum) {
  if (!replicated_) {
    durable_index_ = ++last_index_;
    for (uint32_t worker : pending.step.closed) policy_.OnTick(worker, pending.step.tick);
    ForgetClosed(pending.step.tick, pending.step.closed);
    return;
  }
  pb::ReplicaOp op;
  op.set_kind(pb::ReplicaOp::STEP);
  for (const Contribution& c : pending.step.contributions) {
    // A predecessor's sequence means nothing to the guard of the present incarnation.
    const bool present = c.incarnation == guard_.incarnation(c.worker);
    AddPush(c.worker, present ? c.sequence : 0, c.acked_below, c.weight, &op);
  }
  const auto closes = [&](uint32_t worker) {
    const std::vector<uint32_t>& closed = pending.step.closed;
    return std::find(closed.begin(), closed.end(), worker) != closed.end();
  };
  for (const Superseding& push : superseding_) {
    // Of one tick each worker has a step of its own where groups are a worker's.
    if (push.tick != pending.step.tick || !closes(push.worker)) continue;
    AddPush(push.worker, push.sequence, push.acked_below, 0, &op);
    op.mutable_push(op.push_size() - 1)->set_superseded(true);
  }
  ForgetClosed(pending.step.tick, pending.step.closed);
  op.set_tick(pending.step.tick);
  op.mutable_closed()->Assign(pending.step.closed.begin(), pending.step.closed.end());
  op.set_inverse_weight(info.inverse_weight);
  if (setup_.clip != nullptr) {
    op.set_norm_scale(info.norm_scale);
    op.set_norm_total(*pending.norm);
    op.set_worker(pending.group.worker);
  }
  Effect effect;
  effect.tick = pending.step.tick;
  effect.closed = pending.step.closed;
  Publish(std::move(op), std::move(sum), std::move(effect));
}

void HostedPartition::PublishWithoutTick(const pb::FrameHeader& header, const pb::Part& part,
                                         const StepInfo& info, SummedGradient sum) {
  if (!replicated_) {
    durable_index_ = ++last_index_;
    return;
  }
  pb::ReplicaOp op;
  op.set_kind(pb::ReplicaOp::STEP);
  AddPush(header.rank(), part.sequence(), part.acked_below(), header.weight(), &op);
  op.set_inverse_weight(info.inverse_weight);
  Publish(std::move(op), std::move(sum), Effect());
}

void HostedPartition::PublishDrop(const pb::FrameHeader& header, const pb::Part& part,
                                  bool superseded) {
  if (!replicated_) {
    durable_index_ = ++last_index_;
    return;
  }
  pb::ReplicaOp op;
  op.set_kind(pb::ReplicaOp::DROP);
  AddPush(header.rank(), part.sequence(), part.acked_below(), header.weight(), &op);
  op.set_tick(header.tick());
  op.mutable_push(0)->set_superseded(superseded);
  Publish(std::move(op), SummedGradient(), Effect());
}

void HostedPartition::TakeSuperseded(const pb::FrameHeader& header, const pb::Part& part) {
  guard_.Commit(header.rank(), part.sequence(), part.acked_below());
  Count(&PushCounters::superseded);
  ++acknowledged_[header.rank()];
  if (AppliedPolicy().clock(header.rank()) > header.tick()) {
    PublishDrop(header, part, /*superseded=*/true);
  } else {
    superseding_.push_back({header.rank(), header.tick(), part.sequence(), part.acked_below()});
  }
}

// So near only, as pushes are taken: a peer cannot fill memory with it.
void HostedPartition::NoteDropped(uint32_t worker, uint64_t tick) {
  const uint64_t open = applied_clock();
  if (tick >= open && tick - open < Aggregator::kMaxAhead) dropped_ahead_.emplace(tick, worker);
}

void HostedPartition::ForgetClosed(uint64_t tick, absl::Span<const uint32_t> workers) {
  // Only under BSP is anything late, where steps are closed in their order, for all.
  dropped_ahead_.erase(dropped_ahead_.begin(), dropped_ahead_.lower_bound({tick + 1, 0}));
  if (superseding_.empty()) return;
  std::erase_if(superseding_, [&](const Superseding& push) {
    return push.tick == tick &&
           std::find(workers.begin(), workers.end(), push.worker) != workers.end();
  });
}

void HostedPartition::PublishLeave(uint32_t worker) {
  if (!replicated_) {
    durable_index_ = ++last_index_;
    policy_.OnLeave(worker);
    return;
  }
  pb::ReplicaOp op;
  op.set_kind(pb::ReplicaOp::LEAVE);
  op.set_worker(worker);
  op.set_tick(aggregator_->LeavesAt(worker));
  Effect effect;
  effect.left = worker;
  Publish(std::move(op), SummedGradient(), std::move(effect));
}

void HostedPartition::OnWorker(uint32_t worker, uint32_t incarnation) {
  if (worker >= workers() || guard_.incarnation(worker) == incarnation) return;
  NewIncarnation(worker, incarnation);
  if (!replicated_) {
    durable_index_ = ++last_index_;
    return;
  }
  pb::ReplicaOp op;
  op.set_kind(pb::ReplicaOp::WORKER);
  op.set_worker(worker);
  op.set_incarnation(incarnation);
  Publish(std::move(op), SummedGradient(), Effect());
}

void HostedPartition::NewIncarnation(uint32_t worker, uint32_t incarnation) {
  guard_.OnNewIncarnation(worker, incarnation);
  here_below_[worker] = std::max(here_below_[worker], aggregator_->NextTick(worker));
  acknowledged_[worker] = 0;
  Count(&PushCounters::superseded,
        -static_cast<int64_t>(std::erase_if(
            superseding_, [worker](const Superseding& push) { return push.worker == worker; })));
}

// REQUIRES: replicated_, and what the operation says is done.
void HostedPartition::Publish(pb::ReplicaOp op, SummedGradient sum, Effect effect) {
  effect.index = ++last_index_;
  op.set_index(last_index_);
  if (effect.tick.has_value() || effect.left.has_value()) effects_.push_back(std::move(effect));
  if (setup_.check_every > 0 && last_index_ % setup_.check_every == 0) op.set_digest(Digest());
  op_sink_(setup_.index, std::move(op), std::move(sum));
}

absl::Status HostedPartition::CheckOp(const pb::ReplicaOp& op, const Buffer& keys,
                                      const Buffer& values) const {
  const auto refuse = [&](const std::string& why) {
    return absl::InvalidArgumentError(
        absl::StrFormat("operation %d on partition %d: %s", op.index(), setup_.index, why));
  };
  if (op.index() != last_index_ + 1) {
    return refuse(absl::StrFormat("allowed is the one after %d", last_index_));
  }
  const bool step = op.kind() == pb::ReplicaOp::STEP;
  if (!step && (!keys.empty() || !values.empty())) return refuse("only a STEP has a gradient");
  if (op.worker() >= workers()) {
    return refuse(absl::StrFormat("worker is %d; allowed: below %d", op.worker(), workers()));
  }
  if (op.kind() == pb::ReplicaOp::DROP && op.push_size() != 1) {
    return refuse(absl::StrFormat("a DROP is of %d pushes, allowed is 1", op.push_size()));
  }
  for (const pb::ReplicaOp::Push& push : op.push()) {
    if (push.worker() >= workers() || !std::isfinite(push.weight()) || push.weight() < 0) {
      return refuse(
          absl::StrFormat("a push of worker %d with weight %g; allowed: below %d, and 0 "
                          "or more, finite",
                          push.worker(), push.weight(), workers()));
    }
    if (push.sequence() == 0) continue;
    ReplayGuard::Verdict unused;
    absl::Status status = guard_.Check(push.worker(), guard_.incarnation(push.worker()),
                                       push.sequence(), push.acked_below(), &unused);
    if (!status.ok()) return refuse(std::string(status.message()));
  }
  if (!step) return absl::OkStatus();
  if (!op.has_tick() && op.closed_size() > 0) return refuse("it closes ticks, but names none");
  if (!(op.inverse_weight() >= 0) || std::isinf(op.inverse_weight())) {
    return refuse(
        absl::StrFormat("inverse_weight is %g; allowed: 0 or more, finite", op.inverse_weight()));
  }
  const uint64_t wanted = values_->values(keys.size() / sizeof(uint64_t)) * sizeof(float);
  const bool fits = keys.size() % sizeof(uint64_t) == 0 && values.size() == wanted;
  if (!fits && !(keys.empty() && values.empty())) {
    return refuse(absl::StrFormat("%d bytes of values for %d of keys, allowed is %d", values.size(),
                                  keys.size(), wanted));
  }
  return values_->CheckKeys(KeyList(keys));
}

absl::Status HostedPartition::ApplyOp(const pb::ReplicaOp& op, Buffer keys, Buffer values) {
  if (absl::Status status = CheckOp(op, keys, values); !status.ok()) return status;
  switch (op.kind()) {
    case pb::ReplicaOp::STEP:
      if (absl::Status status = ApplyStepOp(op, keys, values); !status.ok()) return status;
      break;
    case pb::ReplicaOp::DROP:
      LearnPush(op, op.push(0));
      if (!op.push(0).superseded()) NoteDropped(op.push(0).worker(), op.tick());
      break;
    case pb::ReplicaOp::LEAVE:
      aggregator_->OnLeave(op.worker(), op.tick());
      policy_.OnLeave(op.worker());
      leaving_.erase(op.worker());
      break;
    case pb::ReplicaOp::WORKER:
      NewIncarnation(op.worker(), op.incarnation());
      break;
  }
  last_index_ = durable_index_ = op.index();
  if (setup_.probe != nullptr) setup_.probe->OnIndex(setup_.table, setup_.index, last_index_);
  if (op.has_digest() && op.digest() != Digest()) {
    return absl::DataLossError(absl::StrFormat(
        "partition %d after operation %d has the digest %016x here, at its primary %016x",
        setup_.index, op.index(), Digest(), op.digest()));
  }
  return absl::OkStatus();
}

absl::Status HostedPartition::ApplyStepOp(const pb::ReplicaOp& op, const Buffer& keys,
                                          const Buffer& values) {
  if (op.has_tick()) {
    // Gradients that came with the state, of a step that the primary has closed since: what it
    // closed the step with is in this operation.
    std::vector<Contribution> dropped;
    absl::Status status = aggregator_->Close(op.tick(), op.closed(), &dropped);
    if (!status.ok()) return status;
    ForgetClosed(op.tick(), op.closed());
    for (const Contribution& c : dropped) {
      Count(&PushCounters::accepted, -1);
      if (c.incarnation == guard_.incarnation(c.worker)) --acknowledged_[c.worker];
    }
  }
  for (const pb::ReplicaOp::Push& push : op.push()) LearnPush(op, push);
  gradients_.clear();
  if (!values.empty()) gradients_.push_back({KeyList(keys), values.floats()});
  if (op.has_tick() && keeps_overwritten()) KeepOverwritten(op.tick());
  if (op.inverse_weight() > 0) {
    StepInfo info;
    info.step = op.has_tick() ? op.tick() : values_->version();
    info.inverse_weight = op.inverse_weight();
    if (op.has_norm_scale()) info.norm_scale = op.norm_scale();
    UpdateWith(info);
  }
  if (op.has_tick()) values_->EndStep(op.tick());
  if (op.has_norm_total()) RememberNorm({op.tick(), op.worker()}, op.norm_total());
  for (uint32_t worker : op.closed()) policy_.OnTick(worker, op.tick());
  return absl::OkStatus();
}

// Counts and remembers a push as the primary did.
void HostedPartition::LearnPush(const pb::ReplicaOp& op, const pb::ReplicaOp::Push& push) {
  if (push.sequence() > 0) {
    const bool is_new = guard_.Learn(push.worker(), push.sequence(), push.acked_below());
    // One that was superseded may have come with the state, and counts there.
    if (push.superseded() && !is_new) return;
    ++acknowledged_[push.worker()];
  } else if (op.has_tick()) {
    here_below_[push.worker()] = std::max(here_below_[push.worker()], op.tick() + 1);
  }
  if (push.superseded()) return Count(&PushCounters::superseded);
  Count(&PushCounters::accepted);
  if (op.kind() == pb::ReplicaOp::DROP) return Count(&PushCounters::dropped);
  Count(&PushCounters::applied);
  CountSamples(push.weight());
}

}  // namespace parley
