#include "benchmarks/limits/series.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tools/bench/bench_host.h"

namespace parley {
namespace {

class SeriesFileTest : public testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(path_); }
  void Write(const std::string& text) { std::ofstream(path_) << text; }

  const std::string path_ = testing::TempDir() + "/series_test.tsv";
};

TEST(SeriesTest, MedianIsOfTheMiddle) {
  EXPECT_EQ((Series{"", "", {3, 1, 2}}.median()), 2);
  EXPECT_EQ((Series{"", "", {4, 1, 2, 3}}.median()), 2.5);
  EXPECT_EQ((Series{"", "", {}}.median()), 0);
  EXPECT_EQ((Series{"", "", {3, 1, 2}}.min()), 1);
  EXPECT_EQ((Series{"", "", {3, 1, 2}}.max()), 3);
}

TEST_F(SeriesFileTest, WhatIsAppendedIsReadBack) {
  const Series series{"dense.push", "GB/s", {1.0 / 3, 2, 1e-300}};
  ASSERT_TRUE(AppendSeries(path_, series).ok());
  ASSERT_TRUE(AppendNote(path_, "path", "a\tb\nc").ok());
  ASSERT_TRUE(AppendNote(path_, "path", "shm").ok());
  const absl::StatusOr<SeriesFile> file = ReadSeriesFile(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ(file->series.size(), 1);
  ASSERT_NE(file->Find("dense.push"), nullptr);
  EXPECT_EQ(file->Find("dense.push")->values, series.values);
  EXPECT_EQ(file->Find("dense.push")->unit, "GB/s");
  EXPECT_EQ(file->notes.at("path"), "shm");
  EXPECT_EQ(file->Find("dense"), nullptr);
}

TEST_F(SeriesFileTest, BadLinesAreNamed) {
  for (const char* line :
       {"nonsense", "series\tname", "series\tname\tGB/s\t1\tx", "note\tname", ""}) {
    Write(std::string("note\ta\tb\n") + line + "\n");
    const absl::StatusOr<SeriesFile> file = ReadSeriesFile(path_);
    EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument) << line;
    EXPECT_NE(file.status().message().find(path_ + ":2:"), absl::string_view::npos)
        << file.status();
  }
}

TEST_F(SeriesFileTest, AMissingFileIsNamed) {
  const absl::Status status = ReadSeriesFile(path_ + ".not").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(status.message().find(path_), absl::string_view::npos);
}

TEST(CombineWorkersTest, RatesAddUpAndTimesAreAveraged) {
  SeriesFile a, b;
  a.series = {{"push", "GB/s", {1, 2}}, {"pull.p50", "us", {10, 20}}};
  b.series = {{"pull.p50", "us", {30, 40}}, {"push", "GB/s", {3, 5}}};
  const absl::StatusOr<SeriesFile> all = CombineWorkers({a, b});
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(all->Find("push")->values, (std::vector<double>{4, 7}));
  EXPECT_EQ(all->Find("pull.p50")->values, (std::vector<double>{20, 30}));
}

TEST(CombineWorkersTest, WorkersThatMeasuredDifferentThingsAreRefused) {
  SeriesFile a, b, c;
  a.series = {{"push", "GB/s", {1, 2}}};
  b.series = {{"pull", "GB/s", {1, 2}}};
  c.series = {{"push", "GB/s", {1}}};
  EXPECT_EQ(CombineWorkers({a, b}).status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(CombineWorkers({a, c}).status().code(), absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace parley
