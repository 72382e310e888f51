// ImmediateAggregator: the Aggregator of SSP and ASP, every gradient at once and alone; internal to
// ps/sync.
#ifndef PARLEY_PS_SYNC_IMMEDIATE_AGGREGATOR_H_
#define PARLEY_PS_SYNC_IMMEDIATE_AGGREGATOR_H_

#include <deque>
#include <map>
#include <utility>
#include <vector>

#include "ps/sync/aggregator.h"

namespace parley {

class ImmediateAggregator : public Aggregator {
 public:
  explicit ImmediateAggregator(uint32_t workers);

  absl::StatusOr<Verdict> Check(uint64_t tick, uint32_t worker, double weight) const override;
  absl::StatusOr<Verdict> Add(uint64_t tick, Contribution contribution) override;
  bool PopComplete(CompleteStep* step) override;
  void OnLeave(uint32_t worker, uint64_t after_tick) override;
  std::vector<uint32_t> Missing() const override;
  size_t held() const override { return held_; }
  uint64_t NextTick(uint32_t worker) const override { return streams_[worker].next_tick; }
  const Contribution* Find(uint64_t tick, uint32_t worker) const override;
  uint64_t LeavesAt(uint32_t worker) const override { return streams_[worker].leaves_at; }
  absl::Status Close(uint64_t tick, absl::Span<const uint32_t> workers,
                     std::vector<Contribution>* dropped) override;
  State Save() const override;
  absl::Status Load(State state) override;

 private:
  struct Stream {
    uint64_t next_tick = 0;                  // all before have come out
    uint64_t leaves_at;                      // the first tick it does not push
    std::map<uint64_t, Contribution> early;  // overtook next_tick; at most kMaxAhead
  };

  // Moves what has become ready out of a worker's stream.
  void Release(Stream* stream);

  std::vector<Stream> streams_;  // [workers]
  std::deque<std::pair<uint64_t, Contribution>> ready_;
  size_t held_ = 0;
};

}  // namespace parley

#endif  // PARLEY_PS_SYNC_IMMEDIATE_AGGREGATOR_H_
