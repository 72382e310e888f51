#include "ps/sync/bsp_aggregator.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_format.h"
#include "ps/sync/contribution_check.h"

namespace parley {

BspAggregator::BspAggregator(uint32_t workers, uint32_t backup_workers)
    : backup_workers_(backup_workers), leaves_at_(workers, kNeverLeaves), front_live_(workers) {}

absl::StatusOr<Aggregator::Verdict> BspAggregator::Check(uint64_t tick, uint32_t worker,
                                                         double weight) const {
  if (absl::Status status = CheckContribution(tick, worker, weight, leaves_at_.size());
      !status.ok()) {
    return status;
  }
  if (tick < front_tick_) return Verdict::kLate;
  if (absl::Status status = CheckTick(tick, worker, front_tick_, leaves_at_[worker]);
      !status.ok()) {
    return status;
  }
  const size_t index = tick - front_tick_;
  if (index < open_.size() && open_[index].pushed[worker]) return SecondGradientError(tick, worker);
  return Verdict::kAccepted;
}

absl::StatusOr<Aggregator::Verdict> BspAggregator::Add(uint64_t tick, Contribution contribution) {
  const uint32_t worker = contribution.worker;
  absl::StatusOr<Verdict> verdict = Check(tick, worker, contribution.weight);
  if (!verdict.ok() || *verdict == Verdict::kLate) return verdict;
  OpenStep& step = Open(tick);
  step.pushed[worker] = true;
  ++step.live_pushed;
  step.contributions.push_back(std::move(contribution));
  ++held_;
  return Verdict::kAccepted;
}

// REQUIRES: tick >= front_tick_, by no more than kMaxAhead.
BspAggregator::OpenStep& BspAggregator::Open(uint64_t tick) {
  const size_t index = tick - front_tick_;
  while (open_.size() <= index) {
    open_.emplace_back();
    open_.back().pushed.resize(leaves_at_.size());
  }
  return open_[index];
}

std::vector<uint32_t> BspAggregator::Missing() const {
  std::vector<uint32_t> missing;
  for (uint32_t w = 0; w < leaves_at_.size(); ++w) {
    const bool pushed = !open_.empty() && open_.front().pushed[w];
    if (LiveAt(w, front_tick_) && !pushed) missing.push_back(w);
  }
  return missing;
}

bool BspAggregator::FrontComplete() const {
  if (open_.empty()) return false;
  // Nobody is left to wait for. Something is held here or in a later step, or it would not be open.
  if (front_live_ == 0) return true;
  // However many back-ups there are, a step of nobody's gradient is no step.
  const uint32_t needed = front_live_ > backup_workers_ ? front_live_ - backup_workers_ : 1;
  return open_.front().live_pushed >= needed;
}

bool BspAggregator::PopComplete(CompleteStep* step) {
  if (!FrontComplete()) return false;
  OpenStep& front = open_.front();
  step->tick = front_tick_;
  step->contributions = std::move(front.contributions);
  // The one order that does not depend on the network.
  std::sort(step->contributions.begin(), step->contributions.end(),
            [](const Contribution& a, const Contribution& b) { return a.worker < b.worker; });
  step->closed.clear();
  for (uint32_t w = 0; w < leaves_at_.size(); ++w) {
    if (front.pushed[w] || LiveAt(w, front_tick_)) step->closed.push_back(w);
  }
  held_ -= step->contributions.size();
  open_.pop_front();
  ++front_tick_;
  CountFront();
  return true;
}

void BspAggregator::OnLeave(uint32_t worker, uint64_t after_tick) {
  if (worker >= leaves_at_.size() || after_tick >= leaves_at_[worker]) return;
  for (size_t i = 0; i < open_.size(); ++i) {
    const uint64_t tick = front_tick_ + i;
    // Its gradient stays, but no longer stands for one of those who are waited for.
    const bool counted = open_[i].pushed[worker] && LiveAt(worker, tick);
    if (counted && tick >= after_tick) --open_[i].live_pushed;
  }
  leaves_at_[worker] = after_tick;
  CountFront();
}

const Contribution* BspAggregator::Find(uint64_t tick, uint32_t worker) const {
  if (tick < front_tick_ || tick - front_tick_ >= open_.size()) return nullptr;
  for (const Contribution& c : open_[tick - front_tick_].contributions) {
    if (c.worker == worker) return &c;
  }
  return nullptr;
}

absl::Status BspAggregator::Close(uint64_t tick, absl::Span<const uint32_t> workers,
                                  std::vector<Contribution>* dropped) {
  if (absl::Status status = CheckClosed(tick, workers, leaves_at_.size()); !status.ok()) {
    return status;
  }
  if (tick != front_tick_) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "step %u was closed elsewhere; allowed: the oldest open one, %u", tick, front_tick_));
  }
  if (!open_.empty()) {
    std::vector<Contribution>& held = open_.front().contributions;
    held_ -= held.size();
    std::move(held.begin(), held.end(), std::back_inserter(*dropped));
    open_.pop_front();
  }
  ++front_tick_;
  CountFront();
  return absl::OkStatus();
}

Aggregator::State BspAggregator::Save() const {
  State state;
  state.next_tick.assign(leaves_at_.size(), front_tick_);
  state.leaves_at = leaves_at_;
  for (size_t i = 0; i < open_.size(); ++i) {
    for (const Contribution& c : open_[i].contributions) {
      state.held.emplace_back(front_tick_ + i, c);
    }
  }
  return state;
}

absl::Status BspAggregator::Load(State state) {
  const size_t workers = leaves_at_.size();
  if (absl::Status status = CheckState(state, workers); !status.ok()) return status;
  // A step that was put back was closed for those who were live in it, so the lowest counts.
  const uint64_t front = *std::min_element(state.next_tick.begin(), state.next_tick.end());
  for (const auto& [tick, c] : state.held) {
    if (tick >= front && tick - front <= kMaxAhead) continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "gradient of worker %u: tick is %u; allowed: from the oldest open one, %u, up to %u past "
        "it",
        c.worker, tick, front, kMaxAhead));
  }
  front_tick_ = front;
  leaves_at_ = std::move(state.leaves_at);
  open_.clear();
  held_ = state.held.size();
  for (auto& [tick, c] : state.held) {
    OpenStep& step = Open(tick);
    step.pushed[c.worker] = true;
    if (LiveAt(c.worker, tick)) ++step.live_pushed;
    step.contributions.push_back(std::move(c));
  }
  CountFront();
  return absl::OkStatus();
}

void BspAggregator::CountFront() {
  front_live_ = 0;
  for (uint32_t w = 0; w < leaves_at_.size(); ++w) front_live_ += LiveAt(w, front_tick_) ? 1 : 0;
}

}  // namespace parley
