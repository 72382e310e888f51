#include "tools/parley/local_cluster.h"

#include <sched.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "ps/config/experiment.h"
#include "scheduler/report/metrics_json.h"
#include "scheduler/report/run_directory.h"
#include "tools/parley/commands.h"

namespace parley {
namespace {

namespace fs = std::filesystem;

// A scheduler that has not bound its port by then never will.
constexpr absl::Duration kSchedulerStart = absl::Seconds(10);

// About what waking a sleeping thread takes: spinning longer cannot win more than it may lose.
constexpr int kSpinMicroseconds = 50;

}  // namespace

// A short directory for unix sockets, whose paths may have 107 bytes only; gone with this object.
class LocalCluster::SocketDirectory {
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

LocalCluster::LocalCluster(Options options, const pb::Experiment& experiment)
    : options_(std::move(options)), experiment_(experiment) {}
LocalCluster::~LocalCluster() = default;

int LocalCluster::Run() {
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
    return Complain(absl::CancelledError(absl::StrCat("interrupted; run: ", options_.run_dir)),
                    kExitInterrupted);
  }
  if (!outcome.ok) {
    // The scheduler's account, if it lived to write one.
    absl::StatusOr<std::string> told = ReadSummaryReason(options_.run_dir + "/summary.json");
    const std::string cause = DescribeCause(outcome.failures, told.value_or(""));
    FillInSummary(cause);
    return Complain(absl::AbortedError(cause), kExitFailure);
  }
  return kExitOk;
}

absl::Status LocalCluster::StartAll() {
  // First of all: from here on a signal is seen, and what has been made is cleaned up.
  Supervisor::Options watch;
  watch.max_restarts = options_.max_restarts;
  watch.tell = [this](const std::string& line) { Tell(line); };
  absl::StatusOr<std::unique_ptr<Supervisor>> supervisor = Supervisor::Create(std::move(watch));
  if (!supervisor.ok()) return supervisor.status();
  supervisor_ = *std::move(supervisor);
  const pb::Cluster& cluster = experiment_.cluster();
  if (cluster.transport() == pb::Cluster::IPC || cluster.transport() == pb::Cluster::AUTO) {
    absl::StatusOr<std::unique_ptr<SocketDirectory>> sockets = SocketDirectory::Create();
    if (!sockets.ok()) return sockets.status();
    sockets_ = *std::move(sockets);
  }
  const std::string resolved = options_.run_dir + "/experiment.resolved.textproto";
  absl::Status written = WriteFileWhole(resolved, ExperimentToText(experiment_));
  if (!written.ok()) return written;
  const std::string endpoint_file = options_.run_dir + "/scheduler.endpoint";
  if (absl::Status s = StartScheduler(resolved, endpoint_file); !s.ok()) return s;
  absl::StatusOr<std::string> endpoint = supervisor_->WaitForFile(endpoint_file, kSchedulerStart);
  if (!endpoint.ok()) return endpoint.status();
  std::vector<std::string> again = SchedulerArgs(resolved, endpoint_file, *endpoint);
  again.push_back("--restarted");
  supervisor_->SetLeaderArgs(std::move(again));
  for (uint32_t i = 0; i < cluster.servers() + options_.spare_servers; ++i) {
    if (absl::Status s = StartServer(i, *endpoint); !s.ok()) return s;
  }
  for (uint32_t i = 0; i < cluster.workers() + options_.spare_workers; ++i) {
    if (absl::Status s = StartWorker(i, *endpoint); !s.ok()) return s;
  }
  return absl::OkStatus();
}

ChildSpec LocalCluster::Spec(const std::string& role, uint32_t index) const {
  ChildSpec spec;
  spec.name = role == "scheduler" ? role : absl::StrCat(role, " ", index);
  spec.program = absl::StrCat(options_.bin, "/parley-", role);
  spec.log = absl::StrCat(options_.run_dir, "/logs/", role, "-", index, ".log");
  return spec;
}

// Control messages are few and small: they need no shared memory.
std::string LocalCluster::SchedulerBind() const {
  const bool ipc = experiment_.cluster().transport() == pb::Cluster::IPC;
  return ipc ? sockets_->Endpoint("scheduler") : "tcp://127.0.0.1:0";
}

// Loops may spin for work before they sleep if there is a core for every thread of the job that
// is ever busy: else they would take it from one that has work.
void LocalCluster::AddSpin(ChildSpec* spec) const {
  const pb::Cluster& cluster = experiment_.cluster();
  const uint64_t servers = uint64_t{cluster.servers()} + options_.spare_servers;
  const uint64_t workers = uint64_t{cluster.workers()} + options_.spare_workers;
  const uint64_t loops = 1 + servers * cluster.shards_per_server() + workers;
  const uint64_t threads = loops + workers * cluster.compute_threads();
  cpu_set_t cores;  // that this process may use, which a container or taskset may have limited
  CPU_ZERO(&cores);
  if (sched_getaffinity(0, sizeof(cores), &cores) != 0) return;
  if (threads > static_cast<uint64_t>(CPU_COUNT(&cores))) return;
  spec->args.insert(spec->args.end(), {"--spin-us", absl::StrCat(kSpinMicroseconds)});
}

std::vector<std::string> LocalCluster::SchedulerArgs(const std::string& resolved,
                                                     const std::string& endpoint_file,
                                                     const std::string& bind) const {
  std::vector<std::string> args = {"--experiment",     resolved,      "--run-dir",
                                   options_.run_dir,   "--bind",      bind,
                                   "--endpoint-file",  endpoint_file, "--job",
                                   experiment_.name(), "--log",       Spec("scheduler", 0).log};
  const auto add = [&args](std::initializer_list<std::string> more) {
    args.insert(args.end(), more);
  };
  if (!options_.restore.empty()) add({"--restore", options_.restore});
  if (!options_.keys.empty()) add({"--keys", options_.keys});
  if (options_.append) add({"--append"});
  if (options_.progress_ms != Options().progress_ms) {
    add({"--progress-ms", absl::StrCat(options_.progress_ms)});
  }
  if (options_.metrics_format != "plain") add({"--metrics-format", options_.metrics_format});
  if (options_.quiet) add({"--quiet"});
  return args;
}

absl::Status LocalCluster::StartScheduler(const std::string& resolved,
                                          const std::string& endpoint_file) {
  ChildSpec spec = Spec("scheduler", 0);
  spec.inherit_stdout = true;  // it draws the progress bar
  spec.args = SchedulerArgs(resolved, endpoint_file, SchedulerBind());
  // The job before this one is not gone on with; this one is, should its scheduler die.
  if (options_.append) spec.args.push_back("--anew");
  return supervisor_->Start(std::move(spec));
}

absl::Status LocalCluster::StartServer(uint32_t index, const std::string& endpoint) {
  const pb::Cluster& cluster = experiment_.cluster();
  ChildSpec spec = Spec("server", index);
  spec.args = {"--scheduler", endpoint,
               "--job",       experiment_.name(),
               "--shards",    absl::StrCat(cluster.shards_per_server()),
               "--log",       spec.log};
  if (!options_.keys.empty()) spec.args.insert(spec.args.end(), {"--keys", options_.keys});
  AddPlace(index, cluster.servers(), &spec);
  const std::string transport = pb::Cluster::Transport_Name(cluster.transport());
  spec.args.insert(spec.args.end(), {"--transport", absl::AsciiStrToLower(transport)});
  if (sockets_) {
    const std::string ipc = sockets_->Endpoint(absl::StrCat("server-", index));
    const bool all = cluster.transport() == pb::Cluster::AUTO;
    spec.args.insert(spec.args.end(),
                     {"--bind", all ? absl::StrCat("tcp://127.0.0.1:0,", ipc) : ipc});
  }
  AddSpin(&spec);
  return supervisor_->Start(std::move(spec));
}

absl::Status LocalCluster::StartWorker(uint32_t index, const std::string& endpoint) {
  ChildSpec spec = Spec("worker", index);
  spec.args = {"--scheduler", endpoint, "--job", experiment_.name(), "--log", spec.log};
  if (!options_.keys.empty()) spec.args.insert(spec.args.end(), {"--keys", options_.keys});
  AddPlace(index, experiment_.cluster().workers(), &spec);
  AddSpin(&spec);
  return supervisor_->Start(std::move(spec));
}

// The rank to ask for, or none.
void LocalCluster::AddPlace(uint32_t index, uint32_t places, ChildSpec* spec) {
  if (index < places) {
    spec->args.insert(spec->args.end(), {"--rank", absl::StrCat(index)});
  } else {
    spec->args.push_back("--spare");
  }
}

// Over the scheduler's progress bar, if there is one.
void LocalCluster::Tell(const std::string& line) const {
  if (options_.quiet) return;
  std::printf("%s%s\n", isatty(STDOUT_FILENO) ? "\r\x1b[K" : "", line.c_str());
  std::fflush(stdout);
}

// The scheduler writes summary.json, unless it was what died.
void LocalCluster::FillInSummary(const std::string& reason) {
  const std::string path = options_.run_dir + "/summary.json";
  std::error_code error;
  if (fs::exists(path, error)) return;
  RunSummary summary;
  summary.reason = reason;
  WriteFileWhole(path, SummaryJson(experiment_.name(), summary)).IgnoreError();
}

}  // namespace parley
