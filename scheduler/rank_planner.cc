#include "scheduler/rank_planner.h"

#include <map>
#include <tuple>
#include <vector>

namespace parley {
namespace {

class RankPlanner {
 public:
  RankPlanner(const PlanInput& input, const pb::Assignment& current, Plan* plan)
      : input_(input), plan_(plan), ranks_(input.workers.size()) {
    std::map<uint64_t, size_t> of_node;
    for (size_t w = 0; w < input.workers.size(); ++w) of_node[Value(input.workers[w].node)] = w;
    for (int rank = 0; rank < current.worker_node_size(); ++rank) {
      if (input.finished.contains(rank)) continue;
      auto found = of_node.find(current.worker_node(rank));
      if (found == of_node.end()) {
        homeless_.push_back(rank);
      } else {
        ranks_[found->second].insert(rank);
      }
    }
  }

  void Run() {
    for (uint32_t rank : homeless_) {
      if (input_.workers.empty()) {
        plan_->orphans = true;
      } else {
        Give(rank, Fewest(rank));
      }
    }
    if (!input_.move_living || input_.workers.empty()) return;
    Spread();
    LeaveSlow();
  }

 private:
  void Give(uint32_t rank, size_t to) {
    for (std::set<uint32_t>& ranks : ranks_) ranks.erase(rank);
    ranks_[to].insert(rank);
    plan_->next.set_worker_node(rank, Value(input_.workers[to].node));
    plan_->next.set_worker_incarnation(rank, plan_->next.worker_incarnation(rank) + 1);
    plan_->moved_ranks.push_back(rank);
  }

  size_t Fewest(uint32_t rank) const {
    const auto key = [&](size_t w) {
      const PlanWorker& worker = input_.workers[w];
      return std::tuple(worker.slow, ranks_[w].size(), worker.place != rank, worker.place, w);
    };
    size_t best = 0;
    for (size_t w = 1; w < ranks_.size(); ++w) {
      if (key(w) < key(best)) best = w;
    }
    return best;
  }

  // Ends: each move makes the sum of the squares of what nodes have smaller.
  void Spread() {
    while (true) {
      size_t most = 0;
      int least = -1;
      for (size_t w = 0; w < ranks_.size(); ++w) {
        if (ranks_[w].size() > ranks_[most].size()) most = w;
        if (input_.workers[w].slow) continue;
        if (least < 0 || ranks_[w].size() < ranks_[least].size()) least = w;
      }
      if (least < 0 || ranks_[most].size() < ranks_[least].size() + 2) return;
      const uint32_t place = input_.workers[least].place;
      Give(ranks_[most].contains(place) ? place : *ranks_[most].rbegin(), least);
    }
  }

  void LeaveSlow() {
    for (size_t w = 0; w < ranks_.size(); ++w) {
      if (!input_.workers[w].slow) continue;
      const std::set<uint32_t> ranks = ranks_[w];
      for (uint32_t rank : ranks) {
        const int to = Faster(w);
        if (to < 0) return;
        Give(rank, to);
      }
    }
  }
  int Faster(size_t slow) const {
    int fastest = -1;
    for (size_t w = 0; w < ranks_.size(); ++w) {
      const PlanWorker& worker = input_.workers[w];
      if (worker.slow) continue;
      if (ranks_[w].empty()) return static_cast<int>(w);
      // One more rank than it has makes its step so many times as long.
      const double with_one_more = worker.step_seconds * (ranks_[w].size() + 1);
      if (worker.step_seconds <= 0 || with_one_more >= input_.workers[slow].step_seconds) continue;
      if (fastest < 0 || worker.step_seconds < input_.workers[fastest].step_seconds) fastest = w;
    }
    return fastest;
  }

  const PlanInput& input_;
  Plan* const plan_;
  std::vector<std::set<uint32_t>> ranks_;  // that are not finished, by node
  std::vector<uint32_t> homeless_;
};

}  // namespace

void PlanRanks(const PlanInput& input, const pb::Assignment& current, Plan* plan) {
  RankPlanner(input, current, plan).Run();
}

}  // namespace parley
