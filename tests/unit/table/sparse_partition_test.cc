// Sparse partitions against a naive map over random histories, and what they promise beyond.
#include "ps/table/sparse_partition.h"

#include <cmath>
#include <random>
#include <set>

#include "gmock/gmock.h"
#include "tests/unit/table/scarce_memory.h"
#include "tests/unit/table/sparse_testing.h"

namespace parley {
namespace {

using testing::HasSubstr;

const char* const kEveryRule[] = {
    "sgd {}",
    "sgd { momentum: 0.9 dampening: 0.1 }",
    "sgd { momentum: 0.9 nesterov: true }",
    "adagrad { lr_decay: 0.1 initial_accumulator: 0.1 }",
    "adadelta {}",
    "rmsprop { centered: true momentum: 0.9 }",
    "adam {}",
    "adam { amsgrad: true }",
    "adamw {}",
    "ftrl { l1: 0.05 l2: 0.1 }",
    "row_adagrad { initial_accumulator: 0.1 }",
};

std::vector<uint64_t> Universe(size_t n) {
  std::vector<uint64_t> keys = {0, ~uint64_t{0}, uint64_t{1} << 63};
  for (uint64_t k = 1; keys.size() < n; ++k) keys.push_back(k * k * 977);
  return keys;
}

// Random pushes of a few workers, steps on end; duplicates where a worker is alone.
class History {
 public:
  History(uint64_t seed, const std::vector<uint64_t>& universe, uint32_t dim)
      : random_(seed), universe_(universe), dim_(dim) {}

  std::vector<RowModel::Gradients> Step() {
    std::vector<RowModel::Gradients> workers(1 + random_() % 3);
    for (RowModel::Gradients& gradients : workers) {
      std::set<uint64_t> seen;
      const size_t pushes = random_() % 90;
      for (size_t i = 0; i < pushes; ++i) {
        // Squared, so that some keys are frequent and some are rare.
        const double u = std::uniform_real_distribution<double>()(random_);
        const uint64_t key = universe_[static_cast<size_t>(u * u * universe_.size())];
        if (!seen.insert(key).second && workers.size() > 1) continue;
        gradients.emplace_back(key, RandomVector(random_(), dim_));
      }
    }
    return workers;
  }

 private:
  std::mt19937_64 random_;
  const std::vector<uint64_t>& universe_;
  const uint32_t dim_;
};

void CompareWithModel(const std::string& sparse, const std::string& optimizer, uint64_t seed) {
  SCOPED_TRACE(sparse + " / " + optimizer);
  const pb::TableSpec spec = SparseTableSpec(sparse, optimizer);
  SparseTable table(spec);
  RowModel model(spec);
  const std::vector<uint64_t> universe = Universe(400);
  History history(seed, universe, spec.sparse().dim());
  for (uint64_t tick = 0; tick < 40; ++tick) {
    const auto workers = history.Step();
    StepInfo info;
    info.step = tick;
    info.inverse_weight = 1.0 / 3;
    table.Apply(workers, info);
    model.Apply(workers, info);
    table.EndStep(tick);
    model.EndStep(tick);
    const auto rows = table.Read(universe);
    for (const uint64_t key : universe) {
      ASSERT_TRUE(SameBits(rows.at(key), model.Read(key))) << "key " << key << " tick " << tick;
    }
    ASSERT_EQ(table.Counts().rows(), model.rows()) << "tick " << tick;
    ASSERT_EQ(table.Counts().evicted(), model.evicted()) << "tick " << tick;
  }
  EXPECT_GT(model.rows(), 20u);
}

TEST(SparsePartitionTest, EveryRuleAndRowTypeAsInTheModel) {
  uint64_t seed = 1;
  for (const std::string rule : kEveryRule) {
    for (const char* type : {"FP32", "FP16", "BF16"}) {
      const std::string row_type = std::string(" row_type: ") + type;
      CompareWithModel("dim: 16 partitions: 4 bound: 0.5" + row_type, "lr: 0.1 " + rule, ++seed);
      CompareWithModel("dim: 5 partitions: 2 bound: 0.5" + row_type,
                       "lr: 0.1 weight_decay: 0.01 clip_value: 0.2 " + rule, ++seed);
    }
  }
}

TEST(SparsePartitionTest, EveryDimension) {
  for (const char* dim : {"1", "3", "8", "32", "64", "100", "1027"}) {
    CompareWithModel(std::string("partitions: 2 init: ZERO dim: ") + dim, "lr: 0.1 sgd {}", 7);
    CompareWithModel(std::string("partitions: 1 row_type: FP16 dim: ") + dim, "lr: 0.1 adam {}", 8);
  }
}

TEST(SparsePartitionTest, EvictionAsInTheModel) {
  const std::string dim = "dim: 4 partitions: 4 ";
  uint64_t seed = 50;
  for (const char* eviction :
       {"min_frequency: 3", "max_age: 1", "max_age: 3", "max_age: 17", "max_rows: 10",
        "max_rows: 33", "max_rows: 40 max_age: 9", "min_frequency: 2 max_age: 5 max_rows: 20"}) {
    CompareWithModel(dim + "eviction { " + eviction + " }", "lr: 0.1 adagrad {}", ++seed);
  }
}

TEST(SparsePartitionTest, OffCostsNothing) {
  const auto bytes = [](const std::string& sparse, const std::string& rule) {
    return RowOptimizer::Create(SparseTableSpec(sparse, rule))->format().bytes;
  };
  EXPECT_EQ(bytes("dim: 16", "sgd {}"), 64u);
  EXPECT_EQ(bytes("dim: 16 eviction {}", "sgd {}"), 64u);
  EXPECT_EQ(bytes("dim: 16 eviction { min_frequency: 5 }", "sgd {}"), 64u);
  EXPECT_EQ(bytes("dim: 16 eviction { max_age: 5 }", "sgd {}"), 68u);
  EXPECT_EQ(bytes("dim: 16 row_type: BF16", "sgd {}"), 32u);
  EXPECT_EQ(bytes("dim: 16", "sgd { momentum: 0.9 }"), 128u);
  EXPECT_EQ(bytes("dim: 16", "adagrad {}"), 128u);
  EXPECT_EQ(bytes("dim: 16", "row_adagrad {}"), 68u);
  EXPECT_EQ(bytes("dim: 16", "adam {}"), 196u);
  EXPECT_EQ(bytes("dim: 3 row_type: FP16", "ftrl {}"), 8u + 24u);
}

TEST(SparsePartitionTest, NeitherPartitionsNorOrderShow) {
  const std::vector<uint64_t> universe = Universe(3000);
  std::map<uint64_t, std::vector<float>> expected;
  pb::ServerCounts::Rows counts;
  for (const char* partitions : {"1", "2", "16", "512"}) {
    SparseTable table(
        SparseTableSpec(std::string("dim: 7 partitions: ") + partitions, "lr: 0.1 adam {}"));
    std::mt19937_64 order(partitions[0]);
    for (uint64_t tick = 0; tick < 4; ++tick) {
      std::vector<RowModel::Gradients> workers(3);
      for (uint64_t w = 0; w < 3; ++w) {
        for (const uint64_t key : universe) {
          if ((key + w + tick) % 3 != 0) {
            workers[w].emplace_back(key, RandomVector(key * 100 + tick * 10 + w, 7));
          }
        }
        std::shuffle(workers[w].begin(), workers[w].end(), order);
      }
      StepInfo info;
      info.step = tick;
      table.Apply(workers, info);
    }
    const auto rows = table.Read(universe);
    if (expected.empty()) {
      expected = rows;
      counts = table.Counts();
      EXPECT_EQ(counts.rows(), universe.size());
      continue;
    }
    EXPECT_TRUE(rows == expected) << partitions;
    EXPECT_EQ(table.Counts().digest_low(), counts.digest_low()) << partitions;
    EXPECT_EQ(table.Counts().digest_high(), counts.digest_high()) << partitions;
  }
}

TEST(SparsePartitionTest, TheDigestSeesEveryKeyAndBit) {
  std::set<std::pair<uint64_t, uint64_t>> digests;
  const auto digest = [&](uint64_t key, float value) {
    SparseTable table(SparseTableSpec("dim: 3 partitions: 1 init: ZERO", "lr: 1 sgd {}"));
    table.Apply({{{key, {0, 0, value}}, {77, {1, 1, 1}}}}, StepInfo());
    return std::pair(table.Counts().digest_low(), table.Counts().digest_high());
  };
  for (const uint64_t key : {1, 2, 3}) {
    for (const float value : {1.0f, std::nextafter(1.0f, 2.0f), -1.0f}) {
      EXPECT_TRUE(digests.insert(digest(key, value)).second);
      EXPECT_TRUE(digests.contains(digest(key, value)));
    }
  }
}

TEST(SparsePartitionTest, EveryInstructionSetGivesTheSameBits) {
  if (!ForceOptimizerKernelIsa("avx512")) GTEST_SKIP() << "this machine has no AVX-512";
  const std::vector<uint64_t> universe = Universe(300);
  for (const std::string rule : kEveryRule) {
    for (const char* sparse : {"dim: 16 partitions: 1", "dim: 37 partitions: 1 row_type: FP16",
                               "dim: 19 partitions: 1 row_type: BF16"}) {
      const pb::TableSpec spec = SparseTableSpec(sparse, "lr: 0.1 weight_decay: 0.01 " + rule);
      SparseTable wide(spec), narrow(spec);
      History history(5, universe, spec.sparse().dim());
      for (uint64_t tick = 0; tick < 10; ++tick) {
        const auto workers = history.Step();
        StepInfo info;
        info.step = tick;
        ASSERT_TRUE(ForceOptimizerKernelIsa("avx512"));
        EXPECT_STREQ(BestRowKernels().isa, "avx512");
        wide.Apply(workers, info);
        ASSERT_TRUE(ForceOptimizerKernelIsa("avx2"));
        EXPECT_STREQ(BestRowKernels().isa, "avx2");
        narrow.Apply(workers, info);
      }
      EXPECT_EQ(wide.Counts().digest_low(), narrow.Counts().digest_low()) << rule << sparse;
      EXPECT_EQ(wide.Counts().digest_high(), narrow.Counts().digest_high()) << rule << sparse;
    }
  }
  ForceOptimizerKernelIsa("");
}

// Algorithm 1 of McMahan et al. in float64: w is made from z and n before each gradient.
TEST(SparsePartitionTest, FtrlAsInThePaper) {
  SparseTable table(SparseTableSpec("dim: 2 partitions: 1 init: ZERO",
                                    "lr: 0.3 ftrl { beta: 0.7 l1: 0.2 l2: 0.05 }"));
  double z[2] = {}, n[2] = {};
  const auto weight = [&](int i) {
    if (std::abs(z[i]) <= 0.2) return 0.0;
    const double sign = z[i] < 0 ? -1 : 1;
    return -1 / ((0.7 + std::sqrt(n[i])) / 0.3 + 0.05) * (z[i] - sign * 0.2);
  };
  bool was_zero = false, was_not = false;
  for (uint64_t tick = 0; tick < 50; ++tick) {
    const std::vector<float> gradient = RandomVector(tick, 2);
    for (int i = 0; i < 2; ++i) {
      const double g = gradient[i], w = weight(i);
      const double sigma = (std::sqrt(n[i] + g * g) - std::sqrt(n[i])) / 0.3;
      z[i] += g - sigma * w;
      n[i] += g * g;
    }
    StepInfo info;
    info.step = tick;
    table.Apply({{{42, gradient}}}, info);
    const std::vector<float> row = table.Read({42})[42];
    for (int i = 0; i < 2; ++i) {
      EXPECT_NEAR(row[i], weight(i), 2e-6) << tick;
      (weight(i) == 0 ? was_zero : was_not) = true;
    }
  }
  EXPECT_TRUE(was_zero && was_not);
}

TEST(SparsePartitionTest, RowAdagradByHand) {
  SparseTable table(SparseTableSpec("dim: 4 partitions: 1 init: ZERO",
                                    "lr: 0.5 row_adagrad { initial_accumulator: 2 eps: 0.25 }"));
  double accumulator = 2, w[4] = {};
  for (uint64_t tick = 0; tick < 20; ++tick) {
    const std::vector<float> gradient = RandomVector(tick, 4);
    double squares = 0;
    for (const float g : gradient) squares += static_cast<double>(g) * g;
    accumulator += squares / 4;
    for (int i = 0; i < 4; ++i) w[i] -= 0.5 * gradient[i] / (std::sqrt(accumulator) + 0.25);
    table.Apply({{{7, gradient}}}, StepInfo());
  }
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(table.Read({7})[7][i], w[i], 1e-6);
}

// Adam's first step has the size of the learning rate, whenever the row appears.
TEST(SparsePartitionTest, BiasIsCorrectedByTheRowsOwnCount) {
  SparseTable table(SparseTableSpec("dim: 1 partitions: 1 init: ZERO", "lr: 0.125 adam {}"));
  for (uint64_t tick = 0; tick < 1000; ++tick) {
    StepInfo info;
    info.step = tick;
    table.Apply({{{1, {0.5f}}}}, info);
  }
  StepInfo info;
  info.step = 1000;
  table.Apply({{{2, {0.5f}}}}, info);
  EXPECT_NEAR(table.Read({2})[2][0], -0.125, 1e-6);
}

// Corrections that are remembered are counted as memory, and those beyond are the same numbers.
TEST(SparsePartitionTest, OldRowsTakeBoundedMemoryAndKeepTheirBits) {
  const pb::TableSpec spec = SparseTableSpec("dim: 1 partitions: 1", "lr: 0.1 adam {}");
  SparseTable table(spec);
  RowModel model(spec);
  table.Apply({{{1, {0.5f}}}}, StepInfo());
  model.Apply({{{1, {0.5f}}}}, StepInfo());
  const uint64_t before = table.partition(0).memory_bytes();
  for (uint64_t tick = 1; tick < 5000; ++tick) {
    StepInfo info;
    info.step = tick;
    const std::vector<RowModel::Gradients> push = {{{1, RandomVector(tick, 1)}}};
    table.Apply(push, info);
    model.Apply(push, info);
    ASSERT_TRUE(SameBits(table.Read({1}).at(1), model.Read(1))) << tick;
  }
  EXPECT_GT(table.partition(0).memory_bytes(), before + 16 * 1000);
  EXPECT_LE(table.partition(0).memory_bytes(), before + 16 * 2048);
}

TEST(SparsePartitionTest, ReadingCreatesNothing) {
  SparseTable table(SparseTableSpec("dim: 4 partitions: 2", "sgd {}"));
  const auto rows = table.Read({1, 2, 3});
  EXPECT_EQ(rows.size(), 3u);
  EXPECT_FALSE(SameBits(rows.at(1), rows.at(2)));
  EXPECT_EQ(table.Counts().rows(), 0u);
  EXPECT_EQ(table.Counts().digest_low(), 0u);
  EXPECT_EQ(table.partition(0).Read(KeyList()).num_floats(), 0u);
}

TEST(SparsePartitionTest, AnAnswerStaysAsItWas) {
  SparseTable table(SparseTableSpec("dim: 4 partitions: 1 init: ZERO", "lr: 1 sgd {}"));
  const uint64_t key = 5;
  const KeyList keys(reinterpret_cast<const std::byte*>(&key), 1);
  const Buffer before = table.partition(0).Read(keys);
  table.Apply({{{key, {1, 2, 3, 4}}}}, StepInfo());
  EXPECT_EQ(before.floats()[3], 0);
  EXPECT_EQ(table.partition(0).Read(keys).floats()[3], -4);
  EXPECT_EQ(table.partition(0).version(), 1u);
}

TEST(SparsePartitionTest, CandidatesAreBounded) {
  CandidateKeys candidates(4, 100);
  for (uint64_t key = 0; key < 90; ++key) EXPECT_FALSE(candidates.Count(key));
  for (uint64_t key = 0; key < 5; ++key) {
    EXPECT_FALSE(candidates.Count(key));
    EXPECT_FALSE(candidates.Count(key));
  }
  candidates.EndStep();
  EXPECT_EQ(candidates.size(), 90u);
  for (uint64_t key = 1000; key < 1050; ++key) EXPECT_FALSE(candidates.Count(key));
  candidates.EndStep();
  // Three became one, one was forgotten.
  EXPECT_EQ(candidates.size(), 5u);
  EXPECT_FALSE(candidates.Count(0));
  EXPECT_FALSE(candidates.Count(0));
  EXPECT_TRUE(candidates.Count(0));
  EXPECT_EQ(candidates.size(), 4u);
}

TEST(SparsePartitionTest, RefusalsNameWhatIsWrong) {
  BufferPool pool;
  const auto refusal = [&](const std::string& sparse, const std::string& rule, uint32_t index = 0) {
    const auto made = TablePartition::Create(SparseTableSpec(sparse, rule), index, &pool);
    EXPECT_EQ(made.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(made.status().message());
  };
  EXPECT_THAT(refusal("dim: 0 partitions: 1", "sgd {}"), HasSubstr("dim is 0"));
  EXPECT_THAT(refusal("dim: 4 partitions: 3", "sgd {}"), HasSubstr("partitions is 3"));
  EXPECT_THAT(refusal("dim: 4 partitions: 4", "sgd {}", 4), HasSubstr("partition 4 of 4"));
  EXPECT_THAT(refusal("dim: 4 partitions: 4 bound: -1", "sgd {}"), HasSubstr("bound is -1"));
  EXPECT_THAT(refusal("dim: 4 partitions: 1", "ftrl { l1: -1 }"), HasSubstr("ftrl.l1 is -1"));
  EXPECT_THAT(refusal("dim: 4 partitions: 1", "row_adagrad { eps: nan }"),
              HasSubstr("row_adagrad.eps is nan"));
  EXPECT_THAT(refusal("dim: 4 partitions: 1", "lr: 1"), HasSubstr("no rule"));

  SparseTable table(SparseTableSpec("dim: 4 partitions: 2", "sgd {}"));
  uint64_t foreign = 1;
  while (table.layout().PartitionOf(foreign) != 1) ++foreign;
  const KeyList keys(reinterpret_cast<const std::byte*>(&foreign), 1);
  EXPECT_TRUE(table.partition(1).CheckKeys(keys).ok());
  const absl::Status status = table.partition(0).CheckKeys(keys);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("partition 1"));
}

TEST(TablePartitionTest, NoMemoryIsAnError) {
  const auto memory = std::make_shared<ScarceMemory>();
  BufferPool pool(0, memory);
  pb::TableSpec spec;
  spec.set_name("weights");
  spec.set_partition_elements(100);
  spec.add_tensor()->add_shape(150);
  *spec.mutable_optimizer() = ParseOptimizer("lr: 1 sgd {}");
  const ScarceMemory::Shortage shortage(memory.get());
  const absl::Status status = TablePartition::Create(spec, 1, &pool).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("'weights': no memory for partition 1"));
}

TEST(TablePartitionTest, DenseBehindTheSameInterface) {
  pb::TableSpec spec;
  spec.set_name("weights");
  spec.set_partition_elements(100);
  spec.add_tensor()->add_shape(150);
  *spec.mutable_optimizer() = ParseOptimizer("lr: 1 sgd {}");
  BufferPool pool;
  auto partition = *TablePartition::Create(spec, 1, &pool);
  EXPECT_EQ(partition->values(0), 50u);
  const std::vector<float> a(50, 1.0f), b(50, 2.0f);
  const GradientView views[] = {{KeyList(), a.data()}, {KeyList(), b.data()}};
  EXPECT_EQ(partition->SumOfSquares(views, 0.5), 50 * 2.25);
  StepInfo info;
  info.inverse_weight = 0.5;
  partition->Apply(views, info);
  EXPECT_EQ(partition->Read(KeyList()).floats()[49], -1.5f);
  EXPECT_EQ(partition->version(), 1u);
  const uint64_t key = 1;
  EXPECT_FALSE(partition->CheckKeys(KeyList(reinterpret_cast<const std::byte*>(&key), 1)).ok());
  EXPECT_EQ(TablePartition::Create(spec, 2, &pool).status().code(),
            absl::StatusCode::kInvalidArgument);
  *spec.mutable_optimizer() = ParseOptimizer("ftrl {}");
  EXPECT_THAT(std::string(TablePartition::Create(spec, 0, &pool).status().message()),
              HasSubstr("sparse tables"));
}

}  // namespace
}  // namespace parley
