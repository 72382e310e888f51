// parley-scheduler: admits nodes, watches them, and leaves the record of the run.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/scheduler.pb.h"
#include "ps/base/loop_env.h"
#include "ps/config/experiment.h"
#include "ps/config/flags.h"
#include "ps/net/node_name.h"
#include "ps/net/process.h"
#include "ps/net/security.h"
#include "ps/net/zmq_transport.h"
#include "scheduler/disk_store.h"
#include "scheduler/etcd_store.h"
#include "scheduler/report/metrics_json.h"
#include "scheduler/report/observers.h"
#include "scheduler/report/run_directory.h"
#include "scheduler/report/terminal_report.h"
#include "scheduler/scheduler_node.h"

namespace parley {
namespace {

constexpr char kProgram[] = "parley-scheduler";
constexpr char kEtcd[] = "etcd://";

// Of the loop: state is saved, and a lease kept alive, while a checkpoint is being read.
constexpr int kOffloadThreads = 3;

struct Flags {
  std::string experiment, run_dir, job, log, endpoint_file, bind = "tcp://127.0.0.1:0";
  std::string state, restore, keys;
  std::string metrics_format = "plain";
  std::vector<std::string> set;
  uint32_t progress_ms = 1000;
  uint32_t max_connections = 4096;
  bool append = false, anew = false, restarted = false, quiet = false, insecure = false;
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
      .Text("state", &flags->state, "DIR|etcd://HOST:PORT",
            "where to keep what a restarted scheduler goes on from, until the job is over; if "
            "something is there, the job goes on; else RUN-DIR/state")
      .Text("restore", &flags->restore, "DIR",
            "begin from this checkpoint, or the newest of this directory that is whole")
      .Number("progress-ms", &flags->progress_ms, 0, 3600000,
              "least milliseconds between two lines of progress in metrics.jsonl")
      .Switch("append", &flags->append, "add to the record in RUN-DIR, do not replace it")
      .Switch("anew", &flags->anew,
              "forget what is in --state, unless that is a job which another scheduler has led "
              "until now")
      .Switch(
          "restarted", &flags->restarted,
          "started in the place of one that died: end at once if RUN-DIR says how the job ended")
      .Choice("metrics-format", &flags->metrics_format, {"plain", "gradient"},
              "gradient: also print {\"chart\": ...} lines")
      .Text("keys", &flags->keys, "DIR",
            "encrypt, and let in only keys that DIR/authorized has (parley keygen); else neither")
      .Switch("insecure", &flags->insecure,
              "listen where other machines reach it, without keys; as cluster.insecure")
      .Number("max-connections", &flags->max_connections, 1, 1000000,
              "connections that others may have to it: each node has one")
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

// The place where this scheduler's state is, and what was found there.
struct State {
  std::unique_ptr<OffloadedStore> store;
  EtcdStore* etcd = nullptr;  // the store, if it is one
  bool found = false;
  NodeProcess* process = nullptr;  // once there is one

  // With `anew` nothing is found, but what another scheduler has led until now. kCancelled: that
  // one has led it to its end.
  absl::Status Open(bool anew);

 private:
  absl::Status OpenOnce();
  bool Waited() const { return etcd != nullptr && !etcd->waited_for().empty(); }
};

// On a loop of its own: whether to go on with a job decides what is made next, and a scheduler that
// waits for another's end is not to listen meanwhile.
absl::Status State::OpenOnce() {
  absl::StatusOr<std::optional<std::string>> result = absl::UnknownError("");
  {
    LoopEnv env({.offload_threads = 1});
    store->Attach(&env);
    env.Post([&] {
      store->Open([&](absl::StatusOr<std::optional<std::string>> opened) {
        result = std::move(opened);
        env.Stop();
      });
    });
    env.Run();
  }
  found = result.ok() && result->has_value();
  pb::SchedulerState state;
  if (found && Waited() && state.ParseFromString(**result) && state.ended()) {
    // It came to its end and died before it could clear up.
    absl::Status cleared = store->Forget();
    if (!cleared.ok()) return cleared;
    return absl::CancelledError(absl::StrCat(
        "job '", state.job(), "' is over: ", etcd->waited_for(), " led it to its end"));
  }
  return result.status();
}

absl::Status State::Open(bool anew) {
  absl::Status status = OpenOnce();
  const bool torn = absl::IsDataLoss(status);  // of no use, and all the less in the way
  if (!(status.ok() ? found : torn) || !anew || Waited()) return status;
  if (status = store->Forget(); !status.ok()) return status;
  return OpenOnce();
}

// An absolute path: servers may run elsewhere.
std::string Absolute(const std::string& path) {
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(path, error);
  return error ? path : absolute.lexically_normal().string();
}

void MakeDiskStore(const Flags& flags, State* state) {
  DiskStore::Options options;
  options.directory = flags.state.empty() ? flags.run_dir + "/state" : flags.state;
  state->store = std::make_unique<DiskStore>(std::move(options));
}

absl::Status MakeEtcdStore(const Flags& flags, const std::string& job, State* state) {
  absl::StatusOr<std::vector<std::string>> addresses = EtcdClient::ParseAddresses(flags.state);
  if (!addresses.ok()) return addresses.status();
  EtcdStore::Options options;
  options.addresses = *std::move(addresses);
  options.job = job;
  options.self = HostAndPid();
  options.log = [state](const std::string& line) {
    if (state->process != nullptr) return state->process->Log(line);
    std::fprintf(stderr, "%s: %s\n", kProgram, line.c_str());  // waiting, with no log yet
  };
  // Another may lead by now: not a word to anybody, and at once.
  options.on_lost = [state](const absl::Status& status) {
    if (state->process != nullptr) state->process->Log(std::string(status.message()));
    std::_Exit(NodeProcess::Complain(kProgram, status));
  };
  auto store = std::make_unique<EtcdStore>(std::move(options));
  state->etcd = store.get();
  state->store = std::move(store);
  return absl::OkStatus();
}

absl::Status OpenReports(const Flags& flags, LoopEnv* env, bool goes_on, LogReport* log,
                         Reports* reports) {
  ReportClock now = [env] { return env->Now(); };
  absl::StatusOr<std::unique_ptr<RunDirectory>> directory =
      goes_on ? RunDirectory::Continue(flags.run_dir, now)
              : RunDirectory::Create(flags.run_dir, now);
  if (!directory.ok()) return directory.status();
  reports->directory = *std::move(directory);
  reports->directory->set_progress_every(absl::Milliseconds(flags.progress_ms));
  TerminalOptions terminal = StandardOutputOptions();
  terminal.gradient = flags.metrics_format == "gradient";
  terminal.quiet = flags.quiet;
  terminal.run_dir = flags.run_dir;
  reports->terminal = std::make_unique<TerminalReport>(terminal, now);
  reports->all = std::make_unique<Observers>(
      std::vector<RunObserver*>{log, reports->directory.get(), reports->terminal.get()});
  return absl::OkStatus();
}

// Parts of the process that outlive its node.
struct Scheduler {
  const Flags& flags;
  const pb::Experiment& experiment;
  const std::string job;
  std::shared_ptr<const NodeKeys> keys;  // null: without
  State state;
  Reports reports;
  SchedulerNode* node = nullptr;  // the process holds it
  bool owns_state = false;        // when the node was done
};

absl::Status AddScheduler(NodeProcess* process, LogReport* log, Scheduler* scheduler) {
  const Flags& flags = scheduler->flags;
  return process->AddNode(
      {.offload_threads = kOffloadThreads},
      [&](LoopEnv* env) -> absl::StatusOr<std::unique_ptr<Transport>> {
        ZmqTransport::Options options;
        options.self = kSchedulerNode;
        options.bind = flags.bind;
        options.keys = scheduler->keys;
        options.insecure = flags.insecure || scheduler->experiment.cluster().insecure();
        options.max_connections = static_cast<int>(flags.max_connections);
        options.log = [process](const std::string& line) { process->Log(line); };
        absl::StatusOr<std::unique_ptr<ZmqTransport>> transport =
            ZmqTransport::Create(env, std::move(options));
        if (!transport.ok()) return transport.status();
        // Only now, so that a scheduler that cannot listen leaves an earlier run's record alone.
        State* state = &scheduler->state;
        if (state->store == nullptr) {
          MakeDiskStore(flags, state);
          if (absl::Status status = state->Open(flags.anew); !status.ok()) return status;
        }
        state->store->Attach(env);
        absl::Status status =
            OpenReports(flags, env, state->found || flags.append, log, &scheduler->reports);
        if (status.ok() && !flags.endpoint_file.empty()) {
          status =
              WriteFileWhole(flags.endpoint_file, absl::StrCat((*transport)->endpoint(), "\n"));
        }
        if (!status.ok()) return status;
        return *std::move(transport);
      },
      [&](const NodeProcess::Seat& seat) {
        SchedulerNode::Options options;
        options.job = scheduler->job;
        options.experiment = scheduler->experiment;
        options.store = scheduler->state.store.get();
        const std::string& directory = scheduler->experiment.checkpoints().directory();
        options.checkpoint_root =
            Absolute(directory.empty() ? flags.run_dir + "/checkpoints" : directory);
        if (!flags.restore.empty()) options.restore = Absolute(flags.restore);
        options.progress_period =
            std::clamp(absl::Milliseconds(flags.progress_ms), absl::Milliseconds(10),
                       SchedulerNode::Options().progress_period);
        auto node = std::make_shared<SchedulerNode>(
            seat.env, seat.transport, std::move(options), scheduler->reports.all.get(),
            [scheduler, done = seat.done](absl::Status status) {
              scheduler->owns_state = scheduler->node->owns_state();
              done(std::move(status));
            });
        scheduler->node = node.get();
        return NodeProcess::Hold(std::move(node));
      });
}

// How the job ended that is not led any more, as far as the record says: the exit code for it.
std::optional<int> RecordedEnd(const Flags& flags) {
  absl::StatusOr<std::string> reason = ReadSummaryReason(flags.run_dir + "/summary.json");
  if (!reason.ok()) return std::nullopt;
  if (reason->empty()) return 0;
  return NodeProcess::Complain(kProgram, absl::AbortedError(*reason));
}

int Run(const Flags& flags, const pb::Experiment& experiment) {
  Scheduler scheduler{.flags = flags,
                      .experiment = experiment,
                      .job = flags.job.empty() ? experiment.name() : flags.job,
                      .keys = nullptr,
                      .state = {},
                      .reports = {}};
  if (absl::Status status = UseKeys(flags.keys, PeerRole::kScheduler, &scheduler.keys);
      !status.ok()) {
    return NodeProcess::Complain(kProgram, status);
  }
  State& state = scheduler.state;
  if (absl::StartsWith(flags.state, kEtcd)) {
    absl::Status status = MakeEtcdStore(flags, scheduler.job, &state);
    if (!status.ok()) {
      NodeProcess::Complain(kProgram, status);
      return 2;
    }
    // Signals still end the process while it waits.
    status = state.Open(flags.anew);
    if (absl::IsCancelled(status)) {
      std::fprintf(stderr, "%s: %s\n", kProgram, std::string(status.message()).c_str());
      return RecordedEnd(flags).value_or(0);
    }
    if (!status.ok()) return NodeProcess::Complain(kProgram, status);
  }
  int code = 0;
  {
    absl::StatusOr<std::unique_ptr<NodeProcess>> process = NodeProcess::Create(
        {.program = kProgram, .log_file = flags.log, .on_user_signal = [&scheduler] {
           scheduler.node->RequestCheckpoint();
         }});
    if (!process.ok()) return NodeProcess::Complain(kProgram, process.status());
    state.process = process->get();
    LogReport log(process->get());
    absl::Status status = AddScheduler(process->get(), &log, &scheduler);
    if (!status.ok()) return NodeProcess::Complain(kProgram, status);
    code = (*process)->Run();
    state.process = nullptr;
  }
  // The job is over: nobody goes on with it. What is not this job's stays.
  if (scheduler.owns_state) {
    absl::Status status = state.store->Forget();
    if (!status.ok() && code == 0) return NodeProcess::Complain(kProgram, status);
  }
  if (!scheduler.reports.directory->status().ok()) {
    return NodeProcess::Complain(kProgram, scheduler.reports.directory->status());
  }
  return code;
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
  // It died when all was done.
  if (flags.restarted) {
    if (std::optional<int> code = RecordedEnd(flags)) return *code;
  }
  return Run(flags, *experiment);
}

}  // namespace
}  // namespace parley

int main(int argc, char** argv) { return parley::Main(argc, argv); }
