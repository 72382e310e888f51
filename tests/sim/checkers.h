// Checkers: what must hold in every run of the simulated cluster, found out independently of the
// code under test.
#ifndef PARLEY_TESTS_SIM_CHECKERS_H_
#define PARLEY_TESTS_SIM_CHECKERS_H_

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "proto/experiment.pb.h"
#include "ps/server/server_probe.h"

namespace parley {

// Watches all servers of one run; a partition is one of a table, dense or sparse.
//  - exactly once: every (partition, worker, tick) is accepted once and applied once; under BSP
//    with k backup workers at most k of a step come late instead, otherwise none
//  - no partition is forgotten: each that was expected has seen every tick of every worker
//  - updates that belong to no step are applied once, and under ASP only
//  - bounded staleness: a worker never reads for tick t before all workers' ticks below t - s are
//    in the weights
//  - versions never go back
// Violations are collected, not thrown: one line each.
class HistoryChecker : public ServerProbe {
 public:
  explicit HistoryChecker(const pb::Consistency& consistency, uint32_t workers);

  // A table that every worker pushes to with each of its ticks, in all of these partitions, whether
  // a server ever speaks of them or not. Before the run.
  void ExpectTable(uint32_t table, uint32_t partitions);
  // What another checker found out.
  void Violation(std::string line);

  void OnApply(uint32_t table, uint32_t partition, uint64_t tick,
               const std::vector<uint32_t>& workers, uint64_t version) override;
  void OnUpdateWithoutTick(uint32_t table, uint32_t partition, uint32_t worker, uint64_t sequence,
                           uint64_t version) override;
  void OnAccept(uint32_t table, uint32_t partition, uint32_t worker, uint64_t tick,
                bool late) override;
  void OnRead(uint32_t table, uint32_t partition, uint32_t worker, uint64_t tick,
              uint64_t version) override;

  // After the run: `acknowledged` push parts is what the workers believe.
  void Finish(uint64_t acknowledged, uint64_t applied, uint64_t dropped);

  const std::vector<std::string>& violations() const { return violations_; }
  uint64_t reads() const { return reads_.size(); }
  uint64_t applies() const { return applies_; }
  uint64_t updates_without_tick() const { return without_tick_.size(); }

 private:
  struct Partition {
    uint32_t table, index;
    auto operator<=>(const Partition&) const = default;
    std::string Name() const;
  };
  using Push = std::tuple<Partition, uint32_t, uint64_t>;  // partition, worker, tick (or sequence)
  struct Read {
    Partition partition;
    uint32_t worker;
    uint64_t tick;
    std::vector<uint64_t> closed;  // by worker: its ticks below this were in the weights
  };
  struct State {
    uint64_t version = 0;
    std::vector<uint64_t> closed;
    std::vector<std::map<uint64_t, bool>> ahead;  // closed out of order
  };
  State& Of(Partition partition);
  void CheckVersion(Partition partition, uint64_t version);
  void Close(State& state, uint32_t worker, uint64_t tick);

  const pb::Consistency consistency_;
  const uint32_t workers_;
  std::map<Partition, State> states_;
  std::map<Push, int> accepted_, applied_, late_, without_tick_;
  std::map<std::pair<Partition, uint64_t>, int> late_of_step_;
  std::vector<Read> reads_;
  std::vector<uint64_t> ticks_of_;  // by worker: ticks pushed in all
  uint64_t applies_ = 0;
  std::vector<std::string> violations_;
};

}  // namespace parley

#endif  // PARLEY_TESTS_SIM_CHECKERS_H_
