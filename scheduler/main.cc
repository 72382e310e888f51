// parley-scheduler: admits nodes, watches them, and leaves the record of the run.
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "ps/config/experiment.h"
#include "ps/config/flags.h"
#include "ps/net/process.h"
#include "ps/net/zmq_transport.h"
#include "scheduler/report/observers.h"
#include "scheduler/report/run_directory.h"
#include "scheduler/report/terminal_report.h"
#include "scheduler/scheduler_node.h"

namespace parley {
namespace {

constexpr char kProgram[] = "parley-scheduler";

struct Flags {
  std::string experiment, run_dir, job, log, endpoint_file, bind = "tcp://127.0.0.1:0";
  std::string metrics_format = "plain";
  std::vector<std::string> set;
  bool quiet = false;
};

FlagSet MakeFlagSet(Flags* flags) {
  FlagSet set(kProgram, "Admits nodes, gives them their work, watches them and records the run.");
  set.Required("experiment", &flags->experiment, "FILE", "the experiment, Protobuf text format")
      .Repeated("set", &flags->set, "A.B=C", "override a field of the experiment")
      .Required("run-dir", &flags->run_dir, "DIR", "where the record of the run goes")
      .Text("job", &flags->job, "NAME", "name of this run; else the experiment's name")
      .Text("bind", &flags->bind, "ENDPOINT",
            "where to listen: tcp://HOST:PORT with an address, hostname, interface or CIDR block "
            "and 0 for any free port, or ipc:///path")
      .Text("endpoint-file", &flags->endpoint_file, "FILE",
            "write the endpoint with its real port here")
      .Choice("metrics-format", &flags->metrics_format, {"plain", "gradient"},
              "gradient: also print {\"chart\": ...} lines")
      .Switch("quiet", &flags->quiet, "print the results only")
      .Text("log", &flags->log, "FILE", "append the log here; else stderr");
  return set;
}

// What outlives the node: the observers it reports to.
struct Reports {
  std::unique_ptr<RunDirectory> directory;
  std::unique_ptr<TerminalReport> terminal;
  std::unique_ptr<Observers> all;
};

// Hands events on to the log as well.
class LogReport : public RunObserver {
 public:
  explicit LogReport(NodeProcess* process) : process_(process) {}
  void OnStart(const std::string& job, const pb::Experiment&) override {
    process_->Log(absl::StrCat("scheduler of job ", job));
  }
  void OnEvent(const std::string& line) override { process_->Log(line); }
  void OnProgress(const RunProgress&) override {}
  void OnEpoch(const EpochMetrics& metrics) override {
    process_->Log(absl::StrCat("epoch ", metrics.epoch + 1, " done at step ", metrics.step));
  }
  void OnFinish(const RunSummary& summary) override {
    process_->Log(summary.ok ? "the job is done"
                             : absl::StrCat("the job failed: ", summary.reason));
  }

 private:
  NodeProcess* const process_;
};

absl::Status AddScheduler(NodeProcess* process, const Flags& flags,
                          const pb::Experiment& experiment, LogReport* log, Reports* reports) {
  return process->AddNode(
      {.offload_threads = 0},
      [&](LoopEnv* env) -> absl::StatusOr<std::unique_ptr<Transport>> {
        ZmqTransport::Options options;
        options.self = kSchedulerNode;
        options.bind = flags.bind;
        options.log = [process](const std::string& line) { process->Log(line); };
        absl::StatusOr<std::unique_ptr<ZmqTransport>> transport =
            ZmqTransport::Create(env, std::move(options));
        if (!transport.ok()) return transport.status();
        // Only now, so that a scheduler that cannot listen leaves an earlier run's record alone.
        ReportClock now = [env] { return env->Now(); };
        absl::StatusOr<std::unique_ptr<RunDirectory>> directory =
            RunDirectory::Create(flags.run_dir, now);
        if (!directory.ok()) return directory.status();
        reports->directory = *std::move(directory);
        TerminalOptions terminal = StandardOutputOptions();
        terminal.gradient = flags.metrics_format == "gradient";
        terminal.quiet = flags.quiet;
        terminal.run_dir = flags.run_dir;
        reports->terminal = std::make_unique<TerminalReport>(terminal, now);
        reports->all = std::make_unique<Observers>(
            std::vector<RunObserver*>{log, reports->directory.get(), reports->terminal.get()});
        if (!flags.endpoint_file.empty()) {
          absl::Status status =
              WriteFileWhole(flags.endpoint_file, absl::StrCat((*transport)->endpoint(), "\n"));
          if (!status.ok()) return status;
        }
        return *std::move(transport);
      },
      [&](const NodeProcess::Seat& seat) {
        SchedulerNode::Options options;
        options.job = flags.job.empty() ? experiment.name() : flags.job;
        options.experiment = experiment;
        return NodeProcess::Hold(std::make_shared<SchedulerNode>(
            seat.env, seat.transport, std::move(options), reports->all.get(), seat.done));
      });
}

int Main(int argc, char** argv) {
  Flags flags;
  FlagSet set = MakeFlagSet(&flags);
  if (std::optional<int> code = set.ParseForMain(argc, argv)) return *code;
  absl::StatusOr<pb::Experiment> experiment = LoadExperiment(flags.experiment, flags.set);
  if (!experiment.ok()) {
    std::fprintf(stderr, "%s\n", std::string(experiment.status().message()).c_str());
    return 2;
  }
  absl::StatusOr<std::unique_ptr<NodeProcess>> process =
      NodeProcess::Create({.program = kProgram, .log_file = flags.log});
  if (!process.ok()) return NodeProcess::Complain(kProgram, process.status());
  LogReport log(process->get());
  Reports reports;
  absl::Status status = AddScheduler(process->get(), flags, *experiment, &log, &reports);
  if (!status.ok()) return NodeProcess::Complain(kProgram, status);
  const int code = (*process)->Run();
  if (!reports.directory->status().ok()) {
    return NodeProcess::Complain(kProgram, reports.directory->status());
  }
  return code;
}

}  // namespace
}  // namespace parley

int main(int argc, char** argv) { return parley::Main(argc, argv); }
