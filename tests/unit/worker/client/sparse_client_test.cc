// Sparse tables from a worker, on real server shards; what is asked of a single message is in
// sparse_messages_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "tests/unit/worker/client/client_cluster.h"

namespace parley {
namespace {

using ::testing::ElementsAre;

constexpr uint32_t kTable = 4, kDim = 3;
using Rows = std::map<uint64_t, std::vector<float>>;

class SparseClientTest : public ::testing::Test {
 protected:
  SparseTable& table(ClientCluster& cluster, uint32_t worker = 0) {
    return *cluster.client(worker).sparse(kTable);
  }

  // What a pull brings, waited for.
  std::vector<float> Pull(ClientCluster& cluster, uint64_t tick, const std::vector<uint64_t>& keys,
                          uint32_t worker = 0) {
    std::vector<float> rows(keys.size() * table(cluster, worker).dim(), -1);
    bool done = false;
    table(cluster, worker).Pull(tick, keys, rows.data(), [&](const PullResult&) { done = true; });
    EXPECT_TRUE(cluster.Run([&] { return done; })) << cluster.error;
    return rows;
  }
};

// A naive table: w -= sum over workers / samples, in rank order.
void Apply(Rows* rows, const std::vector<std::pair<std::vector<uint64_t>, std::vector<float>>>& by,
           float samples) {
  std::map<uint64_t, std::vector<float>> sums;
  for (const auto& [keys, gradients] : by) {
    Rows own;
    for (size_t i = 0; i < keys.size(); ++i) {
      std::vector<float>& sum = own.try_emplace(keys[i], kDim, 0.0f).first->second;
      for (uint32_t d = 0; d < kDim; ++d) sum[d] += gradients[i * kDim + d];
    }
    for (const auto& [key, gradient] : own) {
      std::vector<float>& sum = sums.try_emplace(key, kDim, 0.0f).first->second;
      for (uint32_t d = 0; d < kDim; ++d) sum[d] += gradient[d];
    }
  }
  for (const auto& [key, sum] : sums) {
    std::vector<float>& row = rows->try_emplace(key, kDim, 0.0f).first->second;
    for (uint32_t d = 0; d < kDim; ++d) row[d] -= sum[d] / samples;
  }
}

TEST_F(SparseClientTest, StepsOfTwoWorkersGiveTheSumsWhateverTheCutAndTheNetwork) {
  for (uint32_t servers : {1u, 3u}) {
    for (uint64_t max_request_bytes : {64u, 1u << 20}) {
      ClientCluster cluster(pb::Consistency::BSP);
      cluster.AddSparse(kTable, kDim, 8);
      cluster.max_request_bytes = max_request_bytes;
      cluster.network.SetOptions(
          {.max_delay = absl::Milliseconds(20), .loss = 0.05, .duplicate = 0.1});
      cluster.Start(servers, 2);
      std::mt19937 random(servers);
      Rows expected;
      std::vector<uint64_t> keys[2];
      for (uint64_t tick = 0; tick < 6; ++tick) {
        std::vector<std::pair<std::vector<uint64_t>, std::vector<float>>> pushes;
        for (uint32_t w = 0; w < 2; ++w) {
          // Every other step the keys of the step before: their lists are known then.
          if (tick % 2 == 0) {
            keys[w].clear();
            for (int i = 0; i < 60; ++i) keys[w].push_back(random() % 40);  // many repeat
            if (tick == 4 && w == 1) keys[w].clear();
          }
          std::vector<float> gradients;
          // Small integers, so that no order of additions matters to the model.
          for (size_t i = 0; i < keys[w].size() * kDim; ++i) {
            gradients.push_back(static_cast<float>(static_cast<int>(random() % 9) - 4));
          }
          pushes.emplace_back(keys[w], gradients);
        }
        int done = 0;
        for (uint32_t w = 0; w < 2; ++w) {
          table(cluster, w).Push(tick, 1, pushes[w].first, pushes[w].second.data(), [&done] {
            ++done;
          });
        }
        Apply(&expected, pushes, 2);
        const std::vector<float> rows = Pull(cluster, tick + 1, keys[0], tick % 2);
        for (size_t i = 0; i < keys[0].size(); ++i) {
          const auto row = expected.try_emplace(keys[0][i], kDim, 0.0f).first->second;
          for (uint32_t d = 0; d < kDim; ++d) ASSERT_EQ(rows[i * kDim + d], row[d]) << keys[0][i];
        }
        EXPECT_TRUE(cluster.Run([&] { return done == 2; }));
      }
      const PsClient::Counters& counters = cluster.client(0).counters();
      EXPECT_EQ(counters.pushes_acked, 6u * 8);  // a part for each partition and step
      EXPECT_EQ(counters.key_misses, 0u);
      if (max_request_bytes > 64) {
        EXPECT_GT(counters.key_digests_sent, 0u);
      }
    }
  }
}

TEST_F(SparseClientTest, RowsThatNobodyPushedReadAsTheyBegin) {
  ClientCluster cluster(pb::Consistency::ASP);
  cluster.AddSparse(kTable, kDim, 4)->mutable_sparse()->set_init(pb::TensorSpec::UNIFORM);
  cluster.Start(2, 1);
  const std::vector<float> once = Pull(cluster, 0, {5, ~uint64_t{0}, 5, 0});
  EXPECT_NE(once[0], 0);
  EXPECT_EQ(std::vector<float>(once.begin(), once.begin() + 3),
            std::vector<float>(once.begin() + 6, once.begin() + 9));
  EXPECT_EQ(Pull(cluster, 3, {5, ~uint64_t{0}, 5, 0}), once);
}

TEST_F(SparseClientTest, APullWithoutKeysIsOverAfterTheCallIsAndAsksNobody) {
  ClientCluster cluster(pb::Consistency::BSP);
  cluster.AddSparse(kTable, kDim, 4);
  cluster.Start(1, 1);
  bool done = false;
  const uint64_t sent = cluster.network.counters().sent;
  table(cluster).Pull(7, {}, nullptr, [&](const PullResult& result) {
    done = true;
    EXPECT_EQ(result.min_clock, 7u);
  });
  EXPECT_FALSE(done);
  EXPECT_TRUE(cluster.Run([&] { return done; }));
  EXPECT_EQ(cluster.network.counters().sent, sent);
}

TEST_F(SparseClientTest, PullsOfSeveralStepsMayBeOpen) {
  ClientCluster cluster(pb::Consistency::BSP);
  cluster.AddSparse(kTable, 1, 2);
  cluster.Start(1, 1);
  std::vector<int> order;
  float rows[3] = {-1, -1, -1};
  const uint64_t key = 9;
  const float gradient = -1;  // the row grows by one a step
  for (int tick : {2, 1, 0}) {
    table(cluster).Pull(tick, {key}, &rows[tick],
                        [&order, tick](const PullResult&) { order.push_back(tick); });
  }
  EXPECT_TRUE(cluster.Run([&] { return order.size() == 1; }));
  table(cluster).Push(0, 1, {key}, &gradient, nullptr);
  EXPECT_TRUE(cluster.Run([&] { return order.size() == 2; }));
  table(cluster).Push(1, 1, {key}, &gradient, nullptr);
  EXPECT_TRUE(cluster.Run([&] { return order.size() == 3; }));
  EXPECT_THAT(order, ElementsAre(0, 1, 2));
  EXPECT_THAT(rows, ElementsAre(0, 1, 2));
}

// A shard that remembers next to nothing says that it has forgotten, and gets the lists.
TEST_F(SparseClientTest, AForgottenListIsSentAgainAndThePushCountsOnce) {
  ClientCluster cluster(pb::Consistency::BSP);
  cluster.AddSparse(kTable, 1, 1);
  cluster.max_request_bytes = 1 << 20;
  cluster.key_cache_bytes = 600;  // one list
  cluster.Start(1, 1);
  std::vector<uint64_t> lists[2];
  for (uint64_t k = 0; k < 20; ++k) {
    lists[0].push_back(k);
    lists[1].push_back(100 + k);
  }
  const std::vector<float> gradients(20, -1);
  for (uint64_t tick = 0; tick < 4; ++tick) {
    table(cluster).Push(tick, 1, lists[tick % 2], gradients.data(), nullptr);
    bool acked = false;
    cluster.client(0).WhenAllAcknowledged([&] { acked = true; });
    ASSERT_TRUE(cluster.Run([&] { return acked; })) << cluster.error;
  }
  EXPECT_THAT(Pull(cluster, 4, {0, 19, 100, 119, 20}), ElementsAre(2, 2, 2, 2, 0));
  const PsClient::Counters& counters = cluster.client(0).counters();
  EXPECT_EQ(counters.key_misses, 2u);
  EXPECT_EQ(counters.pushes_acked, 4u);
}

TEST_F(SparseClientTest, CodecsRoundGradientsAndRowsAndTellTheRestLater) {
  ClientCluster cluster(pb::Consistency::BSP);
  pb::TableSpec* spec = cluster.AddSparse(kTable, 16, 2);
  spec->mutable_compression()->set_push("one_bit");
  spec->mutable_compression()->set_pull("bf16");
  cluster.Start(2, 1);
  const std::vector<uint64_t> keys = {3, 4, 5, 6};
  std::vector<float> gradients(keys.size() * 16);
  for (size_t i = 0; i < gradients.size(); ++i) gradients[i] = static_cast<float>(i % 7) - 3;
  constexpr int kSteps = 60;
  for (uint64_t tick = 0; tick < kSteps; ++tick) {
    table(cluster).Push(tick, 1, keys, gradients.data(), nullptr);
    Pull(cluster, tick + 1, keys);
  }
  // One bit an element a step; without the residual the sums would be off by the steps.
  const std::vector<float> rows = Pull(cluster, kSteps, keys);
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_NEAR(rows[i], -kSteps * gradients[i], 12) << i;
  }
  EXPECT_LT(cluster.client(0).counters().bytes_pushed, kSteps * keys.size() * (8 + 16));
}

TEST_F(SparseClientTest, UpdatesTravelTogetherAndInOrderAndAreAllApplied) {
  ClientCluster cluster(pb::Consistency::ASP);
  cluster.AddSparse(kTable, 1, 4);
  cluster.network.SetOptions({.loss = 0.05, .duplicate = 0.05});
  cluster.Start(3, 1);
  SparseTable& updates = table(cluster);
  std::vector<int> done;
  const uint64_t sent = cluster.network.counters().sent;
  std::map<uint64_t, float> expected;
  for (int i = 0; i < 1000; ++i) {
    const uint64_t keys[3] = {static_cast<uint64_t>(i % 17), 100 + static_cast<uint64_t>(i % 5),
                              static_cast<uint64_t>(i % 17)};
    const float gradients[3] = {-1, -2, -3};
    const size_t count = i % 10 == 0 ? 3 : i % 10 == 1 ? 0 : 1;
    for (size_t k = 0; k < count; ++k) expected[keys[k]] -= gradients[k];
    updates.Update(absl::MakeSpan(keys, count), gradients, [&done, i] { done.push_back(i); });
  }
  EXPECT_GE(updates.updates_open(), 1000u);
  bool acked = false;
  cluster.client(0).WhenAllAcknowledged([&] { acked = true; });
  ASSERT_TRUE(cluster.Run([&] { return acked; })) << cluster.error;
  EXPECT_EQ(done.size(), 1000u);
  EXPECT_EQ(updates.updates_open(), 0u);
  EXPECT_EQ(cluster.client(0).counters().updates_acked, 1000u);
  EXPECT_LT(cluster.network.counters().sent - sent, 100u);
  std::vector<uint64_t> keys;
  for (const auto& [key, value] : expected) keys.push_back(key);
  const std::vector<float> rows = Pull(cluster, 0, keys);
  for (size_t i = 0; i < keys.size(); ++i) EXPECT_EQ(rows[i], expected[keys[i]]) << keys[i];
}

// With Adagrad an update's effect depends on those before it: two of a key are two updates.
TEST_F(SparseClientTest, UpdatesOfOneKeyAreAppliedOneByOne) {
  ClientCluster cluster(pb::Consistency::ASP);
  pb::TableSpec* spec = cluster.AddSparse(kTable, 1, 1);
  spec->mutable_optimizer()->mutable_adagrad()->set_eps(0);
  cluster.Start(1, 1);
  const uint64_t key = 1;
  const float gradients[2] = {-3, -4};
  table(cluster).Update({key}, &gradients[0], nullptr);
  table(cluster).Update({key}, &gradients[1], nullptr);
  bool acked = false;
  cluster.client(0).WhenAllAcknowledged([&] { acked = true; });
  ASSERT_TRUE(cluster.Run([&] { return acked; })) << cluster.error;
  EXPECT_THAT(Pull(cluster, 0, {key}), ElementsAre(testing::FloatNear(1.0f + 0.8f, 1e-6f)));
}

// Answers go on coming while callbacks start new updates: nothing is left lying.
TEST_F(SparseClientTest, UpdatesFromCallbacksEnd) {
  ClientCluster cluster(pb::Consistency::ASP);
  cluster.AddSparse(kTable, 1, 8);
  cluster.Start(4, 1);
  SparseTable& updates = table(cluster);
  const float gradient = -1;
  int started = 0, ended = 0;
  std::function<void()> next = [&] {
    ++ended;
    if (started >= 5000) return;
    const uint64_t key = static_cast<uint64_t>(started++ % 50);
    updates.Update({key}, &gradient, next);
  };
  for (int i = 0; i < 20; ++i) {
    --ended;
    next();
  }
  ASSERT_TRUE(cluster.Run([&] { return ended == 5000; })) << cluster.error;
  std::vector<uint64_t> keys(50);
  for (uint64_t k = 0; k < 50; ++k) keys[k] = k;
  EXPECT_EQ(Pull(cluster, 0, keys), std::vector<float>(50, 100));
}

}  // namespace
}  // namespace parley
