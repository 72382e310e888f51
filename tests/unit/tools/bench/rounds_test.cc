#include "tools/bench/rounds.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "ps/base/loop_env.h"

namespace parley {
namespace {

// A load of operations that take a millisecond each.
class RoundsTest : public testing::Test {
 protected:
  RoundsTest() : env_({.offload_threads = 0}) {
    plan_.rounds = 3;
    plan_.round_ms = 20;
    context_.env = &env_;
    context_.plan = &plan_;
    context_.record = [this](const Series& series) { recorded_[series.name] = series; };
    context_.meet = [this](const std::string& name, absl::AnyInvocable<void()> go) {
      met_.push_back(name);
      env_.Post(std::move(go));
    };
    context_.say = [](const std::string&) {};
  }

  BenchCase Waiting(const std::string& name, uint32_t lanes) {
    BenchCase one;
    one.name = name;
    one.unit = "ops/s";
    one.lanes = lanes;
    one.begin = [this](uint32_t lane, absl::AnyInvocable<void()> done) {
      ++begun_;
      most_open_ = std::max(most_open_, ++open_);
      lanes_seen_ = std::max(lanes_seen_, lane + 1);
      env_.After(absl::Milliseconds(1), [this, done = std::move(done)]() mutable {
        --open_;
        done();
      });
    };
    return one;
  }

  void Run(std::vector<BenchCase> cases) {
    Rounds rounds(&context_, std::move(cases));
    env_.Post([&] { rounds.Run([&] { env_.Stop(); }); });
    env_.Run();
  }

  LoopEnv env_;
  BenchPlan plan_;
  LoadContext context_;
  std::map<std::string, Series> recorded_;
  std::vector<std::string> met_;
  int begun_ = 0, open_ = 0, most_open_ = 0;
  uint32_t lanes_seen_ = 0;
};

TEST_F(RoundsTest, KeepsAllLanesBusyAndEndsWithNothingOpen) {
  Run({Waiting("wait", 4)});
  EXPECT_EQ(most_open_, 4);
  EXPECT_EQ(lanes_seen_, 4);
  EXPECT_EQ(open_, 0);
  ASSERT_EQ(recorded_["wait"].values.size(), 3);
  for (double rate : recorded_["wait"].values) {
    EXPECT_GT(rate, 0);
    EXPECT_LE(rate, 4000);  // four at a time, a millisecond each
  }
}

TEST_F(RoundsTest, CountsUnitsAndLeavesTheFirstRoundOut) {
  BenchCase scaled = Waiting("scaled", 1);
  scaled.units_per_op = 1000;
  Run({std::move(scaled)});
  ASSERT_EQ(recorded_["scaled"].values.size(), 3);  // of four rounds
  EXPECT_LE(recorded_["scaled"].max(), 1e6);
  EXPECT_GT(recorded_["scaled"].min(), 1000);
}

TEST_F(RoundsTest, CasesFollowEachOtherAndEveryRoundIsMetFor) {
  Run({Waiting("one", 1), Waiting("two", 2)});
  EXPECT_EQ(recorded_.size(), 2);
  EXPECT_EQ(met_.size(), 8);  // two cases of one round that is not counted and three that are
  EXPECT_EQ(std::set<std::string>(met_.begin(), met_.end()).size(), met_.size());
}

// Workers whose rounds end at different times wait for each other, and the wait is nobody's time.
TEST_F(RoundsTest, WaitingForOthersIsNotCounted) {
  context_.meet = [this](const std::string&, absl::AnyInvocable<void()> go) {
    env_.After(absl::Milliseconds(200), std::move(go));
  };
  Run({Waiting("wait", 1)});
  // With the wait in it no round would reach 20 operations in 220 ms.
  EXPECT_GT(recorded_["wait"].max(), 150);
}

TEST_F(RoundsTest, LatencyIsTimeOfAnOperation) {
  BenchCase latency = Waiting("trip", 1);
  latency.latency = true;
  latency.unit = "us";
  Run({std::move(latency)});
  ASSERT_EQ(recorded_["trip.p50"].values.size(), 3);
  EXPECT_GE(recorded_["trip.p50"].min(), 1000);
  EXPECT_GE(recorded_["trip.p99"].median(), recorded_["trip.p50"].median());
}

}  // namespace
}  // namespace parley
