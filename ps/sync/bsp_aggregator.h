// BspAggregator: the Aggregator of BSP, with or without backup workers; internal to ps/sync.
#ifndef PARLEY_PS_SYNC_BSP_AGGREGATOR_H_
#define PARLEY_PS_SYNC_BSP_AGGREGATOR_H_

#include <deque>
#include <vector>

#include "ps/sync/aggregator.h"

namespace parley {

class BspAggregator : public Aggregator {
 public:
  BspAggregator(uint32_t workers, uint32_t backup_workers);

  absl::StatusOr<Verdict> Check(uint64_t tick, uint32_t worker, double weight) const override;
  absl::StatusOr<Verdict> Add(uint64_t tick, Contribution contribution) override;
  bool PopComplete(CompleteStep* step) override;
  void OnLeave(uint32_t worker, uint64_t after_tick) override;
  std::vector<uint32_t> Missing() const override;
  size_t held() const override { return held_; }
  uint64_t NextTick(uint32_t) const override { return front_tick_; }
  const Contribution* Find(uint64_t tick, uint32_t worker) const override;
  uint64_t LeavesAt(uint32_t worker) const override { return leaves_at_[worker]; }
  absl::Status Close(uint64_t tick, absl::Span<const uint32_t> workers,
                     std::vector<Contribution>* dropped) override;
  State Save() const override;
  absl::Status Load(State state) override;

 private:
  struct OpenStep {
    std::vector<Contribution> contributions;  // in order of arrival
    std::vector<bool> pushed;                 // [workers]
    uint32_t live_pushed = 0;                 // of those who are live in this step
  };

  bool LiveAt(uint32_t worker, uint64_t tick) const { return tick < leaves_at_[worker]; }
  bool FrontComplete() const;
  void CountFront();
  OpenStep& Open(uint64_t tick);

  const uint32_t backup_workers_;
  std::vector<uint64_t> leaves_at_;  // [workers]: the first tick it does not push
  uint64_t front_tick_ = 0;          // the oldest open step; all before are closed
  uint32_t front_live_;              // workers that are live in it
  std::deque<OpenStep> open_;        // front_tick_, front_tick_ + 1, ...
  size_t held_ = 0;
};

}  // namespace parley

#endif  // PARLEY_PS_SYNC_BSP_AGGREGATOR_H_
