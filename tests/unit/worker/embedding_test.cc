#include "worker/embedding.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "google/protobuf/text_format.h"
#include "models/cpu/cpu_kernels.h"
#include "worker/data/dataset.h"

namespace parley {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

pb::Embedding Config(uint32_t dim, pb::Embedding::Pooling pooling) {
  pb::Embedding config;
  config.set_dim(dim);
  config.set_pooling(pooling);
  return config;
}

constexpr uint64_t kKeys[] = {7, 3, 7, kNoKey, 9, 3};  // [2, 3]

TEST(Embedding, EachKeyOnceInOrderOfOccurrence) {
  const Embedding embedding = *Embedding::Create(Config(2, pb::Embedding::CONCAT), 3);
  KeyBatch batch;
  batch.keys = {99};  // of the batch before
  embedding.Index(kKeys, &batch);
  EXPECT_EQ(batch.rows, 2u);
  EXPECT_THAT(batch.keys, ElementsAre(7, 3, 9));
  EXPECT_THAT(batch.index, ElementsAre(0, 1, 0, KeyBatch::kNone, 2, 1));
  EXPECT_THAT(batch.starts, ElementsAre(0, 2, 4, 5));
  EXPECT_THAT(batch.places, ElementsAre(0, 2, 1, 5, 4));
}

TEST(Embedding, ConcatPutsRowsSideBySide) {
  const Embedding embedding = *Embedding::Create(Config(2, pb::Embedding::CONCAT), 3);
  EXPECT_EQ(embedding.output(), (SampleShape{6, 1, 1}));
  KeyBatch batch;
  embedding.Index(kKeys, &batch);
  const std::vector<float> values = {70, 71, 30, 31, 90, 91};
  std::vector<float> x(12, -1);
  GatherRows(embedding.LookupOf(batch), values.data(), x.data());
  EXPECT_THAT(x, ElementsAre(70, 71, 30, 31, 70, 71, 0, 0, 90, 91, 30, 31));

  const std::vector<float> dx = {1, 2, 4, 8, 16, 32, 1000, 1000, 64, 128, 256, 512};
  std::vector<float> gradients(6, -1);
  ScatterRows(embedding.LookupOf(batch), dx.data(), gradients.data());
  EXPECT_THAT(gradients, ElementsAre(17, 34, 260, 520, 64, 128));
}

TEST(Embedding, SumAddsRowsUp) {
  const Embedding embedding = *Embedding::Create(Config(2, pb::Embedding::SUM), 3);
  EXPECT_EQ(embedding.output(), (SampleShape{2, 1, 1}));
  KeyBatch batch;
  embedding.Index(kKeys, &batch);
  const std::vector<float> values = {70, 71, 30, 31, 90, 91};
  std::vector<float> x(4, -1);
  GatherRows(embedding.LookupOf(batch), values.data(), x.data());
  EXPECT_THAT(x, ElementsAre(170, 173, 120, 122));

  const std::vector<float> dx = {1, 2, 10, 20};
  std::vector<float> gradients(6, -1);
  ScatterRows(embedding.LookupOf(batch), dx.data(), gradients.data());
  EXPECT_THAT(gradients, ElementsAre(2, 4, 11, 22, 10, 20));
}

TEST(Embedding, FactorsMultiplyRowsAndTheirGradients) {
  const std::vector<float> values = {70, 71, 30, 31, 90, 91};  // rows of 7, 3, 9
  KeyBatch batch;
  const Embedding concat = *Embedding::Create(Config(2, pb::Embedding::CONCAT), 3);
  concat.Index(kKeys, &batch);
  batch.factors = {2, 1, -1, 1, 0, 0.5f};
  std::vector<float> x(12, -1), gradients(6, -1);
  GatherRows(concat.LookupOf(batch), values.data(), x.data());
  EXPECT_THAT(x, ElementsAre(140, 142, 30, 31, -70, -71, 0, 0, 0, 0, 15, 15.5f));
  const std::vector<float> dx = {1, 2, 4, 8, 16, 32, 1000, 1000, 64, 128, 256, 512};
  ScatterRows(concat.LookupOf(batch), dx.data(), gradients.data());
  EXPECT_THAT(gradients, ElementsAre(2 - 16, 4 - 32, 4 + 128, 8 + 256, 0, 0));

  const Embedding sum = *Embedding::Create(Config(2, pb::Embedding::SUM), 3);
  std::vector<float> pooled(4, -1);
  GatherRows(sum.LookupOf(batch), values.data(), pooled.data());
  EXPECT_THAT(pooled, ElementsAre(100, 102, 15, 15.5f));
  ScatterRows(sum.LookupOf(batch), std::vector<float>{1, 2, 10, 20}.data(), gradients.data());
  EXPECT_THAT(gradients, ElementsAre(1, 2, 6, 12, 0, 0));
  sum.Index(kKeys, &batch);
  EXPECT_TRUE(batch.factors.empty());  // those of the batch before are gone
}

// GatherRows and ScatterRows are linear and each other's transpose: <Gather(v), dx> =
// <v, Scatter(dx)>.
TEST(Embedding, ScatterIsTheTransposeOfGather) {
  for (const auto pooling : {pb::Embedding::CONCAT, pb::Embedding::SUM}) {
    const Embedding embedding = *Embedding::Create(Config(3, pooling), 4);
    std::vector<uint64_t> keys;
    for (uint64_t i = 0; i < 4 * 20; ++i) keys.push_back(i % 7 == 3 ? kNoKey : i * i % 23);
    KeyBatch batch;
    embedding.Index(keys, &batch);
    for (size_t i = 0; i < keys.size(); ++i) batch.factors.push_back(static_cast<float>(i % 5) - 2);
    std::vector<float> values(batch.keys.size() * 3), gradients(values.size());
    std::vector<float> x(20 * embedding.output().size()), dx(x.size());
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 11) - 5;
    for (size_t i = 0; i < dx.size(); ++i) dx[i] = static_cast<float>(i % 13) - 6;
    GatherRows(embedding.LookupOf(batch), values.data(), x.data());
    ScatterRows(embedding.LookupOf(batch), dx.data(), gradients.data());
    double forward = 0, backward = 0;  // whole numbers: exact
    for (size_t i = 0; i < x.size(); ++i) forward += x[i] * dx[i];
    for (size_t i = 0; i < values.size(); ++i) backward += values[i] * gradients[i];
    EXPECT_EQ(forward, backward);
    EXPECT_NE(forward, 0);
  }
}

TEST(Embedding, RefusesWhatCannotBe) {
  EXPECT_THAT(std::string(Embedding::Create(Config(0, pb::Embedding::SUM), 3).status().message()),
              HasSubstr("embedding.dim is 0, allowed is 1..4096"));
  EXPECT_THAT(std::string(Embedding::Create(Config(4, pb::Embedding::SUM), 0).status().message()),
              HasSubstr("needs data of keys"));
}

TEST(EmbeddingTable, OptimizerIsTheExperimentsUnlessThereIsAnother) {
  pb::Experiment experiment;
  ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(
      R"pb(seed: 5
           optimizer {
             adam {}
             lr: 0.5
           }
           model {
             layer { embedding { dim: 3 bound: 0.25 row_type: BF16 partitions: 8 } }
             layer { log_softmax {} }
           })pb",
      &experiment));
  pb::TableSpec table = EmbeddingTable(experiment);
  EXPECT_EQ(table.id(), kEmbeddingTable);
  EXPECT_EQ(table.seed(), 5u);
  EXPECT_TRUE(table.optimizer().has_adam());
  EXPECT_EQ(table.sparse().dim(), 3u);
  EXPECT_EQ(table.sparse().partitions(), 8u);
  EXPECT_EQ(table.sparse().bound(), 0.25f);
  EXPECT_EQ(table.sparse().row_type(), pb::BF16);
  EXPECT_FALSE(table.sparse().has_eviction());
  EXPECT_FALSE(table.has_compression());
  EXPECT_EQ(WithoutEmbedding(experiment.model()).layer_size(), 1);

  pb::Embedding* embedding = experiment.mutable_model()->mutable_layer(0)->mutable_embedding();
  embedding->mutable_optimizer()->mutable_ftrl();
  embedding->mutable_eviction()->set_max_age(9);
  embedding->mutable_compression()->set_push("bf16");
  table = EmbeddingTable(experiment);
  EXPECT_TRUE(table.optimizer().has_ftrl());
  EXPECT_EQ(table.sparse().eviction().max_age(), 9u);
  EXPECT_EQ(table.compression().push(), "bf16");
}

}  // namespace
}  // namespace parley
