#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "scheduler/report/curves_svg.h"
#include "scheduler/report/json_line.h"
#include "scheduler/report/metrics_json.h"
#include "scheduler/report/observers.h"
#include "scheduler/report/run_directory.h"
#include "scheduler/report/terminal_report.h"

namespace parley {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

EpochMetrics Epoch(uint32_t epoch, double train_loss, double test_accuracy) {
  EpochMetrics metrics;
  metrics.epoch = epoch;
  metrics.step = (epoch + 1) * 469;
  metrics.train_loss = train_loss;
  metrics.train_accuracy = 1 - train_loss / 2;
  metrics.evaluated = true;
  metrics.test_loss = train_loss * 0.9;
  metrics.test_accuracy = test_accuracy;
  metrics.train_samples = 60000;
  metrics.train_seconds = 10;
  metrics.compute_seconds = 8;
  metrics.wait_seconds = 1;
  metrics.max_staleness = 1;
  return metrics;
}

RunSummary Summary() {
  RunSummary summary;
  summary.ok = true;
  summary.steps = 2345;
  summary.train_seconds = 50;
  summary.wall_seconds = 60;
  summary.samples_per_second = 6000;
  summary.compute_seconds = 30;
  summary.wait_seconds = 15;
  summary.apply_seconds = 5;
  summary.pushes_acknowledged = 9380;
  summary.pushes_applied = 9380;
  summary.weights_sha256 = "abc123";
  summary.epochs = {Epoch(0, 0.5, 0.86), Epoch(1, 0.4, 0.9)};
  return summary;
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST(Json, EscapesText) {
  EXPECT_EQ(JsonText("a\"b\\c\n\t\x01"), R"("a\"b\\c\n\t\u0001")");
  EXPECT_EQ(JsonText("grün"), "\"grün\"");
  EXPECT_EQ(JsonText("\xff|\xc0\xaf|\xed\xa0\x80|\xe2\x82"),
            R"("\ufffd|\ufffd\ufffd|\ufffd\ufffd\ufffd|\ufffd\ufffd")");
}

TEST(Json, NumbersAreFiniteAndExact) {
  EXPECT_EQ(JsonNumber(0.1), "0.1");
  EXPECT_EQ(JsonNumber(kNan), "null");
  EXPECT_EQ(JsonNumber(-kInf), "null");
  EXPECT_EQ(std::stod(JsonNumber(1.0 / 3)), 1.0 / 3);
  EXPECT_EQ(JsonLine().Text("a", "b").Count("n", 7).Flag("f", false).str(),
            R"({"a": "b", "n": 7, "f": false})");
}

TEST(MetricsJson, EpochsReadBack) {
  EpochMetrics without_test = Epoch(1, 0.25, 0);
  without_test.evaluated = false;
  const std::string text =
      absl::StrCat(EventJson("server \"1\" joined", 0.5), "\n", EpochJson(Epoch(0, 0.5, 0.86), 11),
                   "\n", ProgressJson({}, 12), "\n", EpochJson(without_test, 22), "\n",
                   R"({"type": "epoch", "cut of)");
  absl::StatusOr<std::vector<EpochMetrics>> epochs = ParseEpochs(text);
  ASSERT_TRUE(epochs.ok()) << epochs.status();
  ASSERT_EQ(epochs->size(), 2);
  EXPECT_EQ((*epochs)[0].epoch, 0);
  EXPECT_EQ((*epochs)[0].step, 469);
  EXPECT_EQ((*epochs)[0].train_loss, 0.5);
  EXPECT_EQ((*epochs)[0].test_accuracy, 0.86);
  EXPECT_TRUE((*epochs)[0].evaluated);
  EXPECT_EQ((*epochs)[1].train_samples, 60000);
  EXPECT_FALSE((*epochs)[1].evaluated);
}

TEST(MetricsJson, ADivergedLossSurvives) {
  absl::StatusOr<std::vector<EpochMetrics>> epochs =
      ParseEpochs(EpochJson(Epoch(0, kNan, 0.1), 1) + "\n");
  ASSERT_TRUE(epochs.ok()) << epochs.status();
  EXPECT_TRUE(std::isnan((*epochs)[0].train_loss));
  EXPECT_EQ((*epochs)[0].test_accuracy, 0.1);
}

TEST(MetricsJson, RefusesWhatIsNotJson) {
  EXPECT_THAT(std::string(ParseEpochs("{}\nnonsense\n").status().message()), StartsWith("line 2:"));
  EXPECT_THAT(std::string(ParseEpochs("{\"type\": \"epoch\", \"epoch\": 1}\n").status().message()),
              HasSubstr("field 'step': is missing"));
}

TEST(MetricsJson, Shares) {
  const TimeShares shares = SharesOf(Summary());
  EXPECT_DOUBLE_EQ(shares.compute, 0.6);
  EXPECT_DOUBLE_EQ(shares.server, 0.1);
  EXPECT_DOUBLE_EQ(shares.wire, 0.2);
  EXPECT_NEAR(shares.other, 0.1, 1e-12);
  EXPECT_STREQ(shares.largest, "compute");
  EXPECT_EQ(SharesOf(RunSummary()).compute, 0);  // nothing was trained: no division by zero
  RunSummary waiting = Summary();
  waiting.compute_seconds = 5, waiting.wait_seconds = 45;
  EXPECT_STREQ(SharesOf(waiting).largest, "wire");
}

TEST(MetricsJson, SummaryOfAFailure) {
  RunSummary summary;
  summary.reason = "worker 1 died:\n\"killed\"";
  const std::string json = SummaryJson("job", summary);
  EXPECT_THAT(json, HasSubstr(R"("ok": false)"));
  EXPECT_THAT(json, HasSubstr(R"("reason": "worker 1 died:\n\"killed\"")"));
  EXPECT_THAT(json, HasSubstr(R"("test_accuracy": null)"));
  EXPECT_THAT(json, HasSubstr(R"("epochs": [])"));
}

TEST(CurvesSvg, Ticks) {
  EXPECT_THAT(NiceTicks(0, 1, 5), ElementsAre(0, 0.2, 0.4, testing::DoubleEq(0.6), 0.8, 1));
  EXPECT_THAT(NiceTicks(0.3, 2.2, 4), ElementsAre(0, 0.5, 1, 1.5, 2, 2.5));
  for (auto [low, high] : {std::pair{0.0, 0.0}, {5.0, 5.0}, {-1e-9, 1e9}, {0.8651, 0.8652}}) {
    const std::vector<double> ticks = NiceTicks(low, high, 5);
    ASSERT_GE(ticks.size(), 2) << low;
    EXPECT_LT(ticks.size(), 12) << low;
    EXPECT_LE(ticks.front(), low + 1e-6);
    EXPECT_GE(ticks.back(), high - 1e-6);
  }
}

TEST(CurvesSvg, DrawsAnyNumberOfEpochs) {
  EXPECT_THAT(CurvesSvg("a <b> & \"c\"", {}), HasSubstr("a &lt;b&gt; &amp; &quot;c&quot;"));
  EXPECT_THAT(CurvesSvg("x", {}), HasSubstr("no epoch has ended"));
  const std::string one = CurvesSvg("x", {Epoch(0, 0.5, 0.86)});
  EXPECT_THAT(one, HasSubstr("<circle"));
  EXPECT_THAT(one, Not(HasSubstr("<polyline")));
  std::vector<EpochMetrics> many;
  for (uint32_t i = 0; i < 200; ++i) many.push_back(Epoch(i, 1.0 / (i + 1), i / 200.0));
  many[3].train_loss = kNan;
  const std::string svg = CurvesSvg("x", many);
  EXPECT_THAT(svg, HasSubstr("<polyline"));
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_THAT(svg, Not(HasSubstr("inf")));
}

struct FakeClock {
  absl::Duration now = absl::ZeroDuration();
  ReportClock clock() {
    return [this] { return now; };
  }
};

TEST(RunDirectory, LeavesTheRecordOfARun) {
  const std::string path = testing::TempDir() + "/parley_report_test/run";
  std::filesystem::remove_all(path);
  FakeClock time;
  auto directory = RunDirectory::Create(path, time.clock());
  ASSERT_TRUE(directory.ok()) << directory.status();
  pb::Experiment experiment;
  experiment.set_name("tiny");
  (*directory)->OnStart("tiny-1", experiment);
  EXPECT_EQ(ReadFile(path + "/experiment.resolved.textproto"), "name: \"tiny\"\n");
  (*directory)->OnEvent("training starts");
  RunProgress progress;
  for (int i = 0; i < 10; ++i) {  // 2.7 s: three lines, one a second
    progress.step = i;
    (*directory)->OnProgress(progress);
    time.now += absl::Milliseconds(300);
  }
  (*directory)->OnEpoch(Epoch(0, 0.5, 0.86));
  // All lines are there while the run goes on.
  const std::string metrics = ReadFile(path + "/metrics.jsonl");
  EXPECT_EQ(std::count(metrics.begin(), metrics.end(), '\n'), 1 + 3 + 1);
  EXPECT_THAT(ReadFile(path + "/curves.svg"), HasSubstr("tiny-1"));
  EXPECT_FALSE(std::filesystem::exists(path + "/summary.json"));
  (*directory)->OnFinish(Summary());
  EXPECT_THAT(ReadFile(path + "/summary.json"), HasSubstr(R"("weights_sha256": "abc123")"));
  EXPECT_THAT(ReadFile(path + "/summary.json"), HasSubstr(R"("test_accuracy": 0.9,)"));
  EXPECT_TRUE(std::filesystem::is_directory(path + "/logs"));
  EXPECT_FALSE(std::filesystem::exists(path + "/summary.json.new"));
  EXPECT_TRUE((*directory)->status().ok());
}

TEST(SummaryJson, NamesSparseTables) {
  RunSummary summary = Summary();
  EXPECT_THAT(SummaryJson("job", summary), HasSubstr(R"("tables": [])"));
  summary.tables = {{"clicks", 10, 2, 720, "00ff"}};
  summary.frames_refused = 3;
  const std::string json = SummaryJson("job", summary);
  EXPECT_THAT(json, HasSubstr(R"({"name": "clicks", "rows": 10, "evicted": 2, "bytes": 720, )"
                              R"("bytes_per_row": 72, "digest": "00ff"})"));
  EXPECT_THAT(json, HasSubstr(R"("frames_refused": 3)"));
}

TEST(RunDirectory, GoesOnWithTheRecordOfARunThatWasCutShort) {
  const std::string path = testing::TempDir() + "/parley_report_test/continued";
  std::filesystem::remove_all(path);
  FakeClock time;
  {
    auto first = RunDirectory::Create(path, time.clock());
    ASSERT_TRUE(first.ok()) << first.status();
    (*first)->OnEpoch(Epoch(0, 0.5, 0.86));
    time.now += absl::Seconds(100);
    (*first)->OnEvent("an \"seconds\": 7, in a text");
  }
  const std::string before = ReadFile(path + "/metrics.jsonl");
  std::ofstream(path + "/metrics.jsonl", std::ios::app) << R"({"type": "event", "te)";

  FakeClock later;  // another process, with another origin of time
  auto second = RunDirectory::Continue(path, later.clock());
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(ReadFile(path + "/metrics.jsonl"), before);
  later.now += absl::Seconds(2);
  (*second)->OnEvent("the scheduler is back");
  EXPECT_EQ(ReadFile(path + "/metrics.jsonl"),
            absl::StrCat(before, EventJson("the scheduler is back", 102), "\n"));
  (*second)->OnEpoch(Epoch(1, 0.4, 0.88));
  // Both epochs are drawn, that of the run before as well.
  EXPECT_EQ(ReadFile(path + "/curves.svg"),
            CurvesSvg("", {Epoch(0, 0.5, 0.86), Epoch(1, 0.4, 0.88)}));
  ASSERT_TRUE(ParseEpochs(ReadFile(path + "/metrics.jsonl")).ok());
  EXPECT_EQ(ParseEpochs(ReadFile(path + "/metrics.jsonl"))->size(), 2);
}

// A scheduler that stood still until another had its job.
TEST(RunDirectory, ALateWordGoesBehindWhatAnotherHasWritten) {
  const std::string path = testing::TempDir() + "/parley_report_test/late_word";
  std::filesystem::remove_all(path);
  FakeClock time;
  auto first = RunDirectory::Create(path, time.clock());
  ASSERT_TRUE(first.ok()) << first.status();
  (*first)->OnEvent("the first begins");
  auto second = RunDirectory::Continue(path, time.clock());
  ASSERT_TRUE(second.ok()) << second.status();
  (*second)->OnEvent("the second goes on");
  (*first)->OnEvent("late");
  EXPECT_EQ(ReadFile(path + "/metrics.jsonl"),
            absl::StrCat(EventJson("the first begins", 0), "\n", EventJson("the second goes on", 0),
                         "\n", EventJson("late", 0), "\n"));
}

TEST(RunDirectory, NothingToGoOnWithIsABeginning) {
  const std::string path = testing::TempDir() + "/parley_report_test/continued_nothing";
  std::filesystem::remove_all(path);
  FakeClock time;
  auto directory = RunDirectory::Continue(path, time.clock());
  ASSERT_TRUE(directory.ok()) << directory.status();
  (*directory)->OnEvent("here");
  EXPECT_EQ(ReadFile(path + "/metrics.jsonl"), absl::StrCat(EventJson("here", 0), "\n"));
}

TEST(RunDirectory, SaysWhatCannotBeWritten) {
  FakeClock time;
  auto directory = RunDirectory::Create("/proc/no/run", time.clock());
  EXPECT_THAT(std::string(directory.status().message()), HasSubstr("'/proc/no/run/logs'"));

  const std::string path = testing::TempDir() + "/parley_report_test/blocked";
  std::filesystem::create_directories(path + "/summary.json");  // in the way
  auto blocked = RunDirectory::Create(path, time.clock());
  ASSERT_TRUE(blocked.ok());
  (*blocked)->OnFinish(Summary());
  EXPECT_THAT(std::string((*blocked)->status().message()), HasSubstr("summary.json"));
}

struct Screen {
  std::string text;
  TerminalReport::Write write() {
    return [this](absl::string_view more) { text.append(more.data(), more.size()); };
  }
};

RunProgress Halfway() {
  RunProgress progress;
  progress.epoch = 1, progress.epochs = 5, progress.step = 703, progress.steps = 2345;
  progress.loss = 0.41234, progress.samples_per_second = 6123.4, progress.max_staleness = 2;
  return progress;
}

TEST(TerminalReport, RewritesABarOnATerminal) {
  FakeClock time;
  Screen screen;
  TerminalReport report({.terminal = true, .columns = 120}, time.clock(), screen.write());
  RunProgress early = Halfway();
  early.step = 469;
  report.OnProgress(early);
  screen.text.clear();
  time.now = absl::Seconds(10);
  report.OnProgress(Halfway());
  EXPECT_THAT(screen.text, StartsWith("\r\x1b[Kepoch 2/5 [=="));
  EXPECT_THAT(screen.text, HasSubstr("]  49% "));
  EXPECT_THAT(screen.text, HasSubstr("step 703/2345  loss 0.4123  6,123 samples/s  staleness 2"));
  // 234 steps took 10 s, 1642 are left.
  EXPECT_THAT(screen.text, HasSubstr("ETA 1:10"));
  EXPECT_THAT(screen.text, Not(HasSubstr("\n")));
  screen.text.clear();
  report.OnEvent("worker 1 joined");
  EXPECT_THAT(screen.text, StartsWith("\r\x1b[Kworker 1 joined\nepoch 2/5"));
}

TEST(TerminalReport, NeverWrapsOnANarrowTerminal) {
  for (int columns : {1, 20, 60, 80}) {
    FakeClock time;
    Screen screen;
    TerminalReport report({.terminal = true, .columns = columns}, time.clock(), screen.write());
    report.OnProgress(Halfway());
    EXPECT_LT(screen.text.size(), std::max(columns, 2)) << screen.text;
  }
}

TEST(TerminalReport, KeepsItsBarOnAnOrdinaryTerminal) {
  FakeClock time;
  Screen screen;
  TerminalReport report({.terminal = true, .columns = 80}, time.clock(), screen.write());
  RunProgress progress = Halfway();
  progress.waiting_for = "pull of step 703 from server 1 shard 0 (tcp://127.0.0.1:41234)";
  report.OnProgress(progress);
  EXPECT_THAT(screen.text, StartsWith("epoch 2/5 [=="));
  EXPECT_THAT(screen.text, HasSubstr(" 49%  "));
  EXPECT_THAT(screen.text, HasSubstr("loss 0.4123  6,123 samples/s  staleness 2"));
  EXPECT_LT(screen.text.size(), 80u);
}

TEST(TerminalReport, WhatIsWaitedForTakesNothingFromTheBar) {
  std::string bars[2];
  for (int i = 0; i < 2; ++i) {
    FakeClock time;
    Screen screen;
    TerminalReport report({.terminal = true, .columns = 110}, time.clock(), screen.write());
    RunProgress progress = Halfway();
    if (i == 1) progress.waiting_for = "pull of step 703 from server 1 shard 0";
    report.OnProgress(progress);
    bars[i] = screen.text.substr(0, screen.text.find(']') + 1);
    EXPECT_THAT(screen.text, HasSubstr("step 703/2345"));
  }
  EXPECT_EQ(bars[0], bars[1]);
}

TEST(TerminalReport, PlainLinesElsewhere) {
  FakeClock time;
  Screen screen;
  TerminalReport report({}, time.clock(), screen.write());
  RunProgress progress = Halfway();
  progress.waiting_for = "worker 1\x1b[2J";
  for (int i = 0; i < 12; ++i, time.now += absl::Seconds(1)) report.OnProgress(progress);
  EXPECT_EQ(std::count(screen.text.begin(), screen.text.end(), '\n'), 3);  // at 0, 5 and 10 s
  EXPECT_THAT(screen.text, HasSubstr("waiting for worker 1?[2J"));
  EXPECT_THAT(screen.text, Not(HasSubstr("\x1b")));
  screen.text.clear();
  report.OnEpoch(Epoch(1, 0.4, 0.9));
  EXPECT_EQ(screen.text,
            "epoch 2/2  train loss 0.4000 accuracy 0.8000  test loss 0.3600 accuracy 0.9000  "
            "10.0 s  6,000 samples/s\n");
}

TEST(TerminalReport, GradientLines) {
  FakeClock time;
  Screen screen;
  TerminalReport report({.gradient = true, .quiet = true}, time.clock(), screen.write());
  report.OnEpoch(Epoch(0, 0.5, 0.86));
  EXPECT_EQ(screen.text,
            "{\"chart\": \"loss\", \"y\": 0.5, \"x\": 1}\n"
            "{\"chart\": \"accuracy\", \"y\": 0.75, \"x\": 1}\n"
            "{\"chart\": \"test_loss\", \"y\": 0.45, \"x\": 1}\n"
            "{\"chart\": \"test_accuracy\", \"y\": 0.86, \"x\": 1}\n");
}

TEST(TerminalReport, EndsWithTheResults) {
  FakeClock time;
  Screen screen;
  TerminalReport report({.run_dir = "runs/x"}, time.clock(), screen.write());
  report.OnFinish(Summary());
  EXPECT_EQ(screen.text,
            "done: test accuracy 0.9000, test loss 0.3600\n"
            "  training    2,345 steps in 50.0 s (60.0 s in all), 6,000 samples/s\n"
            "  limited by  compute (compute 60%, wire 20%, server 10%, other 10%)\n"
            "  weights     sha256 abc123\n"
            "  run         runs/x\n");
  screen.text.clear();
  RunSummary sparse = Summary();
  sparse.tables = {{"clicks\x1b", 1234567, 0, 3 << 20, "00ff"}, {"items", 5, 1000, 0, "0a"}};
  report.OnFinish(sparse);
  EXPECT_THAT(screen.text, HasSubstr("  rows        clicks?: 1,234,567, 3.0 MiB, digest 00ff\n"
                                     "  rows        items: 5, 1,000 evicted, 0.0 MiB, digest 0a\n"
                                     "  run         runs/x\n"));
  screen.text.clear();
  report.OnEvent("refused a late node");  // the results stay last
  report.OnProgress(Halfway());
  RunSummary failed;
  failed.reason = "worker 1 (host:42) is silent";
  report.OnFinish(failed);
  EXPECT_EQ(screen.text, "failed: worker 1 (host:42) is silent\n  run         runs/x\n");
}

TEST(TerminalReport, Formats) {
  EXPECT_EQ(WithCommas(0), "0");
  EXPECT_EQ(WithCommas(999.6), "1,000");
  EXPECT_EQ(WithCommas(1234567), "1,234,567");
  EXPECT_EQ(WithCommas(-1234), "-1,234");
  EXPECT_EQ(WithCommas(kNan), "?");
  EXPECT_EQ(ClockText(75), "1:15");
  EXPECT_EQ(ClockText(3700), "1:01:40");
  EXPECT_EQ(ClockText(kInf), "?");
}

TEST(Observers, HandsEverythingToAllInOrder) {
  FakeClock time;
  Screen screen;
  TerminalReport first({.run_dir = "first"}, time.clock(), screen.write());
  TerminalReport second({.run_dir = "second"}, time.clock(), screen.write());
  Observers both({&first, &second});
  both.OnEvent("hello");
  both.OnFinish(RunSummary());
  EXPECT_THAT(screen.text, StartsWith("hello\nhello\n"));
  EXPECT_LT(screen.text.find("first"), screen.text.find("second"));
}

}  // namespace
}  // namespace parley
