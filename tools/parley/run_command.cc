// parley run: one experiment on this machine, in processes as many as it asks for.
#include <cstdio>
#include <filesystem>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "ps/checkpoint/checkpoint_files.h"
#include "ps/config/experiment.h"
#include "tools/parley/commands.h"
#include "tools/parley/keygen_command.h"
#include "tools/parley/local_cluster.h"

namespace parley {
namespace {

namespace fs = std::filesystem;

struct RunFlags {
  std::string file, run_dir, transport, metrics_format = "plain";
  std::vector<std::string> overrides;
  std::string resume, keys;
  uint32_t servers = 0, workers = 0;  // 0: as the file says
  uint32_t spare_servers = 0, spare_workers = 0, max_restarts = 100, progress_ms = 1000;
  bool no_restart = false, quiet = false, secure = false;
};

// What to train, and from where on.
struct Plan {
  pb::Experiment experiment;
  std::string restore;  // a checkpoint's directory; empty: from the first weights
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

// Where the checkpoints are that belong to `path`: a run directory, a directory of checkpoints or
// one of them.
std::string CheckpointsOf(const std::string& path) {
  std::error_code error;
  if (fs::is_directory(path + "/checkpoints", error)) return path + "/checkpoints";
  const std::string resolved = path + "/experiment.resolved.textproto";
  if (!fs::exists(resolved, error)) return path;
  absl::StatusOr<pb::Experiment> experiment = LoadExperiment(resolved);
  const bool elsewhere = experiment.ok() && !experiment->checkpoints().directory().empty();
  return elsewhere ? experiment->checkpoints().directory() : path + "/checkpoints";
}

// The experiment of the newest checkpoint that is whole, with the changes of this run.
absl::StatusOr<Plan> PlanToResume(const RunFlags& flags) {
  const std::string root = CheckpointsOf(flags.resume);
  absl::StatusOr<FoundCheckpoint> found =
      FindCheckpoint(FileSystem::Posix(), root,
                     [](const std::string& line) { std::printf("%s\n", line.c_str()); });
  if (!found.ok()) {
    return absl::Status(found.status().code(),
                        absl::StrCat("--resume ", flags.resume, ": ", found.status().message(),
                                     "; allowed: a run directory with checkpoints, a directory of "
                                     "checkpoints, or one of them"));
  }
  absl::StatusOr<pb::Experiment> experiment =
      LoadExperimentText(ExperimentToText(found->manifest.experiment()),
                         found->directory + "/manifest.json", AllOverrides(flags));
  if (!experiment.ok()) return experiment.status();
  if (!flags.quiet) {
    absl::PrintF("resumes at step %d from %s\n", found->manifest.step(), found->directory);
    std::fflush(stdout);
  }
  return Plan{*std::move(experiment), found->directory};
}

absl::StatusOr<Plan> MakePlan(const RunFlags& flags) {
  if (flags.file.empty() == flags.resume.empty()) {
    return absl::InvalidArgumentError(
        flags.file.empty()
            ? "parley run: FILE is missing: the experiment, Protobuf text format, or --resume DIR; "
              "see parley run --help"
            : absl::StrCat("parley run: FILE ", flags.file, " and --resume ", flags.resume,
                           ": a checkpoint has its experiment with it; allowed: one of them, and "
                           "--set"));
  }
  if (!flags.resume.empty()) return PlanToResume(flags);
  absl::StatusOr<pb::Experiment> experiment = LoadExperiment(flags.file, AllOverrides(flags));
  if (!experiment.ok()) return experiment.status();
  return Plan{*std::move(experiment), ""};
}

bool SameDirectory(const std::string& a, const std::string& b) {
  std::error_code error;
  return !a.empty() && !b.empty() && fs::equivalent(a, b, error);
}

absl::Status MakeRunDirectory(const std::string& path) {
  std::error_code error;
  fs::create_directories(path + "/logs", error);
  if (!error) return absl::OkStatus();
  return absl::ErrnoToStatus(error.value(),
                             absl::StrCat("run directory '", path, "' cannot be made"));
}

// Makes the directory of this run; a results directory is never written into twice, unless its run
// goes on there.
absl::StatusOr<std::string> ChooseRunDirectory(const RunFlags& flags, const std::string& name) {
  const std::string& wanted = flags.run_dir;
  std::error_code error;
  if (!wanted.empty()) {
    if (fs::exists(wanted, error) && !fs::is_empty(wanted, error) &&
        !SameDirectory(wanted, flags.resume)) {
      return absl::AlreadyExistsError(
          absl::StrCat("--run-dir ", wanted, ": exists; allowed: a new or empty directory",
                       flags.resume.empty() ? "" : ", or the one of --resume"));
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

// The directory of the keys, as an absolute path; empty: without. A run that goes on takes its own.
absl::StatusOr<std::string> ChooseKeys(const RunFlags& flags, const std::string& run_dir) {
  if (!flags.keys.empty() && flags.secure) {
    return absl::InvalidArgumentError(absl::StrCat(
        "parley run: --keys ", flags.keys, " and --secure, which makes new ones; allowed: one"));
  }
  if (flags.keys.empty() && !flags.secure) return "";
  const std::string path = flags.secure ? run_dir + "/keys" : flags.keys;
  std::error_code error;
  if (flags.secure && !fs::exists(path, error)) {
    if (absl::Status made = MakeClusterKeys(path); !made.ok()) return made;
  }
  const fs::path absolute = fs::absolute(path, error);
  return error ? path : absolute.string();
}

// Of the run before, what would be taken for this one's.
void ClearForResume(const std::string& run_dir) {
  std::error_code ignored;
  for (const char* name : {"/scheduler.endpoint", "/summary.json"}) {
    fs::remove(run_dir + name, ignored);
  }
}

}  // namespace

int RunCommand(const CommandArgs& args) {
  RunFlags run;
  FlagSet flags("parley run", "Trains an experiment with all processes on this machine.");
  flags.OptionalArgument("FILE", &run.file, "the experiment, Protobuf text format")
      .Repeated("set", &run.overrides, "A.B=C", "changes a field of the experiment")
      .OptionalNumber("servers", &run.servers, 1, 1024, "short for --set cluster.servers=N")
      .OptionalNumber("workers", &run.workers, 1, 1024, "short for --set cluster.workers=N")
      .Number("spare-servers", &run.spare_servers, 0, 64,
              "server processes that wait to take the place of others")
      .Number("spare-workers", &run.spare_workers, 0, 64,
              "worker processes that wait to take the place of others")
      .Text("resume", &run.resume, "DIR",
            "in place of FILE: goes on from the newest checkpoint of this run directory, or of "
            "this directory of checkpoints, or from this one")
      .Text("run-dir", &run.run_dir, "DIR",
            "a new or empty directory, or that of --resume; else runs/NAME-TIME")
      .Number("max-restarts", &run.max_restarts, 0, 1000000,
              "how often each process is started again when it dies")
      .Switch("no-restart", &run.no_restart, "the first death ends the job: --max-restarts 0")
      .Number("progress-ms", &run.progress_ms, 0, 3600000,
              "least milliseconds between two lines of progress in metrics.jsonl")
      .Choice("transport", &run.transport, {"auto", "tcp", "ipc", "shm"},
              "short for --set cluster.transport=..")
      .Choice("metrics-format", &run.metrics_format, {"plain", "gradient"},
              "gradient also prints {\"chart\": ..} lines")
      .Text("keys", &run.keys, "DIR", "encrypts tcp with these keys (parley keygen)")
      .Switch("secure", &run.secure, "makes keys for this run in RUNDIR/keys, and uses them")
      .Switch("quiet", &run.quiet, "prints the results only");
  if (std::optional<int> over = ParseFlags(&flags, args)) return *over;

  absl::StatusOr<Plan> plan = MakePlan(run);
  if (!plan.ok()) return Complain(plan.status(), kExitUsage);
  absl::StatusOr<std::string> bin = ProgramDirectory();
  if (!bin.ok()) return Complain(bin.status(), kExitFailure);
  absl::StatusOr<std::string> run_dir = ChooseRunDirectory(run, plan->experiment.name());
  if (!run_dir.ok()) {
    return Complain(run_dir.status(),
                    absl::IsAlreadyExists(run_dir.status()) ? kExitUsage : kExitFailure);
  }
  absl::StatusOr<std::string> keys = ChooseKeys(run, *run_dir);
  if (!keys.ok()) return Complain(keys.status(), kExitUsage);
  LocalCluster::Options options;
  options.keys = *keys;
  options.run_dir = *run_dir;
  options.bin = *std::move(bin);
  options.restore = plan->restore;
  options.append = SameDirectory(*run_dir, run.resume);
  if (options.append) ClearForResume(*run_dir);
  options.spare_servers = run.spare_servers;
  options.spare_workers = run.spare_workers;
  options.max_restarts = run.no_restart ? 0 : run.max_restarts;
  options.progress_ms = run.progress_ms;
  options.metrics_format = run.metrics_format;
  options.quiet = run.quiet;
  return LocalCluster(std::move(options), plan->experiment).Run();
}

}  // namespace parley
