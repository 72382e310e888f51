#include "tools/bench/bench_host.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "ps/config/experiment.h"
#include "scheduler/report/metrics_json.h"
#include "scheduler/report/run_directory.h"
#include "tools/bench/bench_node.h"

namespace parley {
namespace {

namespace fs = std::filesystem;

constexpr absl::Duration kSchedulerStart = absl::Seconds(10);
std::string ReadWhole(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// How payloads travel, as a worker's transport logs it for each pair - "node 4f.. over tcp://..",
// "node 4f.. over shared memory" - each way once. The scheduler is no part of it.
std::string PathsIn(const std::string& log) {
  std::set<std::string> paths;
  for (absl::string_view line : absl::StrSplit(log, '\n')) {
    const size_t at = line.find(" over ");
    if (at == absl::string_view::npos || !absl::StrContains(line, "node ") ||
        absl::StrContains(line, "node scheduler")) {
      continue;
    }
    absl::string_view path = line.substr(at + 6);
    paths.insert(std::string(absl::StartsWith(path, "shared") ? "shm" : path.substr(0, 3)));
  }
  return absl::StrJoin(paths, " and ");
}

}  // namespace

absl::StatusOr<SeriesFile> CombineWorkers(const std::vector<SeriesFile>& workers) {
  SeriesFile all = workers.front();
  for (size_t w = 1; w < workers.size(); ++w) {
    for (Series& series : all.series) {
      const Series* other = workers[w].Find(series.name);
      if (other == nullptr || other->values.size() != series.values.size()) {
        return absl::InternalError(
            absl::StrCat("worker ", w, " did not measure '", series.name, "' as worker 0 did"));
      }
      for (size_t i = 0; i < series.values.size(); ++i) series.values[i] += other->values[i];
    }
  }
  for (Series& series : all.series) {
    if (series.unit != "us") continue;
    for (double& value : series.values) value /= static_cast<double>(workers.size());
  }
  return all;
}

absl::StatusOr<std::unique_ptr<BenchHost>> BenchHost::Create(std::string bin) {
  // Short, since sockets go in there, whose paths may have 107 bytes only.
  char path[] = "/tmp/parley-bench-XXXXXX";
  if (mkdtemp(path) == nullptr) return absl::ErrnoToStatus(errno, "scratch directory in /tmp");
  return std::unique_ptr<BenchHost>(new BenchHost(std::move(bin), path));
}

BenchHost::~BenchHost() {
  std::error_code ignored;
  if (!keep_) fs::remove_all(scratch_, ignored);
}

std::string BenchHost::NextDirectory(const std::string& name) {
  const std::string path = absl::StrCat(scratch_, "/", ++groups_, "-", name);
  std::error_code ignored;  // whoever writes into it will say so
  fs::create_directories(path + "/logs", ignored);
  return path;
}

absl::Status BenchHost::Finish(Supervisor* supervisor, const std::string& directory) {
  const Supervisor::Outcome outcome = supervisor->Run();
  if (outcome.interrupted) return absl::CancelledError("interrupted");
  if (outcome.ok) return absl::OkStatus();
  keep_ = true;
  absl::StatusOr<std::string> told = ReadSummaryReason(directory + "/summary.json");
  return absl::AbortedError(DescribeCause(outcome.failures, told.value_or("")));
}

absl::StatusOr<SeriesFile> BenchHost::RunLimits(const std::vector<std::string>& args) {
  const std::string directory = NextDirectory("limits"), out = directory + "/limits.tsv";
  absl::StatusOr<std::unique_ptr<Supervisor>> supervisor = Supervisor::Create({});
  if (!supervisor.ok()) return supervisor.status();
  ChildSpec spec{.name = "limits",
                 .program = bin_ + "/parley-limits",
                 .args = args,
                 .log = directory + "/logs/limits.log",
                 .inherit_stdout = true};
  spec.args.push_back("--out=" + out);
  absl::Status status = (*supervisor)->Start(std::move(spec));
  if (status.ok()) status = Finish(supervisor->get(), directory);
  if (!status.ok()) return status;
  return ReadSeriesFile(out);
}

absl::Status BenchHost::StartCluster(Supervisor* supervisor, const BenchPlan& plan,
                                     const std::string& directory) {
  const std::string experiment = directory + "/experiment.textproto";
  absl::Status status = WriteFileWhole(experiment, ExperimentToText(BenchExperiment(plan)));
  if (!status.ok()) return status;
  const auto spec = [&](const std::string& role, const std::string& program, uint32_t rank) {
    ChildSpec child;
    child.name = role == "scheduler" ? role : absl::StrCat(role, " ", rank);
    child.program = absl::StrCat(bin_, "/", program);
    child.log = absl::StrCat(directory, "/logs/", role, "-", rank, ".log");
    child.args = {"--job", "bench", "--log", child.log};
    return child;
  };
  const bool ipc = plan.transport == "ipc";
  const std::string endpoint_file = directory + "/scheduler.endpoint";
  ChildSpec scheduler = spec("scheduler", "parley-scheduler", 0);
  for (const std::string& arg : {std::string("--quiet"), "--experiment=" + experiment,
                                 "--run-dir=" + directory, "--endpoint-file=" + endpoint_file,
                                 ipc ? absl::StrCat("--bind=ipc://", directory, "/scheduler")
                                     : "--bind=tcp://127.0.0.1:0"}) {
    scheduler.args.push_back(arg);
  }
  if (absl::Status s = supervisor->Start(std::move(scheduler)); !s.ok()) return s;
  absl::StatusOr<std::string> endpoint = supervisor->WaitForFile(endpoint_file, kSchedulerStart);
  if (!endpoint.ok()) return endpoint.status();
  for (uint32_t rank = 0; rank < plan.servers; ++rank) {
    ChildSpec server = spec("server", "parley-server", rank);
    server.args.insert(server.args.end(),
                       {"--scheduler", *endpoint, "--rank", absl::StrCat(rank), "--shards",
                        absl::StrCat(plan.shards), "--transport", plan.transport, "--spin-us",
                        absl::StrCat(plan.spin_us)});
    if (ipc) server.args.push_back(absl::StrCat("--bind=ipc://", directory, "/server-", rank));
    if (absl::Status s = supervisor->Start(std::move(server)); !s.ok()) return s;
  }
  for (uint32_t rank = 0; rank < plan.workers; ++rank) {
    ChildSpec worker = spec("worker", "parley-bench-worker", rank);
    worker.inherit_stdout = rank == 0;
    worker.args.insert(worker.args.end(), {"--scheduler", *endpoint, "--rank", absl::StrCat(rank),
                                           "--load", plan.load, "--directory", directory});
    const std::vector<std::string> args = plan.ToArgs();
    worker.args.insert(worker.args.end(), args.begin(), args.end());
    if (absl::Status s = supervisor->Start(std::move(worker)); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::StatusOr<SeriesFile> BenchHost::RunCluster(const BenchPlan& plan) {
  const std::string directory = NextDirectory(plan.load);
  // First of all: from here on a signal is seen, and what has been made is cleaned up.
  absl::StatusOr<std::unique_ptr<Supervisor>> supervisor = Supervisor::Create({});
  if (!supervisor.ok()) return supervisor.status();
  absl::Status status = StartCluster(supervisor->get(), plan, directory);
  // A child that failed says more than the wait for it that was cut short.
  if (status.ok() || absl::IsAborted(status)) status = Finish(supervisor->get(), directory);
  if (!status.ok()) return status;
  return CollectWorkers(plan, directory);
}

absl::StatusOr<SeriesFile> BenchHost::CollectWorkers(const BenchPlan& plan,
                                                     const std::string& directory) {
  std::vector<SeriesFile> workers;
  std::string logs;
  for (uint32_t rank = 0; rank < plan.workers; ++rank) {
    absl::StatusOr<SeriesFile> one = ReadSeriesFile(WorkerResults(directory, rank));
    if (!one.ok()) return one.status();
    workers.push_back(*std::move(one));
    logs += ReadWhole(absl::StrCat(directory, "/logs/worker-", rank, ".log"));
  }
  absl::StatusOr<SeriesFile> all = CombineWorkers(workers);
  if (!all.ok()) return all.status();
  const std::string paths = PathsIn(logs);
  all->notes["path"] = paths.empty() ? plan.transport : paths;
  return all;
}

absl::StatusOr<std::vector<EpochMetrics>> BenchHost::RunExperiment(
    const std::string& file, const std::vector<std::string>& overrides) {
  const std::string directory = NextDirectory("epoch"), run = directory + "/run";
  absl::StatusOr<std::unique_ptr<Supervisor>> supervisor = Supervisor::Create({});
  if (!supervisor.ok()) return supervisor.status();
  ChildSpec spec{.name = "parley run",
                 .program = bin_ + "/parley",
                 .args = {"run", file, "--run-dir", run},
                 .log = directory + "/logs/run.log",
                 .inherit_stdout = true};
  for (const std::string& one : overrides) spec.args.push_back("--set=" + one);
  absl::Status status = (*supervisor)->Start(std::move(spec));
  if (status.ok()) status = Finish(supervisor->get(), run);
  if (!status.ok()) return status;
  return ParseEpochs(ReadWhole(run + "/metrics.jsonl"));
}

}  // namespace parley
