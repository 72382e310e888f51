// Checkers: what must hold in every run of the simulated cluster, found out independently of the
// code under test.
#ifndef PARLEY_TESTS_SIM_CHECKERS_H_
#define PARLEY_TESTS_SIM_CHECKERS_H_

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "proto/cluster.pb.h"
#include "proto/experiment.pb.h"
#include "ps/base/ids.h"
#include "ps/server/server_probe.h"
#include "ps/wire/frame.h"
#include "tests/sim/lineage.h"

namespace parley {

// Watches all servers of one run, and what travels between nodes; a partition is one of a table,
// dense or sparse. All of it holds within a generation; the next one begins with nothing.
//  - exactly once: every (partition, worker, tick) is taken once by a primary and is once among the
//    updates that led to the weights (lineage.h), whoever was primary; under BSP with k backup
//    workers at most k of a step come late instead, otherwise none
//  - no partition is forgotten: each that was expected has seen every tick of every worker
//  - updates that belong to no step are applied once, and under ASP only
//  - bounded staleness: a worker never reads for tick t before all workers' ticks below t - s are
//    in the weights
//  - readers get the version that there is; under BSP, for their tick
//  - acknowledged means durable: when a push is acknowledged and its partition has copies, the push
//    is in the weights, and each copy that counts has said that it has it. Whoever is primary later
//    has it in its weights, too: so a primary whose time is over has acknowledged nothing more; nor
//    does anybody acknowledge who is no primary by the map that has reached it
//  - copies do what their primary does: none is ever found to have another state
// Violations are collected, not thrown: one line each.
class HistoryChecker {
 public:
  explicit HistoryChecker(const pb::Consistency& consistency, uint32_t workers);
  HistoryChecker(const HistoryChecker&) = delete;
  HistoryChecker& operator=(const HistoryChecker&) = delete;

  // A table that every worker pushes to with each of its ticks, in all of these partitions, whether
  // a server ever speaks of them or not. Before the run.
  void ExpectTable(uint32_t table, uint32_t partitions);
  // What another checker found out.
  void Violation(std::string line);

  // What the server at `node` tells; the checker outlives it.
  std::unique_ptr<ServerProbe> ProbeOf(NodeId node);
  // Every frame, when it is sent and when it arrives.
  void OnSend(NodeId from, NodeId to, const Frame& frame);
  void OnArrival(NodeId from, NodeId to, const Frame& frame);

  // After the run: `acknowledged` push parts is what the workers believe. `closed_without`: steps
  // may have been closed without a worker that was replaced.
  void Finish(uint64_t acknowledged, uint64_t applied, uint64_t dropped,
              bool closed_without = false);

  // What is in the weights of each partition in the end, of the last generation.
  void VisitFinal(
      absl::FunctionRef<void(const std::string& name, const std::vector<Update>& updates)> visit)
      const;

  const std::vector<std::string>& violations() const { return violations_; }
  uint64_t reads() const { return reads_.size(); }
  uint64_t applies() const { return applies_; }
  uint64_t updates_without_tick() const { return updates_without_tick_; }
  uint64_t promises() const { return promises_; }  // acknowledgements with copies
  uint64_t generation() const { return generation_; }
  uint64_t first_step() const;  // of the last generation

 private:
  class Probe;
  struct Partition {
    uint32_t table, index;
    auto operator<=>(const Partition&) const = default;
    std::string Name() const;
  };
  // Of a server, by the newest map that has reached it.
  struct Role {
    bool primary = false;
    uint64_t stint = 0;          // the epoch in which it became primary,
    uint64_t base = 0;           // with so many operations
    std::vector<NodeId> copies;  // of a primary
    std::vector<NodeId> synced;  // of these, those that count
  };
  struct Server {
    uint64_t generation = 0, epoch = 0;
    std::map<Partition, Role> roles;
    std::map<Partition, uint64_t> next_index;  // told by OnIndex
    double arriving = 0;                       // the weight of the push that came last
  };
  struct Push {  // a request, as a server has it
    uint32_t table = 0, rank = 0;
    bool has_tick = false;
    uint64_t tick = 0;
    std::vector<std::pair<uint32_t, uint64_t>> parts;  // partition, sequence
  };
  struct Read {
    Partition partition;
    uint32_t worker;
    uint64_t tick;
    std::vector<uint64_t> closed;  // by worker: its ticks below this were in the weights
  };
  using Line = std::pair<uint64_t, Partition>;  // generation, partition
  using Mark = std::pair<uint32_t, uint64_t>;   // worker, tick

  void OnApply(NodeId node, Partition partition, uint64_t tick,
               const std::vector<uint32_t>& workers, uint64_t version);
  void OnUpdateWithoutTick(NodeId node, Partition partition, uint32_t worker, uint64_t sequence,
                           uint64_t version);
  void OnAccept(NodeId node, Partition partition, uint32_t worker, uint64_t tick, bool late);
  void OnRead(NodeId node, Partition partition, uint32_t worker, uint64_t tick, uint64_t version);

  // The branch that the server's words belong to.
  Branch& Of(NodeId node, Partition partition);
  void CheckTakeOver(const Line& line, NodeId node, const std::vector<Update>& left_behind);
  void OnAssign(NodeId server, const Frame& frame);
  void OnNews(NodeId primary, const Frame& frame);
  void OnAcknowledged(NodeId server, const Push& push);
  // How many samples the server says that a gradient is of.
  double WeightOf(NodeId node, const Line& line, Mark mark) const;
  void HearSilentPrimaries();
  std::set<Partition> FinalPartitions() const;
  void FinishPartition(Partition partition, bool closed_without, uint64_t* applied, uint64_t* late);

  const pb::Consistency consistency_;
  const uint32_t workers_;
  std::set<Partition> expected_;
  std::map<NodeId, Server> servers_;
  uint64_t generation_ = 0;                  // the newest that a server knows
  std::map<uint64_t, uint64_t> first_step_;  // by generation
  std::map<Line, Lineage> lineages_;
  std::map<Line, std::map<Mark, double>> accepted_;  // by anybody: the weight, as taken last
  std::map<std::tuple<Line, NodeId, Mark>, double> weights_;  // as taken by this one
  std::map<Line, std::map<Mark, NodeId>> acknowledged_;       // ticks, by whom
  std::map<Line, std::map<Mark, NodeId>> promised_;  // of these, that were in the weights then
  std::map<std::tuple<Line, NodeId, uint64_t, Mark>, int> taken_;  // by a primary in one stint
  std::map<std::pair<NodeId, uint64_t>, Push> pushes_;             // by sender and request
  // Operations on their way to a copy, by sender and request; and what a copy has, as it told.
  std::map<std::pair<NodeId, uint64_t>, std::pair<Partition, uint64_t>> copying_;
  // UNSYNCED on its way, by who asks and the request: of which partition, and the copy's node.
  std::map<std::pair<NodeId, uint64_t>, std::pair<Partition, NodeId>> unsynced_;
  std::map<std::tuple<uint64_t, NodeId, NodeId, Partition>, uint64_t> copied_;
  std::vector<Read> reads_;
  std::vector<uint64_t> ticks_of_;  // by worker: ticks pushed in all
  uint64_t applies_ = 0, updates_without_tick_ = 0, promises_ = 0;
  std::vector<std::string> violations_;
};

}  // namespace parley

#endif  // PARLEY_TESTS_SIM_CHECKERS_H_
