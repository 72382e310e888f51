// What validation says of codecs, embeddings and data of keys.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "ps/config/copied_partitions.h"
#include "ps/config/experiment.h"

namespace parley {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kDense[] = R"(name: "dense"
data { synthetic { width: 8 } }
model { layer { linear { out: 4 } } layer { log_softmax {} } }
optimizer { sgd {} lr: 0.1 }
)";

constexpr char kSparse[] = R"(name: "sparse"
data { synthetic_clicks {} }
model { layer { embedding { dim: 8 } } layer { linear { out: 2 } } layer { log_softmax {} } }
optimizer { sgd {} lr: 0.1 }
)";

std::vector<std::string> Errors(const std::string& text,
                                const std::vector<std::string>& overrides = {}) {
  const absl::StatusOr<pb::Experiment> loaded = LoadExperimentText(text, "f", overrides);
  if (loaded.ok()) return {};
  return absl::StrSplit(std::string(loaded.status().message()), '\n');
}

std::string Replaced(const std::string& text, const std::string& from, const std::string& to) {
  const std::string replaced = absl::StrReplaceAll(text, {{from, to}});
  EXPECT_NE(replaced, text) << from;
  return replaced;
}

TEST(Compression, EveryCodecIsGoodForDensePushesAndPullsUnderBsp) {
  for (const char* name : {"none", "fp16", "bf16", "int8", "one_bit", "top_k"}) {
    EXPECT_THAT(Errors(kDense, {absl::StrCat("compression.push=", name),
                                absl::StrCat("compression.pull=", name)}),
                ElementsAre())
        << name;
  }
}

TEST(Compression, UnknownNamesComeWithTheNearest) {
  EXPECT_THAT(Errors(kDense, {"compression.push=topk"}),
              ElementsAre("--set compression.push=topk: field 'compression.push': 'topk' is no "
                          "codec, did you mean 'top_k'?; allowed: none, bf16, fp16, int8, "
                          "one_bit, top_k"));
  EXPECT_THAT(Errors(std::string(kDense) + "compression { pull: \"gzip\" }"),
              ElementsAre(HasSubstr("field 'compression.pull': 'gzip' is no codec; allowed: ")));
}

TEST(Compression, SettingsHaveRanges) {
  EXPECT_THAT(Errors(kDense, {"compression.top_k=0"}),
              ElementsAre(HasSubstr("'compression.top_k': 0 is out of range; allowed: (0, 1]")));
  EXPECT_THAT(Errors(kDense, {"compression.top_k=1.01"}), ElementsAre(HasSubstr("out of range")));
  EXPECT_THAT(Errors(kDense, {"compression.block=15"}), ElementsAre(HasSubstr("16..65536")));
  EXPECT_THAT(Errors(kDense, {"compression.zstd_level=20"}), ElementsAre(HasSubstr("0..19")));
  EXPECT_THAT(Errors(kDense, {"compression.zstd_level=-1"}), ElementsAre(HasSubstr("0..19")));
  EXPECT_THAT(Errors(kDense, {"compression.zstd_level=19"}), ElementsAre());
}

TEST(Compression, PullsOfChangesNeedBsp) {
  for (const char* mode : {"SSP", "ASP"}) {
    const std::string set = absl::StrCat("consistency.mode=", mode);
    EXPECT_THAT(Errors(kDense, {set, "compression.pull=bf16", "compression.push=one_bit"}),
                ElementsAre());
    for (const char* name : {"int8", "one_bit", "top_k"}) {
      EXPECT_THAT(Errors(kDense, {set, absl::StrCat("compression.pull=", name)}),
                  ElementsAre(testing::AllOf(HasSubstr("field 'compression.pull'"),
                                             HasSubstr(absl::StrCat("with mode ", mode)),
                                             HasSubstr("allowed: none, bf16, fp16, or mode BSP"))))
          << name;
    }
  }
}

TEST(Compression, FeedbackOfPushesAndBackupWorkersExcludeEachOther) {
  const std::string backup = "consistency.backup_workers=1";
  EXPECT_THAT(Errors(kDense, {backup, "compression.push=fp16"}), ElementsAre());
  EXPECT_THAT(Errors(kDense, {backup, "compression.push=top_k"}),
              ElementsAre(testing::AllOf(HasSubstr("field 'compression.push'"),
                                         HasSubstr("with consistency.backup_workers what a push"),
                                         HasSubstr("none, bf16, fp16, or backup_workers 0"))));
  EXPECT_THAT(
      Errors(Replaced(kSparse, "dim: 8", "dim: 8 compression { push: \"int8\" }"), {backup}),
      ElementsAre(HasSubstr("embedding.compression.push")));
}

// A worker that was passed over holds an old version and is sent the weights whole.
TEST(Compression, ChangesMayBePulledWithBackupWorkers) {
  for (const char* name : {"int8", "one_bit", "top_k"}) {
    EXPECT_THAT(
        Errors(kDense, {"consistency.backup_workers=1", absl::StrCat("compression.pull=", name)}),
        ElementsAre())
        << name;
  }
}

// Without copies. With them that version may be lost, and made again of other pushes.
TEST(Compression, ChangesMayNotBePulledWithBackupWorkersAndCopies) {
  const std::string backup = "consistency.backup_workers=1", copies = "cluster.replicas=1";
  const std::string servers = "cluster.servers=2", pull = "compression.pull=int8";
  EXPECT_THAT(Errors(kDense, {backup, copies, servers, pull}),
              ElementsAre(testing::AllOf(HasSubstr("field 'compression.pull'"),
                                         HasSubstr("a failover makes another"),
                                         HasSubstr("or backup_workers 0, or replicas 0"))));
  EXPECT_THAT(Errors(kDense, {copies, servers, pull}), ElementsAre());
  EXPECT_THAT(Errors(kDense, {backup, copies, servers, "compression.pull=fp16"}), ElementsAre());
}

TEST(CopiedPartitions, WhyTheyStayIsSaid) {
  pb::Experiment experiment;
  EXPECT_EQ(WhyPartitionsStay(experiment), "");
  experiment.mutable_optimizer()->set_clip_norm(1);
  EXPECT_EQ(WhyPartitionsStay(experiment), "");
  experiment.mutable_consistency()->set_mode(pb::Consistency::SSP);
  EXPECT_EQ(WhyPartitionsStay(experiment), "optimizer.clip_norm with mode SSP");
  experiment.clear_consistency();
  experiment.mutable_compression()->set_pull("top_k");
  EXPECT_EQ(WhyPartitionsStay(experiment), "");
  experiment.mutable_consistency()->set_backup_workers(1);
  EXPECT_EQ(WhyPartitionsStay(experiment),
            "compression.pull 'top_k' with consistency.backup_workers");
  experiment.mutable_compression()->set_pull("fp16");
  EXPECT_EQ(WhyPartitionsStay(experiment), "");
}

TEST(Compression, OfAnEmbedding) {
  const auto errors = [](const std::string& compression) {
    return Errors(Replaced(kSparse, "dim: 8", "dim: 8 compression { " + compression + " }"));
  };
  EXPECT_THAT(errors("push: \"top_k\" pull: \"fp16\" zstd_level: 1"), ElementsAre());
  EXPECT_THAT(errors("pull: \"int8\""),
              ElementsAre(testing::AllOf(
                  HasSubstr("field 'model.layer[0].embedding.compression.pull'"),
                  HasSubstr("of rows, changes cannot be sent; allowed: none, bf16, fp16"))));
  EXPECT_THAT(errors("push: \"fp61\""), ElementsAre(HasSubstr("did you mean 'fp16'?")));
  EXPECT_THAT(errors("top_k: 2"), ElementsAre(HasSubstr("out of range")));
}

TEST(Embedding, IsResolved) {
  const auto loaded =
      LoadExperimentText(Replaced(kSparse, "dim: 8", "optimizer { ftrl {} } compression {}"), "f");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const pb::Embedding& embedding = loaded->model().layer(0).embedding();
  EXPECT_TRUE(embedding.has_dim());
  EXPECT_TRUE(embedding.optimizer().schedule().has_constant());
  EXPECT_TRUE(embedding.compression().has_zstd_level());
  EXPECT_FALSE(embedding.has_eviction());
}

TEST(Embedding, StandsInFrontOfKeysAndOnlyThere) {
  EXPECT_THAT(Errors(kSparse), ElementsAre());
  EXPECT_THAT(Errors(Replaced(kSparse, "synthetic_clicks", "synthetic")),
              ElementsAre(HasSubstr("'model.layer[0]': is an embedding, and the data have no keys; "
                                    "allowed: data { click_log {...} }")));
  EXPECT_THAT(Errors(Replaced(kDense, "synthetic { width: 8 }", "synthetic_clicks {}")),
              ElementsAre(HasSubstr("'model.layer[0]': is no embedding, and the data are keys")));
  EXPECT_THAT(Errors(Replaced(kSparse, "layer { linear", "layer { embedding {} } layer { linear")),
              ElementsAre(HasSubstr("'model.layer[1]': is an embedding behind other layers")));
}

TEST(Embedding, DataOfKeysIsNamed) {
  EXPECT_THAT(Errors(Replaced(kSparse, "synthetic_clicks {}", "click_log {}")),
              ElementsAre(HasSubstr("'data.click_log.train': is missing")));
  EXPECT_THAT(Errors(Replaced(kSparse, "synthetic_clicks {}", "click_log { train: \"a\" }")),
              ElementsAre());
  EXPECT_THAT(Errors(Replaced(kSparse, "synthetic_clicks {}",
                              "synthetic_clicks { fields: 1024 train_samples: 16777216 }")),
              ElementsAre(HasSubstr("keys in samples x fields are too many")));
}

TEST(Embedding, PartitionsAreAPowerOfTwo) {
  const auto errors = [](int partitions) {
    return Errors(Replaced(kSparse, "dim: 8", absl::StrCat("partitions: ", partitions)));
  };
  EXPECT_THAT(errors(1), ElementsAre());
  EXPECT_THAT(errors(65536), ElementsAre());
  EXPECT_THAT(errors(12), ElementsAre(HasSubstr("embedding.partitions': 12 is no power of two")));
  EXPECT_THAT(errors(131072), ElementsAre(HasSubstr("out of range")));
}

TEST(Embedding, RowRulesStayWithTheRows) {
  for (const char* rule : {"ftrl", "row_adagrad"}) {
    EXPECT_THAT(Errors(Replaced(kDense, "sgd {}", absl::StrCat(rule, " {}"))),
                ElementsAre(HasSubstr(absl::StrCat("'optimizer': ", rule, " is for rows"))));
    EXPECT_THAT(Errors(Replaced(kSparse, "dim: 8", absl::StrCat("optimizer { ", rule, " {} }"))),
                ElementsAre());
  }
  EXPECT_THAT(Errors(Replaced(kSparse, "dim: 8", "optimizer { lr: 1 }")),
              ElementsAre(HasSubstr("embedding.optimizer': has no rule")));
  EXPECT_THAT(Errors(Replaced(kSparse, "dim: 8", "optimizer { sgd { nesterov: true } }")),
              ElementsAre(HasSubstr("embedding.optimizer.sgd.nesterov")));
}

TEST(Embedding, HasNoNormOverAllServers) {
  EXPECT_THAT(Errors(kSparse, {"optimizer.clip_norm=5"}),
              ElementsAre(HasSubstr("'optimizer.clip_norm': 5 with an embedding")));
  EXPECT_THAT(Errors(Replaced(kSparse, "dim: 8", "optimizer { sgd {} clip_norm: 2 }")),
              ElementsAre(HasSubstr("embedding.optimizer.clip_norm': 2 with an embedding")));
  EXPECT_THAT(Errors(kDense, {"optimizer.clip_norm=5"}), ElementsAre());
}

}  // namespace
}  // namespace parley
