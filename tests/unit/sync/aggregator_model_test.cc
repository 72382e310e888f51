// The aggregators against naive models over random arrival orders, leaves and backup workers.
#include <algorithm>
#include <map>
#include <set>

#include "gtest/gtest.h"
#include "ps/sync/aggregator.h"
#include "tests/unit/sync/sync_testing.h"

namespace parley {
namespace {

constexpr uint64_t kNever = std::numeric_limits<uint64_t>::max();

// What an aggregator gave out, without the gradients; the weight tells which contribution it was.
struct Step {
  uint64_t tick;
  std::vector<std::pair<uint32_t, double>> contributions;
  std::vector<uint32_t> closed;
  bool operator==(const Step&) const = default;
};

// Everything that ever arrived, and the definition of "complete" worked out anew each time.
class NaiveBsp {
 public:
  NaiveBsp(uint32_t workers, uint32_t backups) : backups_(backups), leaves_at_(workers, kNever) {}

  // True: accepted, false: late. REQUIRES: an honest push.
  bool Add(uint32_t worker, uint64_t tick, double weight) {
    if (tick < front_) return false;
    arrived_[tick][worker] = weight;
    return true;
  }
  void Leave(uint32_t worker, uint64_t after) {
    leaves_at_[worker] = std::min(leaves_at_[worker], after);
  }
  bool Pop(Step* step) {
    std::set<uint32_t> live, both;
    for (uint32_t w = 0; w < leaves_at_.size(); ++w) {
      if (front_ < leaves_at_[w]) live.insert(w);
    }
    const std::map<uint32_t, double>& here = arrived_[front_];
    const auto pushed = std::count_if(
        here.begin(), here.end(), [&](const auto& entry) { return live.contains(entry.first); });
    const bool complete =
        live.empty() ? std::any_of(arrived_.begin(), arrived_.end(),
                                   [](const auto& entry) { return !entry.second.empty(); })
                     : pushed >= std::max<int64_t>(1, static_cast<int64_t>(live.size()) - backups_);
    if (!complete) return false;
    both = live;
    for (const auto& [worker, weight] : here) both.insert(worker);
    *step = {front_, {here.begin(), here.end()}, {both.begin(), both.end()}};
    arrived_.erase(front_++);
    return true;
  }
  size_t held() const {
    size_t held = 0;
    for (const auto& [tick, by_worker] : arrived_) held += by_worker.size();
    return held;
  }

 private:
  const int64_t backups_;
  std::vector<uint64_t> leaves_at_;
  uint64_t front_ = 0;
  std::map<uint64_t, std::map<uint32_t, double>> arrived_;  // those of open steps
};

class NaiveImmediate {
 public:
  NaiveImmediate(uint32_t workers, uint32_t) : next_(workers, 0), leaves_at_(workers, kNever) {}

  bool Add(uint32_t worker, uint64_t tick, double weight) {
    waiting_[{worker, tick}] = weight;
    Settle(worker);
    return true;
  }
  void Leave(uint32_t worker, uint64_t after) {
    leaves_at_[worker] = std::min(leaves_at_[worker], after);
    Settle(worker);
  }
  bool Pop(Step* step) {
    if (ready_.empty()) return false;
    *step = ready_.front();
    ready_.erase(ready_.begin());
    return true;
  }
  size_t held() const { return waiting_.size() + ready_.size(); }

 private:
  // Tick by tick, as far as any that is held.
  void Settle(uint32_t worker) {
    for (uint64_t tick = next_[worker]; tick < 200; ++tick) {
      const auto entry = waiting_.find({worker, tick});
      if (entry != waiting_.end()) {
        ready_.push_back({tick, {{worker, entry->second}}, {worker}});
        waiting_.erase(entry);
        next_[worker] = tick + 1;
      } else if (tick < leaves_at_[worker]) {
        return;
      }
    }
  }

  std::vector<uint64_t> next_, leaves_at_;
  std::map<std::pair<uint32_t, uint64_t>, double> waiting_;
  std::vector<Step> ready_;
};

Step Describe(const CompleteStep& step) {
  Step described = {step.tick, {}, step.closed};
  for (const Contribution& c : step.contributions) {
    described.contributions.emplace_back(c.worker, c.weight);
  }
  return described;
}

// Workers that push up to `depth` ticks ahead of what is closed, arriving in any order; some leave,
// at a tick that they have pushed, will push, or never reached.
template <typename Naive>
void RunHistory(uint64_t seed, pb::Consistency::Mode mode) {
  Choices choices(seed);
  const uint32_t workers = 1 + choices.Below(5);
  const uint32_t backups = mode == pb::Consistency::BSP ? choices.Below(4) : 0;
  const uint64_t depth = 1 + choices.Below(6);
  const auto aggregator = Aggregator::Create(Mode(mode, backups), workers);
  Naive naive(workers, backups);
  std::vector<uint64_t> leaves_at(workers, kNever), base(workers, 0);
  std::vector<std::set<uint64_t>> pushed(workers);
  double weight = 1;
  for (int event = 0; event < 150; ++event) {
    SCOPED_TRACE(testing::Message() << "seed " << seed << " event " << event);
    const uint32_t w = choices.Below(workers);
    const uint64_t tick = base[w] + choices.Below(depth);
    if (choices.OneIn(60)) {
      leaves_at[w] = std::min(leaves_at[w], tick);
      aggregator->OnLeave(w, tick);
      naive.Leave(w, tick);
    } else if (!pushed[w].contains(tick) && tick < leaves_at[w]) {
      pushed[w].insert(tick);
      while (pushed[w].contains(base[w])) ++base[w];
      const auto verdict = aggregator->Add(tick, {w, ++weight, Buffer()});
      ASSERT_TRUE(verdict.ok()) << verdict.status();
      ASSERT_EQ(*verdict == Aggregator::Verdict::kAccepted, naive.Add(w, tick, weight));
    }
    if (choices.OneIn(3)) continue;  // pops need not follow every event
    CompleteStep step;
    Step expected;
    while (aggregator->PopComplete(&step)) {
      ASSERT_TRUE(naive.Pop(&expected)) << "tick " << step.tick << " came out too early";
      ASSERT_TRUE(Describe(step) == expected) << "tick " << step.tick << " or " << expected.tick;
    }
    ASSERT_FALSE(naive.Pop(&expected)) << "tick " << expected.tick << " did not come out";
    ASSERT_EQ(aggregator->held(), naive.held());
  }
}

TEST(AggregatorModelTest, BspAgreesWithANaiveModel) {
  for (uint64_t seed = 0; seed < 800 && !testing::Test::HasFatalFailure(); ++seed) {
    RunHistory<NaiveBsp>(seed, pb::Consistency::BSP);
  }
}

TEST(AggregatorModelTest, ImmediateAgreesWithANaiveModel) {
  for (uint64_t seed = 0; seed < 400 && !testing::Test::HasFatalFailure(); ++seed) {
    RunHistory<NaiveImmediate>(seed, seed % 2 ? pb::Consistency::SSP : pb::Consistency::ASP);
  }
}

// The same pushes in two arrival orders make the same steps: what determinism under BSP rests on.
TEST(AggregatorModelTest, ArrivalOrderDoesNotShowUnderBsp) {
  std::vector<std::vector<Step>> runs;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Choices choices(seed);
    const auto aggregator = Aggregator::Create(Mode(pb::Consistency::BSP), 4);
    std::vector<std::pair<uint64_t, uint32_t>> pushes;  // (tick, worker)
    for (uint64_t tick = 0; tick < 10; ++tick) {
      for (uint32_t w = 0; w < 4; ++w) pushes.emplace_back(tick, w);
    }
    for (size_t i = pushes.size(); i > 1; --i) std::swap(pushes[i - 1], pushes[choices.Below(i)]);
    std::vector<Step>& steps = runs.emplace_back();
    for (const auto& [tick, worker] : pushes) {
      ASSERT_TRUE(aggregator->Add(tick, {worker, 10.0 * tick + worker, Buffer()}).ok());
      for (CompleteStep step; aggregator->PopComplete(&step);) steps.push_back(Describe(step));
    }
    ASSERT_EQ(steps.size(), 10u);
    ASSERT_TRUE(steps == runs.front()) << "seed " << seed;
  }
}

}  // namespace
}  // namespace parley
