#include "worker/data/synthetic_clicks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "absl/strings/str_cat.h"
#include "worker/data/zipf.h"

namespace parley {
namespace {

using ::testing::HasSubstr;

// Frequencies against the definition, within what chance allows.
TEST(Zipf, DrawsRanksInProportion) {
  for (const double exponent : {0.0, 0.5, 1.0, 1.0 + 1e-4, 1.05, 2.0, 10.0}) {
    for (const uint64_t n : {1, 2, 7, 1000}) {
      SCOPED_TRACE(absl::StrCat(exponent, " of ", n));
      const Zipf zipf(n, exponent);
      constexpr int kDraws = 40000;
      std::map<uint64_t, int> count;
      for (int i = 0; i < kDraws; ++i) {
        const uint64_t rank = zipf.Draw(5, 9, i);
        ASSERT_GE(rank, 1u);
        ASSERT_LE(rank, n);
        ++count[rank];
      }
      double total = 0;
      for (uint64_t k = 1; k <= n; ++k) total += std::pow(k, -exponent);
      for (uint64_t k = 1; k <= std::min<uint64_t>(n, 5); ++k) {
        const double want = kDraws * std::pow(k, -exponent) / total;
        EXPECT_NEAR(count[k], want, 4.5 * std::sqrt(want) + 1) << "rank " << k;
      }
      // The tail as a whole.
      double want = 0, found = 0;
      for (uint64_t k = n / 2 + 1; k <= n; ++k) {
        want += kDraws * std::pow(k, -exponent) / total;
        found += count[k];
      }
      EXPECT_NEAR(found, want, 4.5 * std::sqrt(want) + 1);
    }
  }
}

TEST(Zipf, ManyRanksNeedNoTable) {
  const Zipf zipf(Zipf::kMaxRanks, 1.05);
  std::set<uint64_t> ranks;
  uint64_t largest = 0;
  for (int i = 0; i < 2000; ++i) {
    const uint64_t rank = zipf.Draw(1, 2, i);
    ASSERT_GE(rank, 1u);
    ASSERT_LE(rank, Zipf::kMaxRanks);
    ranks.insert(rank);
    largest = std::max(largest, rank);
  }
  EXPECT_GT(ranks.size(), 1000u);
  EXPECT_GT(largest, Zipf::kMaxRanks >> 10);
}

pb::SyntheticClicks Config() {
  pb::SyntheticClicks config;
  config.set_train_samples(3000);
  config.set_fields(5);
  config.set_keys_per_field(100);
  return config;
}

TEST(SyntheticClicks, ASampleDependsOnSeedAndNumberAlone) {
  const auto train = *MakeSyntheticClicks(Config(), 3, 0, true);
  const auto test = *MakeSyntheticClicks(Config(), 3, 0, false);
  const auto other = *MakeSyntheticClicks(Config(), 4, 0, true);
  EXPECT_EQ(train->samples(), 3000u);
  EXPECT_EQ(train->keys_per_row(), 5u);
  std::vector<uint64_t> ids(3000), keys(ids.size() * 5), key(5);
  std::iota(ids.begin(), ids.end(), 0);
  std::vector<int32_t> labels(ids.size());
  train->ReadKeys(ids, keys.data());
  train->Read(ids, nullptr, labels.data());
  for (const uint64_t id : {0, 17, 2999}) {
    int32_t label = -1;
    train->ReadKeys({id}, key.data());
    train->Read({id}, nullptr, &label);
    for (int f = 0; f < 5; ++f) {
      EXPECT_EQ(key[f], keys[id * 5 + f]);
      EXPECT_EQ(key[f] / 100, static_cast<uint64_t>(f));  // each field has keys of its own
    }
    EXPECT_EQ(label, labels[id]);
  }
  std::vector<uint64_t> both_keys(keys.size());
  std::vector<int32_t> both_labels(labels.size());
  train->ReadKeysAndLabels(ids, both_keys.data(), both_labels.data());
  EXPECT_EQ(both_keys, keys);
  EXPECT_EQ(both_labels, labels);
  const int ones = std::accumulate(labels.begin(), labels.end(), 0);
  EXPECT_GT(ones, 300);
  EXPECT_LT(ones, 2700);
  for (const auto* set : {&test, &other}) {
    std::vector<uint64_t> theirs(100 * 5);
    (*set)->ReadKeys(absl::MakeConstSpan(ids).first(100), theirs.data());
    EXPECT_NE(theirs, std::vector<uint64_t>(keys.begin(), keys.begin() + 500));
  }
}

// Keys must say something about labels: the label most often seen with a sample's frequent keys
// predicts better than the commoner label does.
TEST(SyntheticClicks, KeysForetellLabels) {
  const auto set = *MakeSyntheticClicks(Config(), 3, 0, true);
  std::vector<uint64_t> ids(3000), keys(ids.size() * 5);
  std::iota(ids.begin(), ids.end(), 0);
  std::vector<int32_t> labels(ids.size());
  set->ReadKeys(ids, keys.data());
  set->Read(ids, nullptr, labels.data());
  std::map<uint64_t, double> balance;
  int ones = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    ones += labels[i];
    for (int f = 0; f < 5; ++f) balance[keys[i * 5 + f]] += labels[i] == 1 ? 1 : -1;
  }
  int correct = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    double score = 0;
    for (int f = 0; f < 5; ++f) {
      const double b = balance[keys[i * 5 + f]];
      score += b > 0 ? std::sqrt(b) : -std::sqrt(-b);
    }
    correct += (score > 0) == (labels[i] == 1);
  }
  EXPECT_GT(correct, std::max(ones, 3000 - ones) + 150);
}

TEST(SyntheticClicks, ImpossibleConfigsAreNamed) {
  auto message = [](pb::SyntheticClicks config) {
    return std::string(MakeSyntheticClicks(config, 1, 0, true).status().message());
  };
  pb::SyntheticClicks config = Config();
  config.set_fields(0);
  EXPECT_THAT(message(config), HasSubstr("synthetic_clicks.fields is 0, allowed is 1..1024"));
  config = Config();
  config.set_keys_per_field(0);
  EXPECT_THAT(message(config), HasSubstr("keys_per_field is 0"));
  config = Config();
  config.set_zipf(std::nanf(""));
  EXPECT_THAT(message(config), HasSubstr("zipf is nan, allowed is 0..10"));
  config = Config();
  config.set_train_samples(0);
  EXPECT_THAT(message(config), HasSubstr("train_samples is 0"));
}

}  // namespace
}  // namespace parley
