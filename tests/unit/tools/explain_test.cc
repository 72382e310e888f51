#include "tools/parley/explain.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ps/config/experiment.h"

namespace parley {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Explanation MustExplain(const std::vector<std::string>& overrides, pb::Experiment* experiment) {
  *experiment = *LoadExperiment("experiments/tiny_synthetic.textproto", overrides);
  absl::StatusOr<Explanation> explained = Explain(*experiment);
  EXPECT_TRUE(explained.ok()) << explained.status();
  return *std::move(explained);
}

TEST(Explain, CountsParametersPartitionsAndBytes) {
  pb::Experiment experiment;
  const Explanation explained = MustExplain({"cluster.shards_per_server=2"}, &experiment);
  EXPECT_EQ(explained.parameters, 16 * 64 + 64 + 64 * 4 + 4);
  EXPECT_EQ(explained.bytes_per_worker_and_step, 4 * 1348);
  EXPECT_EQ(explained.partitions, 2);  // 1024 floats each
  ASSERT_EQ(explained.shards.size(), 4);
  EXPECT_THAT(explained.shards[0].partitions, ElementsAre(0));
  EXPECT_EQ(explained.shards[0].elements, 1024);
  EXPECT_EQ(explained.shards[1].elements, 324);
  EXPECT_TRUE(explained.shards[2].partitions.empty());
  EXPECT_EQ(explained.shards[3].server, 1);
  EXPECT_EQ(explained.slots, 1);  // momentum
  EXPECT_GT(explained.flops_per_sample, 2.0 * 3 * 16 * 64 / 2);
}

TEST(Explain, StepsOfAGlobalBatch) {
  pb::Experiment experiment;
  const Explanation explained =
      MustExplain({"training.global_batch=100", "cluster.workers=3"}, &experiment);
  EXPECT_EQ(explained.ticks_per_epoch, 6);  // 512 = 5 x 100 + 12
  EXPECT_EQ(explained.rows_of_last_step, 12);
  EXPECT_THAT(explained.rows_of_a_step, ElementsAre(34, 33, 33));
  EXPECT_EQ(explained.steps, 18);
}

TEST(Explain, StepsByWorkerAndALimit) {
  pb::Experiment experiment;
  const Explanation explained = MustExplain({"data.sharding=BY_WORKER", "training.global_batch=96",
                                             "cluster.workers=3", "training.max_steps=7"},
                                            &experiment);
  EXPECT_EQ(explained.ticks_per_epoch, 6);  // 171 samples, 32 at a time
  EXPECT_EQ(explained.steps, 7);
}

TEST(Explain, TextNamesWhatMatters) {
  pb::Experiment experiment;
  const Explanation explained = MustExplain({}, &experiment);
  const std::string text = ToText(experiment, explained);
  EXPECT_THAT(text, HasSubstr("tiny_synthetic: 5 processes, BSP"));
  EXPECT_THAT(text, HasSubstr("fc1.weight"));
  EXPECT_THAT(text, HasSubstr("[64, 16]"));
  EXPECT_THAT(text, HasSubstr("5.3 KiB by each worker, 10.5 KiB in all"));
  EXPECT_THAT(text, HasSubstr("16 steps"));
}

TEST(Explain, SaysWhatDoesNotFit) {
  pb::Experiment experiment = *LoadExperiment("experiments/tiny_synthetic.textproto");
  experiment.mutable_model()->mutable_layer(3)->mutable_linear()->set_out(3);
  EXPECT_THAT(std::string(Explain(experiment).status().message()), HasSubstr("model: "));
}

}  // namespace
}  // namespace parley
