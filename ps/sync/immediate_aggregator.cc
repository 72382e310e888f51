#include "ps/sync/immediate_aggregator.h"

#include <algorithm>

#include "ps/sync/contribution_check.h"

namespace parley {

ImmediateAggregator::ImmediateAggregator(uint32_t workers) : streams_(workers) {
  for (Stream& stream : streams_) stream.leaves_at = kNeverLeaves;
}

absl::StatusOr<Aggregator::Verdict> ImmediateAggregator::Check(uint64_t tick, uint32_t worker,
                                                               double weight) const {
  if (absl::Status status = CheckContribution(tick, worker, weight, streams_.size());
      !status.ok()) {
    return status;
  }
  const Stream& stream = streams_[worker];
  if (tick < stream.next_tick || stream.early.contains(tick)) {
    return SecondGradientError(tick, worker);
  }
  if (absl::Status status = CheckTick(tick, worker, stream.next_tick, stream.leaves_at);
      !status.ok()) {
    return status;
  }
  return Verdict::kAccepted;
}

absl::StatusOr<Aggregator::Verdict> ImmediateAggregator::Add(uint64_t tick,
                                                             Contribution contribution) {
  const uint32_t worker = contribution.worker;
  absl::StatusOr<Verdict> verdict = Check(tick, worker, contribution.weight);
  if (!verdict.ok()) return verdict;
  Stream& stream = streams_[worker];
  stream.early.emplace(tick, std::move(contribution));
  ++held_;
  Release(&stream);
  return Verdict::kAccepted;
}

std::vector<uint32_t> ImmediateAggregator::Missing() const { return {}; }

bool ImmediateAggregator::PopComplete(CompleteStep* step) {
  if (ready_.empty()) return false;
  step->tick = ready_.front().first;
  step->contributions.clear();
  step->contributions.push_back(std::move(ready_.front().second));
  step->closed.assign(1, step->contributions.front().worker);
  ready_.pop_front();
  --held_;
  return true;
}

void ImmediateAggregator::OnLeave(uint32_t worker, uint64_t after_tick) {
  if (worker >= streams_.size()) return;
  Stream& stream = streams_[worker];
  stream.leaves_at = std::min(stream.leaves_at, after_tick);
  Release(&stream);
}

void ImmediateAggregator::Release(Stream* stream) {
  while (!stream->early.empty()) {
    auto first = stream->early.begin();
    // Ticks from leaves_at on that are missing now never come: what is behind such a gap was
    // acknowledged and must not be lost.
    if (first->first != stream->next_tick && stream->next_tick < stream->leaves_at) return;
    stream->next_tick = first->first + 1;
    ready_.emplace_back(first->first, std::move(first->second));
    stream->early.erase(first);
  }
}

}  // namespace parley
