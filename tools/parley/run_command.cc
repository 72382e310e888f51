// parley run: one experiment on this machine, in processes as many as it asks for.
#include <sched.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "ps/config/experiment.h"
#include "scheduler/report/metrics_json.h"
#include "scheduler/report/run_directory.h"
#include "tools/parley/commands.h"
#include "tools/parley/supervisor.h"

namespace parley {
namespace {

namespace fs = std::filesystem;

// A scheduler that has not bound its port by then never will.
constexpr absl::Duration kSchedulerStart = absl::Seconds(10);

// About what waking a sleeping thread takes: spinning longer cannot win more than it may lose.
constexpr int kSpinMicroseconds = 50;

struct RunFlags {
  std::string file, run_dir, transport, metrics_format = "plain";
  std::vector<std::string> overrides;
  uint32_t servers = 0, workers = 0;  // 0: as the file says
  bool quiet = false;
};

// The flags for common fields are overrides like any other, so errors name them by their path.
std::vector<std::string> AllOverrides(const RunFlags& flags) {
  std::vector<std::string> all = flags.overrides;
  if (flags.servers > 0) all.push_back(absl::StrCat("cluster.servers=", flags.servers));
  if (flags.workers > 0) all.push_back(absl::StrCat("cluster.workers=", flags.workers));
  if (!flags.transport.empty()) {
    all.push_back(absl::StrCat("cluster.transport=", absl::AsciiStrToUpper(flags.transport)));
  }
  return all;
}

absl::Status MakeRunDirectory(const std::string& path) {
  std::error_code error;
  fs::create_directories(path + "/logs", error);
  if (!error) return absl::OkStatus();
  return absl::ErrnoToStatus(error.value(),
                             absl::StrCat("run directory '", path, "' cannot be made"));
}

// Makes the directory of this run; a results directory is never written into twice.
absl::StatusOr<std::string> ChooseRunDirectory(const std::string& wanted, const std::string& name) {
  std::error_code error;
  if (!wanted.empty()) {
    if (fs::exists(wanted, error) && !fs::is_empty(wanted, error)) {
      return absl::AlreadyExistsError(
          absl::StrCat("--run-dir ", wanted, ": exists; allowed: a new or empty directory"));
    }
    absl::Status made = MakeRunDirectory(wanted);
    return made.ok() ? absl::StatusOr<std::string>(wanted) : made;
  }
  const std::string stamp = absl::FormatTime("%Y%m%d-%H%M%S", absl::Now(), absl::LocalTimeZone());
  const std::string base = absl::StrCat("runs/", name, "-", stamp);
  std::string path = base;
  // Two runs in one second.
  for (int i = 2; fs::exists(path, error); ++i) path = absl::StrCat(base, "-", i);
  absl::Status made = MakeRunDirectory(path);
  return made.ok() ? absl::StatusOr<std::string>(path) : made;
}

// A short directory for unix sockets, whose paths may have 107 bytes only; gone with this object.
class SocketDirectory {
 public:
  static absl::StatusOr<std::unique_ptr<SocketDirectory>> Create() {
    char path[] = "/tmp/parley-XXXXXX";
    if (mkdtemp(path) == nullptr)
      return absl::ErrnoToStatus(errno, "directory for sockets in /tmp");
    return std::unique_ptr<SocketDirectory>(new SocketDirectory(path));
  }
  ~SocketDirectory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  std::string Endpoint(const std::string& name) const {
    return absl::StrCat("ipc://", path_, "/", name);
  }

 private:
  explicit SocketDirectory(std::string path) : path_(std::move(path)) {}
  const std::string path_;
};

class LocalRun {
 public:
  LocalRun(const RunFlags& flags, const pb::Experiment& experiment, std::string run_dir,
           std::string bin)
      : flags_(flags),
        experiment_(experiment),
        run_dir_(std::move(run_dir)),
        bin_(std::move(bin)) {}

  int Run() {
    absl::Status started = StartAll();
    if (!supervisor_) return Complain(started, kExitFailure);
    // A child that failed says more than the wait for it that was cut short.
    if (!started.ok() && !absl::IsAborted(started)) {
      FillInSummary(std::string(started.message()));
      return Complain(started, kExitFailure);
    }
    const Supervisor::Outcome outcome = supervisor_->Run();
    if (outcome.interrupted) {
      FillInSummary("interrupted");
      return Complain(absl::CancelledError(absl::StrCat("interrupted; run: ", run_dir_)),
                      kExitInterrupted);
    }
    if (!outcome.ok) {
      // The scheduler's account, if it lived to write one.
      absl::StatusOr<std::string> told = ReadSummaryReason(run_dir_ + "/summary.json");
      const std::string cause = DescribeCause(outcome.failures, told.value_or(""));
      FillInSummary(cause);
      return Complain(absl::AbortedError(cause), kExitFailure);
    }
    return kExitOk;
  }

 private:
  absl::Status StartAll() {
    // First of all: from here on a signal is seen, and what has been made is cleaned up.
    absl::StatusOr<std::unique_ptr<Supervisor>> supervisor = Supervisor::Create({});
    if (!supervisor.ok()) return supervisor.status();
    supervisor_ = *std::move(supervisor);
    const pb::Cluster::Transport transport = experiment_.cluster().transport();
    if (transport == pb::Cluster::IPC || transport == pb::Cluster::AUTO) {
      absl::StatusOr<std::unique_ptr<SocketDirectory>> sockets = SocketDirectory::Create();
      if (!sockets.ok()) return sockets.status();
      sockets_ = *std::move(sockets);
    }
    const std::string resolved = run_dir_ + "/experiment.resolved.textproto";
    absl::Status written = WriteFileWhole(resolved, ExperimentToText(experiment_));
    if (!written.ok()) return written;
    const std::string endpoint_file = run_dir_ + "/scheduler.endpoint";
    if (absl::Status s = StartScheduler(resolved, endpoint_file); !s.ok()) return s;
    absl::StatusOr<std::string> endpoint = supervisor_->WaitForFile(endpoint_file, kSchedulerStart);
    if (!endpoint.ok()) return endpoint.status();
    for (uint32_t rank = 0; rank < experiment_.cluster().servers(); ++rank) {
      if (absl::Status s = StartServer(rank, *endpoint); !s.ok()) return s;
    }
    for (uint32_t rank = 0; rank < experiment_.cluster().workers(); ++rank) {
      if (absl::Status s = StartWorker(rank, *endpoint); !s.ok()) return s;
    }
    return absl::OkStatus();
  }

  ChildSpec Spec(const std::string& role, uint32_t rank) const {
    ChildSpec spec;
    spec.name = role == "scheduler" ? role : absl::StrCat(role, " ", rank);
    spec.program = absl::StrCat(bin_, "/parley-", role);
    spec.log = absl::StrCat(run_dir_, "/logs/", role, "-", rank, ".log");
    return spec;
  }

  // Control messages are few and small: they need no shared memory.
  std::string SchedulerBind() const {
    const bool ipc = experiment_.cluster().transport() == pb::Cluster::IPC;
    return ipc ? sockets_->Endpoint("scheduler") : "tcp://127.0.0.1:0";
  }

  // Loops may spin for work before they sleep if there is a core for every thread of the job that
  // is ever busy: else they would take it from one that has work.
  void AddSpin(ChildSpec* spec) const {
    const pb::Cluster& cluster = experiment_.cluster();
    const uint64_t loops =
        1 + uint64_t{cluster.servers()} * cluster.shards_per_server() + uint64_t{cluster.workers()};
    const uint64_t threads = loops + uint64_t{cluster.workers()} * cluster.compute_threads();
    cpu_set_t cores;  // that this process may use, which a container or taskset may have limited
    CPU_ZERO(&cores);
    if (sched_getaffinity(0, sizeof(cores), &cores) != 0) return;
    if (threads > static_cast<uint64_t>(CPU_COUNT(&cores))) return;
    spec->args.insert(spec->args.end(), {"--spin-us", absl::StrCat(kSpinMicroseconds)});
  }

  absl::Status StartScheduler(const std::string& resolved, const std::string& endpoint_file) {
    ChildSpec spec = Spec("scheduler", 0);
    spec.inherit_stdout = true;  // it draws the progress bar
    spec.args = {"--experiment", resolved,           "--run-dir",       run_dir_,
                 "--bind",       SchedulerBind(),    "--endpoint-file", endpoint_file,
                 "--job",        experiment_.name(), "--log",           spec.log};
    if (flags_.metrics_format != "plain") {
      spec.args.insert(spec.args.end(), {"--metrics-format", flags_.metrics_format});
    }
    if (flags_.quiet) spec.args.push_back("--quiet");
    return supervisor_->Start(std::move(spec));
  }

  absl::Status StartServer(uint32_t rank, const std::string& endpoint) {
    ChildSpec spec = Spec("server", rank);
    spec.args = {"--scheduler", endpoint,
                 "--job",       experiment_.name(),
                 "--shards",    absl::StrCat(experiment_.cluster().shards_per_server()),
                 "--rank",      absl::StrCat(rank),
                 "--log",       spec.log};
    const std::string transport = pb::Cluster::Transport_Name(experiment_.cluster().transport());
    spec.args.insert(spec.args.end(), {"--transport", absl::AsciiStrToLower(transport)});
    if (sockets_) {
      const std::string ipc = sockets_->Endpoint(absl::StrCat("server-", rank));
      const bool all = experiment_.cluster().transport() == pb::Cluster::AUTO;
      spec.args.insert(spec.args.end(),
                       {"--bind", all ? absl::StrCat("tcp://127.0.0.1:0,", ipc) : ipc});
    }
    AddSpin(&spec);
    return supervisor_->Start(std::move(spec));
  }

  absl::Status StartWorker(uint32_t rank, const std::string& endpoint) {
    ChildSpec spec = Spec("worker", rank);
    spec.args = {"--scheduler", endpoint,           "--job", experiment_.name(),
                 "--rank",      absl::StrCat(rank), "--log", spec.log};
    AddSpin(&spec);
    return supervisor_->Start(std::move(spec));
  }

  // The scheduler writes summary.json, unless it was what died.
  void FillInSummary(const std::string& reason) {
    const std::string path = run_dir_ + "/summary.json";
    std::error_code error;
    if (fs::exists(path, error)) return;
    RunSummary summary;
    summary.reason = reason;
    WriteFileWhole(path, SummaryJson(experiment_.name(), summary)).IgnoreError();
  }

  const RunFlags& flags_;
  const pb::Experiment& experiment_;
  const std::string run_dir_, bin_;
  std::unique_ptr<SocketDirectory> sockets_;
  std::unique_ptr<Supervisor> supervisor_;  // dies first: sockets outlive those who use them
};

}  // namespace

int RunCommand(const CommandArgs& args) {
  RunFlags run;
  FlagSet flags("parley run", "Trains an experiment with all processes on this machine.");
  flags.Argument("FILE", &run.file, "the experiment, Protobuf text format")
      .Repeated("set", &run.overrides, "A.B=C", "changes a field of the experiment")
      .OptionalNumber("servers", &run.servers, 1, 1024, "short for --set cluster.servers=N")
      .OptionalNumber("workers", &run.workers, 1, 1024, "short for --set cluster.workers=N")
      .Text("run-dir", &run.run_dir, "DIR", "a new or empty directory; else runs/NAME-TIME")
      .Choice("transport", &run.transport, {"auto", "tcp", "ipc", "shm"},
              "short for --set cluster.transport=..")
      .Choice("metrics-format", &run.metrics_format, {"plain", "gradient"},
              "gradient also prints {\"chart\": ..} lines")
      .Switch("quiet", &run.quiet, "prints the results only");
  if (std::optional<int> over = ParseFlags(&flags, args)) return *over;

  absl::StatusOr<pb::Experiment> experiment = LoadExperiment(run.file, AllOverrides(run));
  if (!experiment.ok()) return Complain(experiment.status(), kExitUsage);
  absl::StatusOr<std::string> bin = ProgramDirectory();
  if (!bin.ok()) return Complain(bin.status(), kExitFailure);
  absl::StatusOr<std::string> run_dir = ChooseRunDirectory(run.run_dir, experiment->name());
  if (!run_dir.ok()) {
    return Complain(run_dir.status(),
                    absl::IsAlreadyExists(run_dir.status()) ? kExitUsage : kExitFailure);
  }
  return LocalRun(run, *experiment, *run_dir, *bin).Run();
}

}  // namespace parley
