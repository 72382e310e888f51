#include "scheduler/report/run_directory.h"

#include <google/protobuf/text_format.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "scheduler/report/curves_svg.h"
#include "scheduler/report/metrics_json.h"

namespace parley {
namespace {

constexpr absl::Duration kProgressEvery = absl::Seconds(1);

absl::Status MakeDirectories(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (!error) return absl::OkStatus();
  return absl::ErrnoToStatus(error.value(),
                             absl::StrCat("run directory '", path, "' cannot be made"));
}

}  // namespace

absl::Status WriteFileWhole(const std::string& path, absl::string_view content) {
  const std::string beside = path + ".new";
  const auto failed = [&] {
    return absl::ErrnoToStatus(errno, absl::StrCat("'", path, "' cannot be written"));
  };
  FILE* file = fopen(beside.c_str(), "wb");
  if (file == nullptr) return failed();
  const bool written = fwrite(content.data(), 1, content.size(), file) == content.size();
  // Closing is what reports a full disk.
  if ((fclose(file) != 0) || !written) return failed();
  if (rename(beside.c_str(), path.c_str()) != 0) return failed();
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<RunDirectory>> RunDirectory::Create(const std::string& path,
                                                                   ReportClock now) {
  if (absl::Status status = MakeDirectories(path + "/logs"); !status.ok()) return status;
  const std::string metrics_path = path + "/metrics.jsonl";
  File metrics(fopen(metrics_path.c_str(), "wb"), fclose);
  if (!metrics) {
    return absl::ErrnoToStatus(errno, absl::StrCat("'", metrics_path, "' cannot be written"));
  }
  // Whole lines reach the file at once, so that it can be followed while the run goes on.
  setvbuf(metrics.get(), nullptr, _IOLBF, 1 << 16);
  return std::unique_ptr<RunDirectory>(new RunDirectory(path, std::move(now), std::move(metrics)));
}

RunDirectory::RunDirectory(std::string path, ReportClock now, File metrics)
    : path_(std::move(path)),
      now_(std::move(now)),
      start_(now_()),
      metrics_(std::move(metrics)),
      next_progress_(start_) {}

double RunDirectory::Seconds() const { return absl::ToDoubleSeconds(now_() - start_); }

void RunDirectory::AppendMetric(const std::string& line) {
  if (fputs(absl::StrCat(line, "\n").c_str(), metrics_.get()) < 0 && status_.ok()) {
    status_ =
        absl::ErrnoToStatus(errno, absl::StrCat("'", path_, "/metrics.jsonl' cannot be written"));
  }
}

void RunDirectory::Replace(const std::string& name, absl::string_view content) {
  status_.Update(WriteFileWhole(absl::StrCat(path_, "/", name), content));
}

void RunDirectory::OnStart(const std::string& job, const pb::Experiment& resolved) {
  job_ = job;
  std::string text;
  google::protobuf::TextFormat::PrintToString(resolved, &text);
  Replace("experiment.resolved.textproto", text);
}

void RunDirectory::OnEvent(const std::string& line) { AppendMetric(EventJson(line, Seconds())); }

void RunDirectory::OnProgress(const RunProgress& progress) {
  const absl::Duration now = now_();
  if (now < next_progress_) return;
  next_progress_ = now + kProgressEvery;
  AppendMetric(ProgressJson(progress, Seconds()));
}

void RunDirectory::OnEpoch(const EpochMetrics& metrics) {
  epochs_.push_back(metrics);
  AppendMetric(EpochJson(metrics, Seconds()));
  Replace("curves.svg", CurvesSvg(job_, epochs_));
}

void RunDirectory::OnFinish(const RunSummary& summary) {
  Replace("summary.json", SummaryJson(job_, summary));
  Replace("curves.svg", CurvesSvg(job_, summary.epochs.empty() ? epochs_ : summary.epochs));
}

}  // namespace parley
