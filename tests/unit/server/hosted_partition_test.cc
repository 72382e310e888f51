#include "ps/server/hosted_partition.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

namespace parley {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// One partition of 4 weights that start at 0; SGD with lr 1, so that weights are minus the sum of
// mean gradients.
class HostedPartitionTest : public ::testing::Test {
 protected:
  void Make(const std::string& mode, uint32_t workers, float clip_norm = 0) {
    spec_.set_id(1);
    spec_.set_name("model");
    spec_.set_partition_elements(4);
    spec_.clear_tensor();
    spec_.add_tensor()->add_shape(4);
    spec_.mutable_optimizer()->mutable_sgd();
    spec_.mutable_optimizer()->set_lr(1);
    spec_.mutable_optimizer()->set_clip_norm(clip_norm);
    spec_.mutable_optimizer()->mutable_schedule()->mutable_constant();
    if (clip_norm > 0) clip_ = *Optimizer::Create(spec_.optimizer());
    HostedPartition::Setup setup;
    setup.table = 1;
    pb::Consistency::Mode parsed;
    ASSERT_TRUE(pb::Consistency::Mode_Parse(mode, &parsed));
    setup.consistency.set_mode(parsed);
    setup.worker_incarnations.assign(workers, 1);
    setup.clip = clip_.get();
    setup.evicts = evicts_;
    setup.counters = &counters_;
    setup.pool = &pool_;
    partition_ = std::make_unique<HostedPartition>(
        *TablePartition::Create(spec_, 0, &pool_), setup,
        [this](uint32_t, NormGroup group, double share) { norms_.emplace_back(group, share); });
  }

  static constexpr uint64_t kNoTick = ~uint64_t{0};

  absl::Status Push(uint32_t worker, uint64_t tick, std::vector<float> gradient, double weight,
                    uint64_t sequence) {
    pb::FrameHeader header;
    header.set_rank(worker);
    header.set_incarnation(1);
    if (tick != kNoTick) header.set_tick(tick);
    header.set_weight(weight);
    pb::Part part;
    part.set_sequence(sequence);
    part.set_acked_below(1);
    part.set_count(gradient.size());
    ReplayGuard::Verdict verdict;
    absl::Status status = partition_->CheckPush(header, part, &verdict);
    if (!status.ok()) return status;
    Buffer buffer = Buffer::Copy(
        {reinterpret_cast<const char*>(gradient.data()), gradient.size() * sizeof(float)});
    return partition_->TakePush(header, part, Buffer(), std::move(buffer)).status();
  }

  std::vector<float> Weights() {
    pb::Part part;
    Buffer buffer = partition_->Read(0, 0, pb::Part(), Buffer(), &part);
    std::vector<float> weights(part.count());
    std::memcpy(weights.data(), buffer.data(), buffer.size());
    return weights;
  }

  pb::TableSpec spec_;
  std::unique_ptr<Optimizer> clip_;
  bool evicts_ = false;
  BufferPool pool_;
  PushCounters counters_;
  std::vector<std::pair<NormGroup, double>> norms_;
  std::unique_ptr<HostedPartition> partition_;
};

TEST_F(HostedPartitionTest, BspAppliesTheMeanOverAllSamplesOfAStep) {
  Make("BSP", 2);
  ASSERT_TRUE(Push(1, 0, {3, 3, 3, 3}, 3, 1).ok());
  EXPECT_THAT(Weights(), ElementsAre(0, 0, 0, 0));
  EXPECT_TRUE(partition_->MayRead(0));
  EXPECT_FALSE(partition_->MayRead(1));
  EXPECT_THAT(partition_->WaitsFor(1), HasSubstr("worker 0"));
  ASSERT_TRUE(Push(0, 0, {1, 5, 1, 5}, 1, 1).ok());
  EXPECT_THAT(Weights(), ElementsAre(-1, -2, -1, -2));
  EXPECT_TRUE(partition_->MayRead(1));
  EXPECT_EQ(counters_.applied, 2u);
}

TEST_F(HostedPartitionTest, AReplayIsAcknowledgedAndNotApplied) {
  Make("ASP", 1);
  ASSERT_TRUE(Push(0, 0, {1, 1, 1, 1}, 1, 1).ok());
  ASSERT_TRUE(Push(0, 0, {1, 1, 1, 1}, 1, 1).ok());
  EXPECT_THAT(Weights(), ElementsAre(-1, -1, -1, -1));
  EXPECT_EQ(counters_.accepted, 1u);
  EXPECT_EQ(counters_.duplicate, 1u);
}

TEST_F(HostedPartitionTest, AStepWithoutSamplesLeavesTheWeightsAndMovesTheClock) {
  Make("BSP", 1);
  ASSERT_TRUE(Push(0, 0, {}, 0, 1).ok());
  EXPECT_THAT(Weights(), ElementsAre(0, 0, 0, 0));
  EXPECT_TRUE(partition_->MayRead(1));
  EXPECT_EQ(counters_.applied, 1u);
}

TEST_F(HostedPartitionTest, WrongPushesAreRefusedAndChangeNothing) {
  Make("BSP", 2);
  EXPECT_THAT(Push(0, 0, {1, 1}, 1, 1).message(), HasSubstr("carries 2 elements"));
  EXPECT_THAT(Push(0, 0, {1, 1, 1, 1}, 0, 1).message(), HasSubstr("allowed is 0"));
  EXPECT_THAT(Push(2, 0, {1, 1, 1, 1}, 1, 1).message(), HasSubstr("worker is 2"));
  EXPECT_THAT(Push(0, 5000, {1, 1, 1, 1}, 1, 1).message(),
              HasSubstr("up to 1024 past the oldest open one"));
  EXPECT_EQ(counters_.accepted, 0u);
  EXPECT_TRUE(Push(0, 0, {1, 1, 1, 1}, 1, 1).ok());
  // The same tick under another sequence is no replay but a mistake, found before anything is
  // taken.
  EXPECT_THAT(Push(0, 0, {1, 1, 1, 1}, 1, 2).message(), HasSubstr("a second gradient of tick 0"));
}

TEST_F(HostedPartitionTest, ClippingByNormWaitsForTheTotalOverAllPartitions) {
  Make("BSP", 1, /*clip_norm=*/1);
  ASSERT_TRUE(Push(0, 0, {6, 0, 0, 0}, 2, 1).ok());
  ASSERT_EQ(norms_.size(), 1u);
  EXPECT_DOUBLE_EQ(norms_[0].second, 9);  // (6 / 2)^2: of the mean gradient
  EXPECT_FALSE(partition_->MayRead(1));
  EXPECT_THAT(Weights(), ElementsAre(0, 0, 0, 0));
  partition_->OnNorm(norms_[0].first, 36);  // other partitions have the rest: norm 6
  EXPECT_TRUE(partition_->MayRead(1));
  EXPECT_NEAR(Weights()[0], -0.5, 1e-5);
}

TEST_F(HostedPartitionTest, ALaterTickDoesNotOvertakeOneThatWaitsForItsNorm) {
  Make("ASP", 1, /*clip_norm=*/100);
  ASSERT_TRUE(Push(0, 0, {1, 0, 0, 0}, 1, 1).ok());
  ASSERT_TRUE(Push(0, 1, {0, 1, 0, 0}, 1, 2).ok());
  ASSERT_EQ(norms_.size(), 2u);
  partition_->OnNorm(norms_[1].first, 1);
  EXPECT_THAT(Weights(), ElementsAre(0, 0, 0, 0));
  partition_->OnNorm(norms_[0].first, 1);
  EXPECT_THAT(Weights(), ElementsAre(-1, -1, 0, 0));
}

// Or another partition, which has the totals, forgets those that this one lacks after a move.
TEST_F(HostedPartitionTest, NoNormIsAskedForFurtherAheadThanTotalsAreKept) {
  Make("ASP", 2, /*clip_norm=*/100);
  const auto asked = [&] {
    std::vector<NormGroup> groups;
    for (const auto& [group, share] : norms_) groups.push_back(group);
    return groups;
  };
  for (uint64_t tick = 0; tick < 5; ++tick) {
    ASSERT_TRUE(Push(1, tick, {1, 0, 0, 0}, 1, tick + 1).ok());
  }
  EXPECT_THAT(asked(), ElementsAre(NormGroup{0, 1}, NormGroup{1, 1}));
  ASSERT_TRUE(Push(0, 0, {0, 1, 0, 0}, 1, 1).ok());  // each worker's count apart
  EXPECT_THAT(asked(), ElementsAre(NormGroup{0, 1}, NormGroup{1, 1}, NormGroup{0, 0}));
  partition_->OnNorm({1, 1}, 1);  // behind tick 0: nothing of the worker is in the weights
  EXPECT_EQ(norms_.size(), 3u);
  norms_.clear();
  partition_->Resume();  // by another map
  EXPECT_THAT(asked(), ElementsAre(NormGroup{0, 1}, NormGroup{0, 0}));
  norms_.clear();
  partition_->OnNorm({0, 1}, 1);
  EXPECT_THAT(asked(), ElementsAre(NormGroup{2, 1}, NormGroup{3, 1}));
  partition_->OnNorm({3, 1}, 4);
  partition_->OnNorm({2, 1}, 4);
  EXPECT_THAT(Weights(), ElementsAre(-4, 0, 0, 0));
  EXPECT_THAT(partition_->KnownNorms(), ElementsAre(::testing::Pair(NormGroup{2, 1}, 4),
                                                    ::testing::Pair(NormGroup{3, 1}, 4)));
}

TEST_F(HostedPartitionTest, ALeaverIsWaitedForUntilItsGradientsAreIn) {
  Make("SSP", 2, /*clip_norm=*/100);  // staleness 0
  ASSERT_TRUE(Push(0, 0, {1, 0, 0, 0}, 1, 1).ok());
  ASSERT_TRUE(Push(1, 0, {1, 0, 0, 0}, 1, 1).ok());
  partition_->OnNorm(norms_[1].first, 1);
  partition_->OnLeave(0, 1);
  EXPECT_FALSE(
      partition_->MayRead(1));  // worker 0's tick is acknowledged, but its norm is not known
  partition_->OnNorm(norms_[0].first, 1);
  EXPECT_TRUE(partition_->MayRead(1));
  EXPECT_THAT(Weights(), ElementsAre(-2, 0, 0, 0));
}

TEST_F(HostedPartitionTest, TheLastReadWaitsUntilAllHaveLeft) {
  Make("ASP", 2);
  EXPECT_FALSE(partition_->MayRead(HostedPartition::kAfterAllLeft));
  partition_->OnLeave(0, 0);
  EXPECT_THAT(partition_->WaitsFor(HostedPartition::kAfterAllLeft), HasSubstr("worker 1"));
  partition_->OnLeave(1, 0);
  partition_->OnLeave(1, 0);
  EXPECT_TRUE(partition_->MayRead(HostedPartition::kAfterAllLeft));
}

TEST_F(HostedPartitionTest, AReadStaysAsItIsWhenAnUpdateFollows) {
  Make("BSP", 1);
  pb::Part part;
  Buffer before = partition_->Read(0, 0, pb::Part(), Buffer(), &part);
  ASSERT_TRUE(Push(0, 0, {1, 1, 1, 1}, 1, 1).ok());
  EXPECT_EQ(before.floats()[0], 0);
  EXPECT_EQ(Weights()[0], -1);
}

TEST_F(HostedPartitionTest, AnUpdateOfNoStepIsAppliedAtOnceAndMovesNoClock) {
  Make("ASP", 2);
  ASSERT_TRUE(Push(0, kNoTick, {2, 2, 2, 2}, 2, 1).ok());
  EXPECT_THAT(Weights(), ElementsAre(-1, -1, -1, -1));
  ASSERT_TRUE(Push(0, kNoTick, {2, 2, 2, 2}, 2, 1).ok());  // came again
  EXPECT_THAT(Weights(), ElementsAre(-1, -1, -1, -1));
  ASSERT_TRUE(Push(1, kNoTick, {0, 0, 0, 4}, 1, 1).ok());
  EXPECT_THAT(Weights(), ElementsAre(-1, -1, -1, -5));
  EXPECT_EQ(counters_.accepted, 2u);
  EXPECT_EQ(counters_.applied, 2u);
  EXPECT_EQ(counters_.duplicate, 1u);
  pb::Part part;
  partition_->Read(0, 0, pb::Part(), Buffer(), &part);
  EXPECT_EQ(part.version(), 2u);
  EXPECT_EQ(part.min_clock(), 0u);
  // Steps go on as if nothing had been.
  ASSERT_TRUE(Push(0, 0, {1, 0, 0, 0}, 1, 2).ok());
  ASSERT_TRUE(Push(1, 0, {1, 0, 0, 0}, 1, 2).ok());
  partition_->Read(0, 0, pb::Part(), Buffer(), &part);
  EXPECT_EQ(part.min_clock(), 1u);
}

TEST_F(HostedPartitionTest, AnUpdateOfNoStepIsRefusedWhereStepsMatter) {
  for (const char* mode : {"BSP", "SSP"}) {
    Make(mode, 1);
    EXPECT_THAT(Push(0, kNoTick, {1, 1, 1, 1}, 1, 1).message(),
                AllOf(HasSubstr("has no tick"), HasSubstr(mode)));
  }
  Make("ASP", 1, /*clip_norm=*/1);
  EXPECT_THAT(Push(0, kNoTick, {1, 1, 1, 1}, 1, 1).message(), HasSubstr("clip_norm"));
  clip_ = nullptr;
  evicts_ = true;
  Make("ASP", 1);
  EXPECT_THAT(Push(0, kNoTick, {1, 1, 1, 1}, 1, 1).message(), HasSubstr("without eviction"));
  evicts_ = false;
  Make("ASP", 1);
  partition_->OnLeave(0, 0);
  EXPECT_THAT(Push(0, kNoTick, {1, 1, 1, 1}, 1, 1).message(), HasSubstr("which has left"));
  EXPECT_EQ(counters_.accepted, 0u);
}

}  // namespace
}  // namespace parley
