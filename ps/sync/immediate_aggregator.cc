#include "ps/sync/immediate_aggregator.h"

#include <algorithm>

#include "absl/strings/str_format.h"
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

const Contribution* ImmediateAggregator::Find(uint64_t tick, uint32_t worker) const {
  const auto early = streams_[worker].early.find(tick);
  if (early != streams_[worker].early.end()) return &early->second;
  for (const auto& [ready_tick, c] : ready_) {
    if (ready_tick == tick && c.worker == worker) return &c;
  }
  return nullptr;
}

absl::Status ImmediateAggregator::Close(uint64_t tick, absl::Span<const uint32_t> workers,
                                        std::vector<Contribution>* dropped) {
  if (absl::Status status = CheckClosed(tick, workers, streams_.size()); !status.ok()) {
    return status;
  }
  const auto ready = [&](uint32_t worker) {
    return std::find_if(ready_.begin(), ready_.end(), [&](const auto& held) {
      return held.first == tick && held.second.worker == worker;
    });
  };
  for (const uint32_t worker : workers) {
    const uint64_t next = streams_[worker].next_tick;
    if (tick >= next ? tick - next <= kMaxAhead : ready(worker) != ready_.end()) continue;
    return absl::InvalidArgumentError(
        absl::StrFormat("tick %u of worker %u was closed elsewhere; allowed: from %u up to %u past "
                        "it",
                        tick, worker, next, kMaxAhead));
  }
  for (const uint32_t worker : workers) {
    Stream& stream = streams_[worker];
    if (const auto held = ready(worker); held != ready_.end()) {
      dropped->push_back(std::move(held->second));
      ready_.erase(held);
      --held_;
      continue;
    }
    // A tick that is passed over never comes: what is held of it went the same way elsewhere.
    while (!stream.early.empty() && stream.early.begin()->first <= tick) {
      dropped->push_back(std::move(stream.early.begin()->second));
      stream.early.erase(stream.early.begin());
      --held_;
    }
    stream.next_tick = tick + 1;
    Release(&stream);
  }
  return absl::OkStatus();
}

Aggregator::State ImmediateAggregator::Save() const {
  State state;
  for (const Stream& stream : streams_) {
    state.next_tick.push_back(stream.next_tick);
    state.leaves_at.push_back(stream.leaves_at);
    for (const auto& [tick, c] : stream.early) state.held.emplace_back(tick, c);
  }
  for (const auto& [tick, c] : ready_) {
    state.next_tick[c.worker] = std::min(state.next_tick[c.worker], tick);
    state.held.emplace_back(tick, c);
  }
  return state;
}

absl::Status ImmediateAggregator::Load(State state) {
  if (absl::Status status = CheckState(state, streams_.size()); !status.ok()) return status;
  for (const auto& [tick, c] : state.held) {
    const uint64_t next = state.next_tick[c.worker];
    if (tick >= next && tick - next <= kMaxAhead) continue;
    return absl::InvalidArgumentError(
        absl::StrFormat("gradient of worker %u: tick is %u; allowed: from its first open one, %u, "
                        "up to %u past it",
                        c.worker, tick, next, kMaxAhead));
  }
  ready_.clear();
  held_ = state.held.size();
  for (size_t w = 0; w < streams_.size(); ++w) {
    streams_[w].next_tick = state.next_tick[w];
    streams_[w].leaves_at = state.leaves_at[w];
    streams_[w].early.clear();
  }
  for (auto& [tick, c] : state.held) {
    streams_[c.worker].early.emplace(tick, std::move(c));
  }
  for (Stream& stream : streams_) Release(&stream);
  return absl::OkStatus();
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
