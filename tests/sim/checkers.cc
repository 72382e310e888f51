#include "tests/sim/checkers.h"

#include <algorithm>

#include "absl/strings/str_format.h"

namespace parley {
namespace {

constexpr uint64_t kFinalRead = ~uint64_t{0};

uint64_t AllowedStaleness(const pb::Consistency& consistency) {
  switch (consistency.mode()) {
    case pb::Consistency::BSP:
      return 0;
    case pb::Consistency::SSP:
      return consistency.staleness();
    case pb::Consistency::ASP:
      return kFinalRead;
  }
  return 0;
}

}  // namespace

HistoryChecker::HistoryChecker(const pb::Consistency& consistency, uint32_t workers)
    : consistency_(consistency), workers_(workers), ticks_of_(workers, 0) {}

std::string HistoryChecker::Partition::Name() const {
  return absl::StrFormat("partition %d of table %d", index, table);
}

void HistoryChecker::ExpectTable(uint32_t table, uint32_t partitions) {
  for (uint32_t index = 0; index < partitions; ++index) Of({table, index});
}

HistoryChecker::State& HistoryChecker::Of(Partition partition) {
  State& state = states_[partition];
  if (state.closed.empty()) {
    state.closed.assign(workers_, 0);
    state.ahead.resize(workers_);
  }
  return state;
}

void HistoryChecker::Violation(std::string line) {
  if (violations_.size() < 20) violations_.push_back(std::move(line));
}

void HistoryChecker::Close(State& state, uint32_t worker, uint64_t tick) {
  std::map<uint64_t, bool>& ahead = state.ahead[worker];
  ahead[tick] = true;
  while (!ahead.empty() && ahead.begin()->first <= state.closed[worker]) {
    state.closed[worker] = std::max(state.closed[worker], ahead.begin()->first + 1);
    ahead.erase(ahead.begin());
  }
}

void HistoryChecker::CheckVersion(Partition partition, uint64_t version) {
  State& state = Of(partition);
  if (version < state.version) {
    Violation(absl::StrFormat("%s went back from version %d to %d", partition.Name(), state.version,
                              version));
  }
  state.version = version;
}

void HistoryChecker::OnApply(uint32_t table, uint32_t index, uint64_t tick,
                             const std::vector<uint32_t>& workers, uint64_t version) {
  ++applies_;
  const Partition partition{table, index};
  CheckVersion(partition, version);
  State& state = Of(partition);
  for (uint32_t worker : workers) {
    const int times = ++applied_[{partition, worker, tick}];
    if (times > 1) {
      Violation(absl::StrFormat("tick %d of worker %d was applied %d times to %s", tick, worker,
                                times, partition.Name()));
    }
    if (!accepted_.contains({partition, worker, tick})) {
      Violation(absl::StrFormat("tick %d of worker %d was applied to %s, never accepted", tick,
                                worker, partition.Name()));
    }
    Close(state, worker, tick);
  }
  // With backup workers a step is closed for those too that were not waited for.
  if (consistency_.mode() == pb::Consistency::BSP && consistency_.backup_workers() > 0) {
    for (uint32_t worker = 0; worker < workers_; ++worker) Close(state, worker, tick);
  }
}

void HistoryChecker::OnUpdateWithoutTick(uint32_t table, uint32_t index, uint32_t worker,
                                         uint64_t sequence, uint64_t version) {
  ++applies_;
  const Partition partition{table, index};
  CheckVersion(partition, version);
  const int times = ++without_tick_[{partition, worker, sequence}];
  if (times > 1) {
    Violation(absl::StrFormat(
        "sequence %d of worker %d, an update without tick, was applied %d times to %s", sequence,
        worker, times, partition.Name()));
  }
  if (consistency_.mode() != pb::Consistency::ASP) {
    Violation(absl::StrFormat(
        "sequence %d of worker %d, an update without tick, came to %s under %s", sequence, worker,
        partition.Name(), pb::Consistency::Mode_Name(consistency_.mode())));
  }
}

void HistoryChecker::OnAccept(uint32_t table, uint32_t index, uint32_t worker, uint64_t tick,
                              bool late) {
  const Partition partition{table, index};
  const Push push{partition, worker, tick};
  if (++accepted_[push] > 1) {
    Violation(absl::StrFormat("tick %d of worker %d was accepted %d times by %s", tick, worker,
                              accepted_[push], partition.Name()));
  }
  if (worker < workers_) ticks_of_[worker] = std::max(ticks_of_[worker], tick + 1);
  if (!late) return;
  ++late_[push];
  const int late_of_step = ++late_of_step_[{partition, tick}];
  const uint32_t allowed =
      consistency_.mode() == pb::Consistency::BSP ? consistency_.backup_workers() : 0;
  if (late_of_step > static_cast<int>(allowed)) {
    Violation(absl::StrFormat("%d pushes for step %d came late to %s, allowed are %d", late_of_step,
                              tick, partition.Name(), allowed));
  }
}

void HistoryChecker::OnRead(uint32_t table, uint32_t index, uint32_t worker, uint64_t tick,
                            uint64_t version) {
  const Partition partition{table, index};
  if (version < Of(partition).version) {
    Violation(absl::StrFormat("worker %d was sent version %d of %s, which is at %d", worker,
                              version, partition.Name(), Of(partition).version));
  }
  reads_.push_back({partition, worker, tick, Of(partition).closed});
}

void HistoryChecker::Finish(uint64_t acknowledged, uint64_t applied, uint64_t dropped) {
  const uint64_t staleness = AllowedStaleness(consistency_);
  for (const Read& read : reads_) {
    const uint64_t needed = read.tick == kFinalRead  ? kFinalRead
                            : read.tick <= staleness ? 0
                                                     : read.tick - staleness;
    for (uint32_t worker = 0; worker < workers_; ++worker) {
      // A worker that is through with all its ticks is waited for no longer.
      const uint64_t due = std::min(needed, ticks_of_[worker]);
      if (read.closed[worker] >= due) continue;
      Violation(absl::StrFormat(
          "worker %d read %s for tick %d when only %d ticks of worker %d were in, "
          "allowed is %d or more",
          read.worker, read.partition.Name(), read.tick, read.closed[worker], worker, due));
    }
  }
  for (const auto& [push, times] : accepted_) {
    const auto& [partition, worker, tick] = push;
    const bool is_late = late_.contains(push);
    if (applied_.contains(push) == is_late) {
      Violation(absl::StrFormat("tick %d of worker %d, acknowledged by %s, was %s", tick, worker,
                                partition.Name(),
                                is_late ? "applied although late" : "never applied"));
    }
  }
  // Every partition has seen every tick of every worker.
  for (const auto& [partition, state] : states_) {
    for (uint32_t worker = 0; worker < workers_; ++worker) {
      for (uint64_t tick = 0; tick < ticks_of_[worker]; ++tick) {
        if (!accepted_.contains({partition, worker, tick})) {
          Violation(
              absl::StrFormat("%s never got tick %d of worker %d", partition.Name(), tick, worker));
        }
      }
    }
  }
  const uint64_t free = without_tick_.size();  // accepted and applied in one
  if (acknowledged != accepted_.size() + free || applied != applied_.size() + free ||
      dropped != late_.size()) {
    Violation(absl::StrFormat(
        "the summary says %d acknowledged, %d applied, %d late; seen were %d, %d and %d",
        acknowledged, applied, dropped, accepted_.size() + free, applied_.size() + free,
        late_.size()));
  }
}

}  // namespace parley
