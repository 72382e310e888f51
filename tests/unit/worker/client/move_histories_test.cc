// Random histories: a worker trains on servers that come, go and pass their partitions on, over a
// network that loses, doubles and reorders, with maps that come late. Whatever happens, every
// gradient is applied once.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/unit/worker/client/moving_cluster.h"

namespace parley {
namespace {

constexpr uint32_t kDense = MovingCluster::kDense, kSparse = MovingCluster::kSparse;
constexpr uint32_t kDim = MovingCluster::kDim, kElements = MovingCluster::kElements;
constexpr uint64_t kSteps = 12;

class History {
 public:
  explicit History(uint64_t seed)
      : random_(seed),
        cluster_(seed, {.max_delay = absl::Milliseconds(20),
                        .loss = seed % 3 == 0 ? 0.0 : 0.05,
                        .duplicate = 0.05}),
        env_(&cluster_.world, "script") {}

  void Run() {
    cluster_.Start(2 + Below(3));
    cluster_.script = [this](uint32_t server, NodeId from, const Frame& request) {
      return Misbehave(server, from, request);
    };
    Later([this] { Disturb(); });
    for (uint64_t tick = 0; tick < kSteps; ++tick) {
      ASSERT_NO_FATAL_FAILURE(Step(tick));
      if (Below(2) == 0) cluster_.Settle(absl::Milliseconds(Below(60)));
    }
    ASSERT_TRUE(cluster_.AllAcknowledged()) << cluster_.error;
    ASSERT_TRUE(cluster_.Run([this] { return pulls_open_ == 0; })) << cluster_.error;
    bool left = false;
    cluster_.client->Leave(kSteps, [&left] { left = true; });
    ASSERT_TRUE(cluster_.Run([&left] { return left; })) << cluster_.error;
    // A partition may have gone from a shard that had not heard it to one that had: with the map
    // that says so it is told again.
    ASSERT_TRUE(cluster_.Run([this] {
      for (const auto& [at, partition] : cluster_.partitions) {
        if (partition.left != kSteps) return false;
      }
      return true;
    })) << cluster_.error;
    calm_ = true;
    CheckWhatArrived();
    CheckWhatIsRead();
  }

  bool interesting() const { return moves_ > 0 && again_ > 0; }

 private:
  uint32_t Below(uint32_t n) { return static_cast<uint32_t>(random_() % n); }
  void Later(std::function<void()> task) {
    env_.After(absl::Milliseconds(1 + Below(80)), [task = std::move(task)] { task(); });
  }
  float Small() { return static_cast<float>(static_cast<int>(Below(9)) - 4); }  // sums are exact

  // The worker's part: a push or a push-pull of the dense table, rows, now and then an update.
  void Step(uint64_t tick) {
    Buffer gradients = Buffer::Allocate(kElements * sizeof(float));
    for (uint32_t i = 0; i < kElements; ++i) {
      const float value = Small();
      gradients.mutable_floats()[i] = value;
      weights_[i] += value;
    }
    std::vector<uint32_t> partitions = {0, 1, 2, 3, 4};
    std::shuffle(partitions.begin(), partitions.end(), random_);
    if (Below(2) == 0) {
      ASSERT_TRUE(cluster_.Run([this] { return !dense_pull_; })) << cluster_.error;
      dense_pull_ = true;
      cluster_.dense().BeginPull(
          tick + 1, parameters_.data(), [](auto) {}, [this](const auto&) { dense_pull_ = false; });
      cluster_.dense().PushPull(tick, 1, partitions, gradients);
    } else {
      cluster_.dense().Push(tick, 1, partitions, gradients);
    }
    if (Below(3) > 0 || keys_.empty()) {  // else the keys of the step before: lists are known
      keys_.clear();
      for (uint32_t i = 0; i < 120; ++i) keys_.push_back(Below(400));
    }
    cluster_.sparse().Push(tick, 1, keys_, Told(keys_).data(), nullptr);
    for (uint32_t i = Below(6); i > 0; --i) {
      const std::vector<uint64_t> key = {Below(400)};
      cluster_.sparse().Update(key, Told(key).data(), nullptr);
    }
    ++pulls_open_;
    auto rows = std::make_shared<std::vector<float>>(keys_.size() * kDim);
    cluster_.sparse().Pull(tick + 1, keys_, rows->data(),
                           [this, rows](const PullResult&) { --pulls_open_; });
  }
  std::vector<float> Told(const std::vector<uint64_t>& keys) {
    std::vector<float> gradients;
    for (uint64_t key : keys) {
      std::vector<float>& row = rows_.try_emplace(key, kDim, 0.0f).first->second;
      for (uint32_t d = 0; d < kDim; ++d) {
        gradients.push_back(Small());
        row[d] += gradients.back();
      }
    }
    return gradients;
  }

  // A server's: now and then a request is parked for a while, or its answer is lost.
  bool Misbehave(uint32_t server, NodeId from, const Frame& request) {
    if (calm_ || Below(4) > 0) return false;
    if (Below(3) == 0) {
      Rpc& rpc = cluster_.servers[server]->rpc();
      rpc.ReplyParked(from, request.header, "another worker");
      Later([this, server, from, request] { cluster_.Answer(server, from, request); });
    } else if (Below(2) == 0) {
      // Taken, and nobody hears of it: it is asked again, or somebody else is.
      cluster_.network.Isolate(cluster_.servers[server]->node());
      cluster_.Answer(server, from, request);
      cluster_.network.Heal();
      for (uint32_t s = 0; s < cluster_.servers.size(); ++s) {
        if (!cluster_.live.contains(s)) cluster_.network.Isolate(cluster_.servers[s]->node());
      }
    }
    return true;
  }

  // The scheduler's and fate's: somebody dies or joins, partitions move, the client hears later.
  void Disturb() {
    if (calm_) return;
    ++moves_;
    const auto any = [this] {
      return *std::next(cluster_.live.begin(), Below(static_cast<uint32_t>(cluster_.live.size())));
    };
    switch (Below(4)) {
      case 0:
        if (cluster_.live.size() > 1) {
          const uint32_t dead = any();
          uint32_t heir = any();
          while (heir == dead) heir = any();
          cluster_.Kill(dead, heir);
        }
        break;
      case 1:
        if (cluster_.servers.size() < 12) cluster_.AddServer();
        [[fallthrough]];
      default:
        for (auto& [at, partition] : cluster_.partitions) {
          if (Below(3) == 0) partition.owner = any();
        }
    }
    if (Below(4) == 0) cluster_.ForgetLists();
    // Some maps never come, since a newer one is there before; some come in the wrong order.
    if (Below(4) > 0) {
      Later([this, map = cluster_.Map()] { EXPECT_TRUE(cluster_.client->OnMap(map).ok()); });
    } else {
      Later([this] { cluster_.TellClient(); });
    }
    Later([this] { Disturb(); });
  }

  void CheckWhatArrived() {
    for (const auto& [at, partition] : cluster_.partitions) {
      std::map<uint64_t, int> by_tick;
      uint64_t sequence = 0;
      for (const auto& [number, push] : partition.pushes) {
        EXPECT_EQ(number, ++sequence);  // none is missing
        if (push.tick.has_value()) ++by_tick[*push.tick];
        again_ += push.arrivals > 1;
      }
      EXPECT_EQ(by_tick.size(), kSteps);
      for (const auto& [tick, times] : by_tick) EXPECT_EQ(times, 1) << tick;
    }
    EXPECT_EQ(cluster_.weights, weights_);
    for (const auto& [key, row] : rows_) EXPECT_EQ(cluster_.rows[key], row) << key;
  }

  void CheckWhatIsRead() {
    ASSERT_TRUE(cluster_.Run([this] { return !dense_pull_; })) << cluster_.error;
    std::vector<uint64_t> keys;
    for (const auto& [key, row] : rows_) keys.push_back(key);
    std::vector<float> rows(keys.size() * kDim);
    int done = 0;
    cluster_.dense().Pull(
        kSteps, parameters_.data(), [](auto) {}, [&](const PullResult&) { ++done; });
    cluster_.sparse().Pull(kSteps, keys, rows.data(), [&](const PullResult&) { ++done; });
    // The last map is told, in case it was not.
    cluster_.TellClient();
    ASSERT_TRUE(cluster_.Run([&] { return done == 2; })) << cluster_.error;
    EXPECT_EQ(parameters_, weights_);
    for (size_t i = 0; i < keys.size(); ++i) {
      for (uint32_t d = 0; d < kDim; ++d) EXPECT_EQ(rows[i * kDim + d], rows_[keys[i]][d]);
    }
    EXPECT_TRUE(cluster_.Run([this] { return cluster_.node.rpc.in_flight() == 0; }));
    EXPECT_EQ(cluster_.client->WaitingFor(), "");
  }

  std::mt19937_64 random_;
  MovingCluster cluster_;
  SimEnv env_;
  bool calm_ = false;
  uint64_t moves_ = 0, again_ = 0, pulls_open_ = 0;
  bool dense_pull_ = false;
  std::vector<uint64_t> keys_;
  std::vector<float> parameters_ = std::vector<float>(kElements);
  // What should come of it.
  std::vector<float> weights_ = std::vector<float>(kElements);
  std::map<uint64_t, std::vector<float>> rows_;
};

TEST(MoveHistoriesTest, EveryGradientIsAppliedOnceWhateverMoves) {
  int interesting = 0;
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    SCOPED_TRACE(seed);
    History history(seed);
    history.Run();
    if (testing::Test::HasFailure()) return;
    interesting += history.interesting();
  }
  EXPECT_GT(interesting, 80);
}

}  // namespace
}  // namespace parley
