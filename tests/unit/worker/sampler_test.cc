#include "worker/data/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

namespace parley {
namespace {

using ::testing::ElementsAre;

// FNV-1a over the numbers: pins an order without listing it.
uint64_t HashOf(const std::vector<uint64_t>& order) {
  uint64_t hash = 0xcbf29ce484222325;
  for (uint64_t id : order) hash = (hash ^ id) * 0x100000001b3;
  return hash;
}

std::vector<uint64_t> Sorted(std::vector<uint64_t> ids) {
  std::sort(ids.begin(), ids.end());
  return ids;
}

std::vector<uint64_t> Iota(uint64_t n) {
  std::vector<uint64_t> ids(n);
  std::iota(ids.begin(), ids.end(), uint64_t{0});
  return ids;
}

TEST(EpochPermutationTest, IsAPermutationThatDependsOnSeedAndEpochAlone) {
  for (uint64_t n : {0, 1, 2, 5, 1000}) {
    EXPECT_EQ(Sorted(EpochPermutation(7, 3, n)), Iota(n)) << n;
  }
  EXPECT_EQ(EpochPermutation(7, 3, 1000), EpochPermutation(7, 3, 1000));
  EXPECT_NE(EpochPermutation(7, 3, 1000), EpochPermutation(7, 4, 1000));
  EXPECT_NE(EpochPermutation(7, 3, 1000), EpochPermutation(8, 3, 1000));
}

// A checkpoint resumed by a later release must go on in the same order.
TEST(EpochPermutationTest, StaysTheSameAcrossReleases) {
  EXPECT_THAT(EpochPermutation(1, 0, 8), ElementsAre(7, 3, 2, 0, 4, 1, 5, 6));
  EXPECT_EQ(HashOf(EpochPermutation(1, 0, 60000)), 14420955025527654161u);
}

TEST(EpochPermutationTest, EveryPlaceIsEquallyLikely) {
  // 4000 permutations of 5: each (place, value) is expected 800 times, standard deviation 25.
  int counts[5][5] = {};
  for (uint64_t epoch = 0; epoch < 4000; ++epoch) {
    const std::vector<uint64_t> order = EpochPermutation(1, epoch, 5);
    for (int place = 0; place < 5; ++place) ++counts[place][order[place]];
  }
  for (auto& place : counts) {
    for (int count : place) EXPECT_NEAR(count, 800, 125);
  }
}

TEST(ContiguousPartTest, CoversWithSizesThatDifferByAtMostOne) {
  for (uint64_t n : {0, 1, 5, 128, 129}) {
    for (uint32_t parts : {1, 2, 3, 7}) {
      uint64_t next = 0;
      for (uint32_t part = 0; part < parts; ++part) {
        const Range range = ContiguousPart(n, part, parts);
        EXPECT_EQ(range.begin, next);
        EXPECT_GE(range.size(), n / parts);
        EXPECT_LE(range.size(), n / parts + 1);
        next = range.end;
      }
      EXPECT_EQ(next, n);
    }
  }
}

struct Case {
  uint64_t samples, batch;
  uint32_t parts;
};

class SamplerTest : public ::testing::TestWithParam<Case> {
 protected:
  std::vector<Sampler> Workers(pb::Data::Sharding sharding) {
    std::vector<Sampler> workers;
    for (uint32_t part = 0; part < GetParam().parts; ++part) {
      workers.emplace_back(Sampler::Options{.sharding = sharding,
                                            .samples = GetParam().samples,
                                            .global_batch = GetParam().batch,
                                            .part = part,
                                            .parts = GetParam().parts,
                                            .seed = 9});
    }
    return workers;
  }
};

TEST_P(SamplerTest, GlobalBatchesAreConsecutivePiecesOfThePermutation) {
  const auto [samples, batch, parts] = GetParam();
  std::vector<Sampler> workers = Workers(pb::Data::GLOBAL_BATCH);
  const uint64_t ticks = (samples + batch - 1) / batch;
  std::vector<uint64_t> seen;
  for (uint64_t tick = 0; tick < ticks; ++tick) {
    uint64_t rows = 0;
    for (Sampler& worker : workers) {
      EXPECT_EQ(worker.ticks_per_epoch(), ticks);
      const WorkerBatch mine = worker.Batch(2, tick);
      EXPECT_EQ(mine.ids.size(), worker.rows(tick));
      EXPECT_EQ(mine.first_row, rows);
      rows += mine.ids.size();
      seen.insert(seen.end(), mine.ids.begin(), mine.ids.end());
    }
    EXPECT_EQ(rows, std::min(batch, samples - tick * batch));
  }
  // Disjoint, covering, and in the order of the permutation whatever the number of workers.
  EXPECT_EQ(seen, EpochPermutation(9, 2, samples));
}

TEST_P(SamplerTest, DealtPartsAreDisjointAndCover) {
  const auto [samples, batch, parts] = GetParam();
  std::vector<Sampler> workers = Workers(pb::Data::BY_WORKER);
  const std::vector<uint64_t> order = EpochPermutation(9, 1, samples);
  std::vector<uint64_t> seen;
  for (uint32_t part = 0; part < parts; ++part) {
    std::vector<uint64_t> own;
    for (uint64_t tick = 0; tick < workers[part].ticks_per_epoch(); ++tick) {
      const WorkerBatch mine = workers[part].Batch(1, tick);
      EXPECT_GE(mine.ids.size(), 1u);
      EXPECT_LE(mine.ids.size(), std::max<uint64_t>(1, batch / parts));
      EXPECT_EQ(mine.ids.size(), workers[part].rows(tick));
      own.insert(own.end(), mine.ids.begin(), mine.ids.end());
    }
    std::vector<uint64_t> expected;
    for (uint64_t k = part; k < samples; k += parts) expected.push_back(order[k]);
    EXPECT_EQ(own, expected);
    seen.insert(seen.end(), own.begin(), own.end());
  }
  EXPECT_EQ(Sorted(seen), Iota(samples));
}

INSTANTIATE_TEST_SUITE_P(Shapes, SamplerTest,
                         ::testing::Values(Case{64, 16, 2}, Case{61, 16, 3}, Case{65, 16, 4},
                                           Case{5, 16, 3}, Case{2, 4, 5}, Case{10, 2, 4},
                                           Case{7, 1, 1}, Case{1, 1, 1}));

TEST(SamplerTest, GoingBackAnEpochGivesTheSameBatch) {
  Sampler sampler({.samples = 100, .global_batch = 10, .seed = 4});
  const WorkerBatch first = sampler.Batch(0, 3);
  EXPECT_NE(sampler.Batch(1, 3).ids, first.ids);
  EXPECT_EQ(sampler.Batch(0, 3).ids, first.ids);
}

}  // namespace
}  // namespace parley
