#include "worker/data/idx.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/worker/idx_files.h"
#include "worker/data/dataset.h"

namespace parley {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::string MessageOf(const std::string& path, uint32_t dimensions, uint64_t limit = 0) {
  return std::string(ReadIdx(path, dimensions, limit).status().message());
}

class IdxTest : public ::testing::Test {
 protected:
  IdxFolder files_;
};

TEST_F(IdxTest, ReadsPlainAndGzipAlikeWhateverTheName) {
  const std::string bytes = IdxBytes({3, 2, 2}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 255});
  for (const std::string& path : {files_.Write("a.gz", bytes), files_.WriteGz("b", bytes)}) {
    absl::StatusOr<IdxArray> array = ReadIdx(path, 3);
    ASSERT_TRUE(array.ok()) << array.status();
    EXPECT_THAT(array->shape, ::testing::ElementsAre(3, 2, 2));
    EXPECT_EQ(array->kept, 3u);
    EXPECT_THAT(array->bytes, ::testing::ElementsAre(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 255));
  }
}

TEST_F(IdxTest, LimitKeepsTheFirstEntries) {
  const std::string path = files_.WriteGz("a", IdxBytes({3, 1, 2}, {1, 2, 3, 4, 5, 6}));
  absl::StatusOr<IdxArray> array = ReadIdx(path, 3, 2);
  ASSERT_TRUE(array.ok()) << array.status();
  EXPECT_EQ(array->shape[0], 3u);
  EXPECT_EQ(array->kept, 2u);
  EXPECT_THAT(array->bytes, ::testing::ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(ReadIdx(path, 3, 100)->kept, 3u);
}

TEST_F(IdxTest, EveryTruncationIsRefusedWithTheFileAndWhereItEnds) {
  const std::string bytes = IdxBytes({4, 2, 2}, std::vector<uint8_t>(16, 7));
  for (size_t size = 0; size < bytes.size(); ++size) {
    const std::string path = files_.Write("cut", bytes.substr(0, size));
    EXPECT_THAT(MessageOf(path, 3), AllOf(HasSubstr(path), HasSubstr("is truncated"),
                                          HasSubstr(std::to_string(size)), Not(HasSubstr("\n"))));
  }
  std::vector<uint8_t> noise(5000);
  for (size_t i = 0; i < noise.size(); ++i) noise[i] = static_cast<uint8_t>(i * i * 31 >> 3);
  const std::string gz = GzipBytes(IdxBytes({5000}, noise));
  for (size_t size = 12; size < gz.size(); size += 61) {
    const std::string path = files_.Write("cut.gz", gz.substr(0, size));
    EXPECT_THAT(MessageOf(path, 1), AllOf(HasSubstr(path), HasSubstr("is truncated"))) << size;
  }
}

TEST_F(IdxTest, CorruptGzipIsRefused) {
  std::string gz = GzipBytes(IdxBytes({1000}, std::vector<uint8_t>(1000, 3)));
  gz[gz.size() - 6] ^= 1;  // inside the checksum of the content
  const std::string path = files_.Write("bad.gz", gz);
  EXPECT_THAT(MessageOf(path, 1),
              AllOf(HasSubstr(path), HasSubstr("is corrupt"), HasSubstr("incorrect data check")));
}

TEST_F(IdxTest, WrongMagicTrailingBytesAndImpossibleSizesAreNamed) {
  EXPECT_THAT(MessageOf(files_.Write("labels", IdxBytes({2}, {0, 1})), 3),
              AllOf(HasSubstr("magic number is 0x00000801"), HasSubstr("expected is 0x00000803")));
  EXPECT_THAT(MessageOf(files_.Write("text", "hello, world"), 1), HasSubstr("0x68656c6c"));
  EXPECT_THAT(MessageOf(files_.Write("long", IdxBytes({2}, {0, 1, 2})), 1),
              HasSubstr("has bytes after the 10"));
  EXPECT_THAT(MessageOf(files_.Write("none", IdxBytes({2, 0, 2}, {})), 3),
              HasSubstr("extent 0 of dimension 1"));
  EXPECT_THAT(MessageOf(files_.Write("huge", IdxBytes({1, 0xffffffff, 0xffffffff}, {})), 3),
              HasSubstr("larger than"));
  // Claims 64 GiB, holds nothing: must neither be believed nor allocated.
  EXPECT_THAT(MessageOf(files_.Write("liar", IdxBytes({1 << 20, 256, 256}, {})), 3),
              HasSubstr("is truncated"));
  EXPECT_THAT(MessageOf(files_.directory() + "/absent", 1),
              AllOf(HasSubstr("/absent"), HasSubstr("No such file")));
}

class IdxDatasetTest : public IdxTest {
 protected:
  IdxDatasetTest() {
    pb::IdxFiles* idx = data_.mutable_idx();
    idx->set_directory(files_.directory());
    idx->set_train_images("train-x");
    idx->set_train_labels("train-y");
    idx->set_test_images("test-x");
    idx->set_test_labels("test-y");
    data_.set_mean(0.5f);
    data_.set_std(0.25f);
    files_.WriteGz("train-x", IdxBytes({3, 1, 2}, {0, 255, 51, 102, 7, 8}));
    files_.Write("train-y", IdxBytes({3}, {2, 0, 4}));
    files_.Write("test-x", IdxBytes({1, 1, 2}, {1, 2}));
    files_.Write("test-y", IdxBytes({1}, {3}));
  }
  pb::Data data_;
};

TEST_F(IdxDatasetTest, NormalisesAndReadsInAnyOrder) {
  absl::StatusOr<DataSplits> splits = LoadDataSplits(data_, 1);
  ASSERT_TRUE(splits.ok()) << splits.status();
  const Dataset& train = *splits->train;
  EXPECT_EQ(train.samples(), 3u);
  EXPECT_EQ(train.classes(), 5u);
  EXPECT_EQ(train.shape().size(), 2u);
  float x[4];
  int32_t labels[2];
  const std::vector<uint64_t> ids = {1, 0};
  train.Read(ids, x, labels);
  EXPECT_THAT(labels, ::testing::ElementsAre(0, 2));
  const float expected[] = {(51 / 255.0f - 0.5f) / 0.25f, (102 / 255.0f - 0.5f) / 0.25f,
                            (0 / 255.0f - 0.5f) / 0.25f, (255 / 255.0f - 0.5f) / 0.25f};
  EXPECT_THAT(x, ::testing::ElementsAreArray(expected));
}

TEST_F(IdxDatasetTest, TheLimitCutsSamplesButNotClasses) {
  data_.set_train_limit(2);
  absl::StatusOr<std::unique_ptr<Dataset>> train = LoadDataset(data_, 1, true);
  ASSERT_TRUE(train.ok()) << train.status();
  EXPECT_EQ((*train)->samples(), 2u);
  EXPECT_EQ((*train)->classes(), 5u);
}

TEST_F(IdxDatasetTest, FilesThatDoNotFitTogetherAreRefused) {
  files_.Write("test-y", IdxBytes({1}, {5}));
  EXPECT_THAT(std::string(LoadDataSplits(data_, 1).status().message()),
              AllOf(HasSubstr("test-y"), HasSubstr("label 5"), HasSubstr("0..4")));
  files_.Write("test-y", IdxBytes({2}, {1, 1}));
  EXPECT_THAT(std::string(LoadDataSplits(data_, 1).status().message()),
              HasSubstr("has 2 labels for the 1 images of"));
  files_.Write("test-y", IdxBytes({1}, {1}));
  files_.Write("test-x", IdxBytes({1, 2, 1}, {1, 2}));
  EXPECT_THAT(std::string(LoadDataSplits(data_, 1).status().message()),
              HasSubstr("test samples are [1, 2, 1], expected is [1, 1, 2]"));
}

TEST(SyntheticTest, IsAFunctionOfSeedAndIndexAndDiffersBetweenSets) {
  pb::Data data;
  data.mutable_synthetic();
  absl::StatusOr<DataSplits> a = LoadDataSplits(data, 5), b = LoadDataSplits(data, 5),
                             c = LoadDataSplits(data, 6);
  ASSERT_TRUE(a.ok() && b.ok() && c.ok());
  std::vector<uint64_t> ids = {100, 3, 100};
  auto read = [&](const Dataset& set) {
    std::vector<float> x(ids.size() * set.shape().size());
    std::vector<int32_t> labels(ids.size());
    set.Read(ids, x.data(), labels.data());
    for (int32_t label : labels) EXPECT_LT(label, static_cast<int32_t>(set.classes()));
    return x;
  };
  const std::vector<float> x = read(*a->train);
  EXPECT_EQ(x, read(*b->train));
  EXPECT_NE(x, read(*c->train));
  EXPECT_NE(x, read(*a->test));
  EXPECT_TRUE(std::equal(x.begin(), x.begin() + 16, x.begin() + 32));
}

// What does not fit into memory is drawn while it is read.
TEST(SyntheticTest, ASampleIsTheSameHoweverManyThereAre) {
  pb::Data few, many;
  few.mutable_synthetic()->set_train_samples(100);
  many.mutable_synthetic()->set_train_samples(uint32_t{1} << 31);
  const std::vector<uint64_t> ids = {3, 99, 0};
  std::vector<float> x(ids.size() * 16), y(x.size());
  std::vector<int32_t> x_labels(ids.size()), y_labels(ids.size());
  (*LoadDataset(few, 5, true))->Read(ids, x.data(), x_labels.data());
  (*LoadDataset(many, 5, true))->Read(ids, y.data(), y_labels.data());
  EXPECT_EQ(x, y);
  EXPECT_EQ(x_labels, y_labels);
}

TEST(SyntheticTest, ImpossibleSizesAreRefused) {
  pb::Data data;
  EXPECT_THAT(std::string(LoadDataset(data, 1, true).status().message()), HasSubstr("no source"));
  data.mutable_synthetic()->set_width(0);
  EXPECT_THAT(std::string(LoadDataset(data, 1, true).status().message()),
              HasSubstr("data.synthetic.width is 0"));
  data.mutable_synthetic()->set_width(0xffffffff);
  EXPECT_FALSE(LoadDataset(data, 1, true).ok());
}

}  // namespace
}  // namespace parley
