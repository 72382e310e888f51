// The loads over rows, on a client whose servers answer at once.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "ps/base/loop_env.h"
#include "tools/bench/load.h"

namespace parley {
namespace {

class InstantTable : public SparseTable {
 public:
  explicit InstantTable(Env* env) : env_(env) {}

  uint32_t dim() const override { return 4; }
  void Pull(uint64_t, absl::Span<const uint64_t>, float*, OnPulled done) override {
    env_->Post([done = std::move(done)]() mutable { done({}); });
  }
  void Push(uint64_t, double, absl::Span<const uint64_t> keys, const float*,
            absl::AnyInvocable<void()> done) override {
    pushed_ += keys.size();
    env_->Post(std::move(done));
  }
  void Update(absl::Span<const uint64_t>, const float*, absl::AnyInvocable<void()> done) override {
    most_open_ = std::max(most_open_, ++open_);
    env_->Post([this, done = std::move(done)]() mutable {
      --open_;
      done();
    });
  }
  uint64_t updates_open() const override { return open_; }

  uint64_t pushed() const { return pushed_; }
  uint64_t most_open() const { return most_open_; }

 private:
  Env* const env_;
  uint64_t pushed_ = 0, open_ = 0, most_open_ = 0;
};

class InstantClient : public PsClient {
 public:
  explicit InstantClient(Env* env) : rows_(env) {}
  absl::Status OnMap(const pb::PartitionMap&) override { return absl::OkStatus(); }
  DenseTable* dense(uint32_t) override { return nullptr; }
  SparseTable* sparse(uint32_t) override { return &rows_; }
  void WhenAllAcknowledged(absl::AnyInvocable<void()> done) override { done(); }
  void Leave(uint64_t, absl::AnyInvocable<void()> done) override { done(); }
  std::string WaitingFor() const override { return ""; }
  const Counters& counters() const override { return counters_; }
  const InstantTable& rows() const { return rows_; }

 private:
  InstantTable rows_;
  Counters counters_;
};

class SparseLoadTest : public testing::Test {
 protected:
  SparseLoadTest() : env_({.offload_threads = 0}), client_(&env_) {
    plan_.table_keys = 1000;
    plan_.keys = 10;
    plan_.rounds = 3;
    plan_.round_ms = 10;
  }

  // Whether the load came to its end, with nothing under way.
  bool Ends(const std::string& load, uint32_t in_flight) {
    plan_.load = load;
    plan_.in_flight = in_flight;
    LoadContext context;
    context.env = &env_;
    context.client = &client_;
    context.plan = &plan_;
    context.pool = &pool_;
    context.record = [this](const Series& series) { recorded_[series.name] = series; };
    context.meet = [this](const std::string& name, absl::AnyInvocable<void()> go) {
      EXPECT_TRUE(met_.insert(name).second) << name << " is met at twice";
      env_.Post(std::move(go));
    };
    context.say = [](const std::string&) {};
    const std::unique_ptr<Load> running = MakeSparseLoad(std::move(context));
    bool ended = false;
    env_.Post([&] {
      running->Start([&] {
        ended = client_.rows().updates_open() == 0;
        env_.Stop();
      });
    });
    const TimerId limit = env_.After(absl::Seconds(20), [this] { env_.Stop(); });
    env_.Run();
    env_.Cancel(limit);
    return ended;
  }

  LoopEnv env_;
  InstantClient client_;
  BufferPool pool_;
  BenchPlan plan_;
  std::map<std::string, Series> recorded_;
  std::set<std::string> met_;
};

// The acknowledgement that ends the last round is the last one that comes.
TEST_F(SparseLoadTest, RateEndsWithOneUpdateInFlight) {
  EXPECT_TRUE(Ends("rate", 1));
  EXPECT_EQ(client_.rows().most_open(), 1);
  EXPECT_EQ(recorded_["update"].values.size(), 3);
}

TEST_F(SparseLoadTest, RateKeepsItsWindowOpenAndMeetsForEveryRound) {
  EXPECT_TRUE(Ends("rate", 64));
  EXPECT_EQ(client_.rows().most_open(), 64);
  ASSERT_EQ(recorded_["update"].values.size(), 3);
  EXPECT_GT(recorded_["update"].min(), 0);
  EXPECT_EQ(met_.size(), 4);  // one round is not counted
}

TEST_F(SparseLoadTest, BatchesFillTheTableFirst) {
  EXPECT_TRUE(Ends("sparse", 2));
  EXPECT_GE(client_.rows().pushed(), 1000);
  EXPECT_EQ(recorded_["pull"].values.size(), 3);
  EXPECT_EQ(recorded_["push"].values.size(), 3);
}

}  // namespace
}  // namespace parley
