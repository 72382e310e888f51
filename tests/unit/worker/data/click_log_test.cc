#include "worker/data/click_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "absl/strings/str_cat.h"
#include "tests/unit/worker/idx_files.h"
#include "worker/data/gz_file.h"

namespace parley {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

class ClickLogTest : public ::testing::Test {
 protected:
  // The error of a training file with this content, with its path cut off; empty if there is none.
  std::string ErrorOf(const std::string& content) {
    pb::Data data = Config(files_.Write("bad", content), 2);
    data.mutable_click_log()->set_test(good_);
    std::string message(LoadClickLog(data).status().message());
    const size_t at = message.find("/bad");
    return at == message.npos ? message : message.substr(at + 1);
  }

  static pb::Data Config(const std::string& train, uint32_t fields) {
    pb::Data data;
    data.mutable_click_log()->set_train(train);
    data.mutable_click_log()->set_fields(fields);
    return data;
  }

  static std::vector<uint64_t> AllKeys(const Dataset& set) {
    std::vector<uint64_t> ids(set.samples()), keys(set.samples() * set.keys_per_row());
    std::iota(ids.begin(), ids.end(), 0);
    set.ReadKeys(ids, keys.data());
    return keys;
  }
  static std::vector<int32_t> AllLabels(const Dataset& set) {
    std::vector<uint64_t> ids(set.samples());
    std::vector<int32_t> labels(set.samples());
    std::iota(ids.begin(), ids.end(), 0);
    set.Read(ids, nullptr, labels.data());
    return labels;
  }

  IdxFolder files_;
  const std::string good_ = files_.Write("good", "1,2\t1\n");
};

TEST_F(ClickLogTest, ReadsPlainAndGzipCutsAndFills) {
  const std::string text =
      "7,8,9,10\t1\n"
      "18446744073709551614:1,0:1.0 0\r\n"
      "5:1e0 1";  // no end of line
  for (const std::string& path : {files_.Write("a.gz", text), files_.WriteGz("b", text)}) {
    pb::Data data = Config(path, 3);
    data.mutable_click_log()->set_test(good_);
    absl::StatusOr<DataSplits> splits = LoadClickLog(data);
    ASSERT_TRUE(splits.ok()) << splits.status();
    EXPECT_EQ(splits->train->samples(), 3u);
    EXPECT_EQ(splits->train->classes(), 2u);
    EXPECT_EQ(splits->train->keys_per_row(), 3u);
    EXPECT_THAT(AllKeys(*splits->train),
                ElementsAre(7, 8, 9, kNoKey - 1, 0, kNoKey, 5, kNoKey, kNoKey));
    EXPECT_THAT(AllLabels(*splits->train), ElementsAre(1, 0, 1));
    EXPECT_THAT(AllKeys(*splits->test), ElementsAre(1, 2, kNoKey));
  }
}

// Values come beside the keys, 1 where a sample says nothing, also before the first that is not 1.
TEST_F(ClickLogTest, ValuesStandBesideTheirKeys) {
  pb::Data data =
      Config(files_.Write("values", "7,8 1\n1:0.693,2,3:9 0\n4:-2.5e-1 1\n5:0,6:1 0\n"), 2);
  data.mutable_click_log()->set_test(good_);
  const absl::StatusOr<DataSplits> splits = LoadClickLog(data);
  ASSERT_TRUE(splits.ok()) << splits.status();
  ASSERT_TRUE(splits->train->has_values());
  EXPECT_FALSE(splits->test->has_values());
  EXPECT_THAT(AllKeys(*splits->train), ElementsAre(7, 8, 1, 2, 4, kNoKey, 5, 6));
  std::vector<float> values(4);
  splits->train->ReadValues({0, 1}, values.data());
  EXPECT_THAT(values, ElementsAre(1, 1, 0.693f, 1));
  splits->train->ReadValues({3, 2}, values.data());
  EXPECT_THAT(values, ElementsAre(0, 1, -0.25f, 1));
  // What is cut off has no say, and 1 is what there is without a value.
  data = Config(files_.Write("ones", "7:1,8:1.0,9:3 1\n"), 2);
  data.mutable_click_log()->set_test(good_);
  EXPECT_FALSE(LoadClickLog(data)->train->has_values());
}

// The test set is the tail of the same lines.
TEST_F(ClickLogTest, ValuesOfTheLastTenth) {
  std::string text;
  for (int i = 0; i < 20; ++i) absl::StrAppend(&text, i, ":", i + 2, " 0\n");
  const absl::StatusOr<DataSplits> splits = LoadClickLog(Config(files_.Write("tail", text), 1));
  ASSERT_TRUE(splits.ok()) << splits.status();
  std::vector<float> values(2);
  splits->test->ReadValues({0, 1}, values.data());
  EXPECT_THAT(values, ElementsAre(20, 21));
}

TEST_F(ClickLogTest, LastTenthIsTheTestSetAndLimitsCutBoth) {
  std::string text;
  for (int i = 0; i < 35; ++i) absl::StrAppend(&text, i, " ", i % 2, "\n");
  pb::Data data = Config(files_.Write("log", text), 1);
  absl::StatusOr<DataSplits> splits = LoadClickLog(data);
  ASSERT_TRUE(splits.ok()) << splits.status();
  EXPECT_EQ(splits->train->samples(), 32u);
  EXPECT_THAT(AllKeys(*splits->test), ElementsAre(32, 33, 34));
  EXPECT_THAT(AllLabels(*splits->test), ElementsAre(0, 1, 0));
  data.set_train_limit(4);
  data.set_test_limit(2);
  splits = LoadClickLog(data);
  ASSERT_TRUE(splits.ok()) << splits.status();
  EXPECT_THAT(AllKeys(*splits->train), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(AllKeys(*splits->test), ElementsAre(32, 33));

  data = Config(files_.Write("short", "1 0\n2 1\n"), 1);
  EXPECT_THAT(std::string(LoadClickLog(data).status().message()),
              AllOf(HasSubstr("has 2 samples"), HasSubstr("allowed are 10 or more"),
                    HasSubstr("data.click_log.test")));
}

TEST_F(ClickLogTest, ErrorsNameFileLineValueAndWhatIsAllowed) {
  EXPECT_EQ(ErrorOf("1,2 0\n3,4 1\n"), "");
  EXPECT_THAT(ErrorOf("1,2 0\n3,4:0.5x 1\n"),
              AllOf(StartsWith("bad:2: "), HasSubstr("'4:0.5x'"), HasSubstr("a finite number")));
  for (const char* feature :
       {"x", "-1", "1x", "18446744073709551615", "18446744073709551616", "", " 3", "1.5"}) {
    EXPECT_THAT(ErrorOf(absl::StrCat("1 0\n1 1\n2,", feature, "\t0\n")),
                AllOf(StartsWith("bad:3: has the feature"), HasSubstr("0..2^64-2")))
        << feature;
  }
  for (const char* value :
       {"4:", "4:1x", "4:nan", "4:-inf", "4:1e39", "4:1e999", "4:1:1", "4:+1"}) {
    EXPECT_THAT(ErrorOf(absl::StrCat(value, " 1\n")),
                AllOf(StartsWith("bad:1: "), HasSubstr("a finite number after the colon")))
        << value;
  }
  // Beyond the fields that are kept, too.
  EXPECT_THAT(ErrorOf("1,2,3,oops 0\n"), HasSubstr("'oops'"));
  for (const char* label : {"2", "-1", "1.0", "yes", ""}) {
    EXPECT_THAT(ErrorOf(absl::StrCat("1,2 ", label, "\n")),
                AllOf(StartsWith("bad:1: ends with"), HasSubstr("a label of 0 or 1")))
        << label;
  }
  EXPECT_THAT(ErrorOf("1,2\n"), HasSubstr("a label of 0 or 1"));
  EXPECT_THAT(ErrorOf("1\n"), HasSubstr("has no features"));
  EXPECT_THAT(ErrorOf("1 0\n\n1 0\n"), StartsWith("bad:2: "));
  EXPECT_THAT(ErrorOf(""), HasSubstr("has no lines"));
  EXPECT_THAT(ErrorOf(std::string(GzLines::kMaxLineBytes + 10, '1')),
              AllOf(StartsWith("bad:1: "), HasSubstr("1048576 bytes")));
  // A long feature is shown in part.
  EXPECT_THAT(ErrorOf(std::string(5000, 'z') + " 0"), Not(HasSubstr(std::string(60, 'z'))));
}

TEST_F(ClickLogTest, FilesThatCannotBeRead) {
  EXPECT_EQ(LoadClickLog(Config(files_.directory() + "/none", 2)).status().code(),
            absl::StatusCode::kNotFound);
  std::string gz = GzipBytes(std::string(100000, '1'));
  const std::string cut = files_.Write("cut", gz.substr(0, gz.size() - 9));
  EXPECT_EQ(LoadClickLog(Config(cut, 2)).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(LoadClickLog(Config("", 2)).status().message()),
              HasSubstr("data.click_log.train is empty"));
  EXPECT_THAT(std::string(LoadClickLog(Config(good_, 0)).status().message()),
              HasSubstr("data.click_log.fields is 0, allowed is 1..1024"));
}

// Lines longer than what is read at a time, and lines across its borders.
TEST_F(ClickLogTest, LinesOfAnyLength) {
  std::string text;
  for (int i = 0; text.size() < 3 * GzLines::kMaxLineBytes; ++i) {
    absl::StrAppend(&text, i);
    for (int k = 0; k < i * 977 % 200000; ++k) text += ",1";
    absl::StrAppend(&text, "\t", i % 2, "\n");
  }
  absl::StatusOr<DataSplits> splits = LoadClickLog(Config(files_.WriteGz("long", text), 1));
  ASSERT_TRUE(splits.ok()) << splits.status();
  const std::vector<uint64_t> keys = AllKeys(*splits->train);
  for (size_t i = 0; i < keys.size(); ++i) ASSERT_EQ(keys[i], i);
  EXPECT_GT(keys.size(), 20u);
}

}  // namespace
}  // namespace parley
