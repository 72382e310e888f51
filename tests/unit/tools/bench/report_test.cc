#include "tools/bench/bench_report.h"

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <gtest/gtest.h>

#include <set>

#include "tools/bench/suites.h"

namespace parley {
namespace {

BenchReport SmallReport() {
  BenchReport report;
  report.conditions = {{"cpu", "a \"cpu\""}, {"cores", "2"}};
  report.limits = {{"two_pass.64MiB.1t", "GB/s", {4}},
                   {"futex", "us", {10}},
                   {"two_pass.64MiB.1t", "GB/s", {5}}};
  report.results.push_back({"dense 64MiB shm",
                            {{"load", "dense"}},
                            "shm",
                            {"push_then_pull", "GB/s", {1, 4, 3}},
                            report.limits[2]});
  report.results.push_back({"latency 4KiB shm",
                            {{"load", "latency"}},
                            "shm",
                            {"push_pull.p50", "us", {20}},
                            report.limits[1]});
  return report;
}

std::vector<BenchTarget> Measured(std::vector<BenchTarget> targets) {
  std::erase_if(targets, [](const BenchTarget& target) { return !target.measured; });
  return targets;
}

TEST(BenchReportTest, TheLastLimitOfANameCounts) {
  const BenchReport report = SmallReport();
  ASSERT_NE(report.FindLimit("two_pass.64MiB.1t"), nullptr);
  EXPECT_EQ(report.FindLimit("two_pass.64MiB.1t")->median(), 5);
  EXPECT_EQ(report.FindLimit("none"), nullptr);
}

TEST(BenchReportTest, RatiosAreOfMediansAndMoreIsBetter) {
  const BenchReport report = SmallReport();
  EXPECT_DOUBLE_EQ(report.results[0].ratio(), 0.6);  // GB/s: ours over the limit's
  EXPECT_DOUBLE_EQ(report.results[1].ratio(), 0.5);  // us: the limit's over ours
  EXPECT_EQ((BenchResult{"", {}, "", {"x", "GB/s", {1}}, {}}.ratio()), 0);
}

TEST(BenchReportTest, TargetsAreCheckedWhereThereIsAResult) {
  BenchReport report = SmallReport();
  report.targets = Measured(CheckTargets(report));
  ASSERT_EQ(report.targets.size(), 2);
  EXPECT_TRUE(report.targets[0].pass());  // 0.6 of 0.6
  EXPECT_DOUBLE_EQ(report.targets[1].got, 2);
  EXPECT_FALSE(report.targets[1].pass());  // two futex ping-pongs, 1.5 allowed
  EXPECT_NE(report.Table().find("PASS"), std::string::npos);
  EXPECT_NE(report.Table().find("short of"), std::string::npos);
  EXPECT_EQ(report.Table().find("not measured"), std::string::npos);
}

// Flags may make other cases than those that targets are about.
TEST(BenchReportTest, TargetsOfOtherCasesOfALoadAreNotMeasured) {
  BenchReport report = SmallReport();
  report.results[0].id = "dense 4KiB auto";
  report.results.pop_back();
  report.targets = CheckTargets(report);
  ASSERT_EQ(report.targets.size(), 3);  // of the load dense; of others nothing was asked
  for (const BenchTarget& target : report.targets) {
    EXPECT_FALSE(target.measured) << target.what;
    EXPECT_FALSE(target.pass()) << target.what;
    EXPECT_EQ(target.what.find("dense "), 0) << target.what;
  }
  EXPECT_NE(report.Table().find("not measured, wanted >= 0.60"), std::string::npos);
  EXPECT_EQ(report.Table().find("short of"), std::string::npos);
  google::protobuf::Struct json;
  const auto status = google::protobuf::util::JsonStringToMessage(report.Json(), &json);
  ASSERT_TRUE(status.ok()) << status.ToString();
  EXPECT_EQ(json.fields().at("targets").list_value().values_size(), 0);
  EXPECT_EQ(json.fields().at("targets_not_measured").list_value().values_size(), 3);
}

TEST(BenchReportTest, JsonHasConditionsAndEveryRound) {
  BenchReport report = SmallReport();
  report.targets = CheckTargets(report);
  google::protobuf::Struct json;
  const auto status = google::protobuf::util::JsonStringToMessage(report.Json(), &json);
  ASSERT_TRUE(status.ok()) << status.ToString() << "\n" << report.Json();
  EXPECT_EQ(json.fields().at("benchmark").string_value(), "bench");
  EXPECT_EQ(json.fields().at("conditions").struct_value().fields().at("cpu").string_value(),
            "a \"cpu\"");
  const auto& result = json.fields().at("results").list_value().values(0).struct_value().fields();
  EXPECT_EQ(result.at("median").number_value(), 3);
  EXPECT_EQ(result.at("min").number_value(), 1);
  EXPECT_EQ(result.at("max").number_value(), 4);
  EXPECT_EQ(result.at("values").list_value().values_size(), 3);
  EXPECT_EQ(result.at("path").string_value(), "shm");
  EXPECT_EQ(result.at("limit").string_value(), "two_pass.64MiB.1t");
  EXPECT_EQ(json.fields().at("targets").list_value().values_size(), 2);
}

TEST(BenchReportTest, AnEmptyReportIsJsonToo) {
  google::protobuf::Struct json;
  EXPECT_TRUE(google::protobuf::util::JsonStringToMessage(BenchReport().Json(), &json).ok());
}

TEST(MachineConditionsTest, NamesTheMachine) {
  std::set<std::string> names;
  for (const auto& [name, value] : MachineConditions(".")) {
    EXPECT_FALSE(value.empty()) << name;
    names.insert(name);
  }
  for (const char* name : {"cpu", "cores", "kernel", "libzmq", "date", "checkout"}) {
    EXPECT_TRUE(names.contains(name)) << name;
  }
}

}  // namespace
}  // namespace parley
