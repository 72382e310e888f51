#include "tools/parley/explain.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
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

double Sum(const Traffic& traffic, double LinkTraffic::*member) {
  double sum = 0;
  for (const LinkTraffic& link : traffic.links) sum += link.*member;
  return sum;
}

// Partitions of 1024 and 324 floats on two servers.
TEST(Explain, TrafficWithoutCodecs) {
  pb::Experiment experiment;
  const Traffic traffic = MustExplain({}, &experiment).traffic;
  ASSERT_EQ(traffic.links.size(), 2);
  EXPECT_FALSE(traffic.bound);
  EXPECT_EQ(traffic.links[0].pushed, 4096);
  EXPECT_EQ(traffic.links[0].pulled, 4096);
  EXPECT_EQ(traffic.links[1].pushed, 324 * 4);
  EXPECT_EQ(Sum(traffic, &LinkTraffic::requests), 2);
  // A header is 16 bytes of envelope and some dozens of Protobuf.
  for (const LinkTraffic& link : traffic.links) {
    EXPECT_GT(link.to_server, link.pushed + 60);
    EXPECT_LT(link.to_server, link.pushed + 130);
    EXPECT_GT(link.to_worker, link.pulled + 50);
    EXPECT_LT(link.to_worker, link.pulled + 110);
  }
}

TEST(Explain, TrafficOfCodecs) {
  const auto traffic = [](const std::string& push, const std::string& pull,
                          const std::vector<std::string>& more = {}) {
    pb::Experiment experiment;
    std::vector<std::string> set = {"compression.push=" + push, "compression.pull=" + pull};
    set.insert(set.end(), more.begin(), more.end());
    return MustExplain(set, &experiment).traffic;
  };
  const Traffic halves = traffic("fp16", "bf16");
  EXPECT_EQ(Sum(halves, &LinkTraffic::pushed), 2 * 1348);
  EXPECT_EQ(Sum(halves, &LinkTraffic::pulled), 2 * 1348);
  const Traffic bits = traffic("one_bit", "int8");
  EXPECT_EQ(Sum(bits, &LinkTraffic::pushed), 8 + 128 + 8 + 41);
  EXPECT_EQ(Sum(bits, &LinkTraffic::pulled), 4 + 1024 + 4 + 324);
  // 21 of 1024 and 7 of 324.
  EXPECT_EQ(Sum(traffic("top_k", "none"), &LinkTraffic::pushed), 2 + 21 * 4 + 2 + 7 * 4);
  const Traffic bound = traffic("fp16", "none", {"compression.zstd_level=1"});
  EXPECT_TRUE(bound.bound);
  EXPECT_EQ(Sum(bound, &LinkTraffic::pushed), 2 * 1348 + 2);
}

TEST(Explain, TrafficInRequestsOfTheirOwn) {
  pb::Experiment experiment;
  const Traffic fused = MustExplain({}, &experiment).traffic;
  const Traffic apart = MustExplain({"cluster.push_pull=false"}, &experiment).traffic;
  EXPECT_EQ(Sum(apart, &LinkTraffic::requests), 4);
  EXPECT_EQ(Sum(apart, &LinkTraffic::pushed), Sum(fused, &LinkTraffic::pushed));
  EXPECT_GT(Sum(apart, &LinkTraffic::to_server), Sum(fused, &LinkTraffic::to_server) + 50);
}

TEST(Explain, TrafficOfAnEmbedding) {
  const auto loaded = LoadExperimentText(
      "name: \"clicks\" data { synthetic_clicks { fields: 4 keys_per_field: 50 } }\n"
      "model { layer { embedding { dim: 8 partitions: 4 } } layer { linear { out: 2 } }\n"
      "        layer { log_softmax {} } }\n"
      "optimizer { sgd {} } training { global_batch: 64 } cluster { workers: 2 }\n",
      "clicks");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const auto explained = Explain(*loaded);
  ASSERT_TRUE(explained.ok()) << explained.status();
  const Traffic& traffic = explained->traffic;
  // 32 samples of 4 keys, some of them the same.
  EXPECT_GT(traffic.keys, 20);
  EXPECT_LT(traffic.keys, 128);
  const double dense = 4.0 * explained->parameters;
  EXPECT_NEAR(Sum(traffic, &LinkTraffic::pulled), dense + traffic.keys * 8 * 4, 1e-6);
  EXPECT_NEAR(Sum(traffic, &LinkTraffic::pushed), dense + traffic.keys * (8 * 4 + 8), 1e-6);
  EXPECT_THAT(ToText(*loaded, *explained), HasSubstr("samples of 4 keys, 2 classes"));
}

Traffic TrafficOfClicks(const std::string& embedding, const std::string& cluster,
                        uint32_t global_batch) {
  const auto loaded = LoadExperimentText(
      absl::StrCat(
          "name: \"clicks\" data { synthetic_clicks { fields: 4 keys_per_field: 5000 } }\n",
          "model { layer { embedding { dim: 8 ", embedding, " } }\n",
          "        layer { linear { out: 2 } } layer { log_softmax {} } }\n",
          "optimizer { sgd {} } training { global_batch: ", global_batch, " } cluster { ", cluster,
          " }\n"),
      "clicks");
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  const auto explained = Explain(*loaded);
  EXPECT_TRUE(explained.ok()) << explained.status();
  return explained->traffic;
}

// Lists of fewer than 8 keys have no digest: they travel with the pull and again with the push.
TEST(Explain, ShortListsOfKeysTravelTwice) {
  // About 16 keys a step in 1024 partitions, then in one.
  const std::string cluster = "workers: 1 servers: 1 max_request_kib: 16384";
  const Traffic short_lists = TrafficOfClicks("partitions: 1024", cluster, 4);
  const Traffic one_list = TrafficOfClicks("partitions: 1", cluster, 4);
  ASSERT_EQ(short_lists.keys, one_list.keys);
  EXPECT_NEAR(Sum(short_lists, &LinkTraffic::pushed) - Sum(one_list, &LinkTraffic::pushed),
              short_lists.keys * 8, 1e-6);
}

// What does not fit one message is cut. A list that was cut in its pull is not known in its push.
TEST(Explain, MessagesAreCutAsTheClientCutsThem) {
  const std::string two = "workers: 1 servers: 1 max_request_kib: ";
  const Traffic whole = TrafficOfClicks("partitions: 1", two + "16384", 1024);
  const Traffic cut = TrafficOfClicks("partitions: 1", two + "16", 1024);
  ASSERT_GT(whole.keys, 1000);
  // A pull, a push, and a fused request for the dense table.
  EXPECT_EQ(Sum(whole, &LinkTraffic::requests), 3);
  // 16 KiB are 409 keys with their rows; a partition's push is never cut.
  EXPECT_GT(Sum(cut, &LinkTraffic::requests), 2 + whole.keys / 409 - 1e-6);
  EXPECT_LT(Sum(cut, &LinkTraffic::requests), 2 + whole.keys / 409 + 1 + 1e-6);
  EXPECT_NEAR(Sum(cut, &LinkTraffic::pushed) - Sum(whole, &LinkTraffic::pushed), whole.keys * 8,
              1e-6);
  // In several partitions pushes are cut, too.
  const Traffic many = TrafficOfClicks("partitions: 64", two + "16", 1024);
  EXPECT_GT(Sum(many, &LinkTraffic::requests), 1 + 2 * (many.keys / 409 - 1));
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
  EXPECT_THAT(text, HasSubstr("by each worker\n    server 0"));
  EXPECT_THAT(ToText(experiment, MustExplain({"compression.push=top_k"}, &experiment)),
              HasSubstr("push top_k, pull none"));
}

TEST(Explain, SaysWhatDoesNotFit) {
  pb::Experiment experiment = *LoadExperiment("experiments/tiny_synthetic.textproto");
  experiment.mutable_model()->mutable_layer(3)->mutable_linear()->set_out(3);
  EXPECT_THAT(std::string(Explain(experiment).status().message()), HasSubstr("model: "));
}

}  // namespace
}  // namespace parley
