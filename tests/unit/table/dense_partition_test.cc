// DensePartition: initial values, updates, and readers that never see a half-written version.
#include "ps/table/dense_partition.h"

#include "tests/unit/table/table_testing.h"

namespace parley {
namespace {

// Three tensors of 300, 7 and 50 elements, the middle one zero.
pb::TableSpec Table(uint64_t partition_elements, uint64_t seed = 5, uint32_t id = 2) {
  pb::TableSpec table;
  table.set_id(id);
  table.set_seed(seed);
  table.set_partition_elements(partition_elements);
  const std::pair<uint32_t, float> tensors[] = {{300, 0.25f}, {7, 0.0f}, {50, 3.0f}};
  for (const auto& [elements, bound] : tensors) {
    pb::TensorSpec* tensor = table.add_tensor();
    tensor->add_shape(elements);
    if (bound > 0) tensor->set_init(pb::TensorSpec::UNIFORM);
    tensor->set_bound(bound);
  }
  return table;
}

std::vector<float> Values(const Buffer& buffer) {
  return std::vector<float>(buffer.floats(), buffer.floats() + buffer.num_floats());
}

class DensePartitionTest : public testing::Test {
 protected:
  // The table's weights, partition by partition.
  std::vector<float> AllInitial(const pb::TableSpec& table) {
    const auto layout = DenseLayout::Create(table);
    EXPECT_TRUE(layout.ok()) << layout.status();
    std::vector<float> all;
    for (uint32_t p = 0; p < layout->partitions(); ++p) {
      DensePartition partition(table, *layout, p, optimizer_.get(), &pool_);
      EXPECT_EQ(partition.size(), partition.Read().num_floats());
      const std::vector<float> part = Values(partition.Read());
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }

  std::unique_ptr<Optimizer> optimizer_ = MakeOptimizer("lr: 0.5 sgd { momentum: 0.5 }");
  BufferPool pool_;
};

TEST_F(DensePartitionTest, InitialValuesDependOnSeedTableAndElementAlone) {
  const std::vector<float> whole = AllInitial(Table(1024));
  ASSERT_EQ(whole.size(), 357u);
  for (const uint64_t size : {1, 3, 64, 101, 300}) {
    EXPECT_TRUE(SameBits(AllInitial(Table(size)), whole)) << size;
  }
  for (size_t i = 0; i < whole.size(); ++i) {
    const float bound = i < 300 ? 0.25f : 3.0f;
    const float u = UniformAt(5, Stream(RandomPurpose::kInit, 2), i);
    EXPECT_EQ(whole[i], i >= 300 && i < 307 ? 0.0f : (2 * u - 1) * bound) << i;
    EXPECT_TRUE(whole[i] >= -bound && whole[i] < bound);
  }
  EXPECT_FALSE(SameBits(AllInitial(Table(1024, /*seed=*/6)), whole));
  EXPECT_FALSE(SameBits(AllInitial(Table(1024, /*seed=*/5, /*id=*/3)), whole));
}

TEST_F(DensePartitionTest, UpdatesAreThoseOfTheOptimizer) {
  const pb::TableSpec table = Table(100);
  const auto layout = DenseLayout::Create(table);
  DensePartition partition(table, *layout, 3, optimizer_.get(), &pool_);
  ASSERT_EQ(partition.size(), 57u);
  TrainedState expected(*optimizer_, Values(partition.Read()));
  for (uint64_t update = 1; update <= 4; ++update) {
    const std::vector<float> a = RandomVector(2 * update, 57), b = RandomVector(2 * update + 1, 57);
    StepInfo info;
    info.inverse_weight = 0.5;
    info.update = 77;  // filled in by the partition
    partition.Apply({a.data(), b.data()}, info);
    info.update = update;
    expected.Apply(*optimizer_, {a.data(), b.data()}, info);
    EXPECT_EQ(partition.version(), update);
    EXPECT_TRUE(SameBits(Values(partition.Read()), expected.weights)) << update;
  }
}

TEST_F(DensePartitionTest, AReaderKeepsItsVersion) {
  const pb::TableSpec table = Table(400);
  const auto layout = DenseLayout::Create(table);
  DensePartition partition(table, *layout, 0, optimizer_.get(), &pool_);
  DensePartition unread(table, *layout, 0, optimizer_.get(), &pool_);
  const std::vector<float> gradient = RandomVector(3, partition.size());

  Buffer held = partition.Read();
  const Buffer slice = held.Slice(8, 16);
  const std::vector<float> before = Values(held);
  partition.Apply({gradient.data()}, StepInfo());
  EXPECT_TRUE(SameBits(Values(held), before));
  const Buffer second = partition.Read();
  EXPECT_NE(second.data(), held.data());
  EXPECT_FALSE(SameBits(Values(second), before));
  partition.Apply({gradient.data()}, StepInfo());
  EXPECT_TRUE(SameBits(Values(held), before));
  EXPECT_FALSE(SameBits(Values(second), Values(partition.Read())));

  // Whether somebody was reading does not show in the weights.
  unread.Apply({gradient.data()}, StepInfo());
  unread.Apply({gradient.data()}, StepInfo());
  EXPECT_TRUE(SameBits(Values(unread.Read()), Values(partition.Read())));

  // A slice alone keeps the version alive too.
  held = Buffer();
  EXPECT_EQ(slice.floats()[0], before[2]);
}

TEST_F(DensePartitionTest, NobodyReadingMeansNoNewMemory) {
  const pb::TableSpec table = Table(400);
  const auto layout = DenseLayout::Create(table);
  DensePartition partition(table, *layout, 0, optimizer_.get(), &pool_);
  const std::vector<float> gradient = RandomVector(3, partition.size());
  const std::byte* const at = partition.Read().data();
  for (int i = 0; i < 5; ++i) {
    partition.Apply({gradient.data()}, StepInfo());
    EXPECT_EQ(partition.Read().data(), at);
  }
  {
    const Buffer held = partition.Read();
    partition.Apply({gradient.data()}, StepInfo());
    EXPECT_NE(partition.Read().data(), at);
  }
  const std::byte* const next = partition.Read().data();
  partition.Apply({gradient.data()}, StepInfo());
  EXPECT_EQ(partition.Read().data(), next);
}

}  // namespace
}  // namespace parley
