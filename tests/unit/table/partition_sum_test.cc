// Sums: one gradient in the place of several gives the same bits.
#include <numeric>

#include "ps/table/optimizer.h"
#include "tests/unit/table/state_testing.h"

namespace parley {
namespace {

class PartitionSumTest : public testing::Test {
 protected:
  ~PartitionSumTest() override { ForceOptimizerKernelIsa(""); }
  BufferPool pool_;
};

std::vector<const char*> Isas() {
  std::vector<const char*> isas;
  for (const char* isa : {"avx2", "avx512"}) {
    if (ForceOptimizerKernelIsa(isa)) isas.push_back(isa);
  }
  return isas;
}

GradientView ViewOf(const SummedGradient& sum) { return {KeyList(sum.keys), sum.values.floats()}; }

TEST_F(PartitionSumTest, AloneAsAllTogether) {
  const std::vector<const char*> isas = Isas();
  ASSERT_FALSE(isas.empty());
  uint64_t seed = 0;
  for (const pb::TableSpec& spec : AllTables()) {
    SCOPED_TRACE(spec.ShortDebugString());
    StateHistory history(spec, ++seed);
    std::vector<std::unique_ptr<TablePartition>> by_isa;
    for (size_t i = 0; i < isas.size(); ++i) by_isa.push_back(history.Create(&pool_));
    const auto all = history.Create(&pool_);
    for (int round = 0; round < 3; ++round) {
      for (const size_t workers : {1, 2, 3, 4, 5, 9}) {
        const StepGradients gradients = history.Gradients(workers);
        const StepInfo info = history.Info();
        ASSERT_TRUE(ForceOptimizerKernelIsa(isas[0]));
        all->Apply(gradients.views(), info);
        const double squares = all->SumOfSquares(gradients.views(), 0.1);
        for (size_t i = 0; i < isas.size(); ++i) {
          ASSERT_TRUE(ForceOptimizerKernelIsa(isas[i]));
          const SummedGradient sum = by_isa[i]->Sum(gradients.views());
          const GradientView view = ViewOf(sum);
          ASSERT_EQ(sum.values.num_floats(), by_isa[i]->values(view.keys.size()));
          by_isa[i]->Apply({&view, 1}, info);
          ASSERT_EQ(by_isa[i]->SumOfSquares({&view, 1}, 0.1), squares);
          ASSERT_TRUE(SamePartition(*all, *by_isa[i])) << isas[i] << " of " << workers;
        }
      }
    }
  }
}

// Sums are taken from left to right, which shows.
TEST_F(PartitionSumTest, InTheOrderOfTheWorkers) {
  const std::vector<float> values = {1e8f, 1, -1e8f, 1, 1};
  const float expected = std::accumulate(values.begin(), values.end(), 0.0f);
  ASSERT_NE(std::accumulate(values.rbegin(), values.rend(), 0.0f), expected);
  for (const pb::TableSpec& spec :
       {DenseTableSpec("sgd {}", 20), SparseTableSpec("dim: 20 partitions: 1", "sgd {}")}) {
    const auto partition = StateHistory(spec, 1).Create(&pool_);
    StepGradients gradients;
    for (const float value : values) {
      gradients.Add(spec.has_sparse() ? std::vector<uint64_t>{7} : std::vector<uint64_t>{},
                    std::vector<float>(20, value));
    }
    const SummedGradient sum = partition->Sum(gradients.views());
    ASSERT_EQ(sum.values.num_floats(), 20u);
    for (size_t i = 0; i < 20; ++i) EXPECT_EQ(sum.values.floats()[i], expected);
  }
}

// Keys in the order in which they first occur, whichever object sums.
TEST_F(PartitionSumTest, KeysHaveOneOrder) {
  const pb::TableSpec spec = SparseTableSpec("dim: 1 partitions: 1", "sgd {}");
  StepGradients gradients;
  gradients.Add({9, 3}, {1, 2});
  gradients.Add({}, {});
  gradients.Add({4, 3, 8}, {10, 20, 30});
  const auto partition = StateHistory(spec, 1).Create(&pool_);
  const SummedGradient sum = partition->Sum(gradients.views());
  const uint64_t keys[] = {9, 3, 4, 8};
  const float values[] = {1, 22, 10, 30};
  EXPECT_EQ(BytesOf(sum.keys), std::string(reinterpret_cast<const char*>(keys), sizeof(keys)));
  EXPECT_EQ(BytesOf(sum.values),
            std::string(reinterpret_cast<const char*>(values), sizeof(values)));
}

// A gradient that is alone may repeat a key: each is an update of its own, summed or not.
TEST_F(PartitionSumTest, RepeatedKeysStayUpdatesOfTheirOwn) {
  const pb::TableSpec spec = SparseTableSpec("dim: 2 partitions: 1", "lr: 0.1 adam {}");
  const StateHistory history(spec, 1);
  const auto all = history.Create(&pool_), alone = history.Create(&pool_);
  StepGradients gradients;
  gradients.Add({5, 6, 5}, {1, 2, 3, 4, 5, 6});
  gradients.Add({}, {});
  const SummedGradient sum = alone->Sum(gradients.views());
  const GradientView view = ViewOf(sum);
  all->Apply(gradients.views(), StepInfo());
  alone->Apply({&view, 1}, StepInfo());
  EXPECT_TRUE(SamePartition(*all, *alone));
}

TEST_F(PartitionSumTest, OfNothing) {
  for (const pb::TableSpec& spec : {DenseTableSpec("lr: 0.1 weight_decay: 0.5 adam {}", 20),
                                    SparseTableSpec("dim: 20 partitions: 1", "lr: 0.1 adam {}")}) {
    StateHistory history(spec, 1);
    const auto all = history.Create(&pool_), alone = history.Create(&pool_);
    for (int i = 0; i < 3; ++i) history.Step({all.get(), alone.get()});
    const SummedGradient sum = alone->Sum({});
    ASSERT_EQ(sum.values.num_floats(), alone->values(0));
    const GradientView view = ViewOf(sum);
    all->Apply({}, history.Info());
    alone->Apply({&view, 1}, history.Info());
    EXPECT_TRUE(SamePartition(*all, *alone));
  }
}

}  // namespace
}  // namespace parley
