// parley run: one experiment on this machine, in processes as many as it asks for.
#include <cstdio>
#include <filesystem>
#include <functional>
#include <optional>
#include <system_error>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "ps/base/file_lock.h"
#include "ps/base/file_system.h"
#include "ps/base/loop_env.h"
#include "ps/checkpoint/checkpoint_files.h"
#include "ps/config/experiment.h"
#include "tools/parley/checkpoint_root.h"
#include "tools/parley/commands.h"
#include "tools/parley/keygen_command.h"
#include "tools/parley/local_cluster.h"

namespace parley {
namespace {

namespace fs = std::filesystem;

// Processes of a run that was killed are killed by the kernel, which may take a moment.
constexpr absl::Duration kLastBreath = absl::Seconds(2), kLook = absl::Milliseconds(50);

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

void Say(const RunFlags& flags, const std::string& line) {
  if (flags.quiet) return;
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

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

// Whoever reads the experiment later, in this run's processes or after it, runs elsewhere.
Plan WithAbsolutePaths(Plan plan) {
  const std::string& directory = plan.experiment.checkpoints().directory();
  if (directory.empty()) return plan;  // below the run directory
  std::error_code error;
  const fs::path absolute = fs::absolute(directory, error).lexically_normal();
  if (!error) plan.experiment.mutable_checkpoints()->set_directory(absolute.string());
  return plan;
}

// The experiment of the newest checkpoint that is whole, with the changes of this run.
absl::StatusOr<Plan> PlanToResume(const RunFlags& flags) {
  const std::string root = CheckpointRoot(FileSystem::Posix(), flags.resume);
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
  Say(flags,
      absl::StrFormat("resumes at step %d from %s", found->manifest.step(), found->directory));
  return WithAbsolutePaths({*std::move(experiment), found->directory});
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
  return WithAbsolutePaths({*std::move(experiment), ""});
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

absl::Status CheckKeyFlags(const RunFlags& flags) {
  if (flags.keys.empty() || !flags.secure) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "parley run: --keys ", flags.keys, " and --secure, which makes new ones; allowed: one"));
}

// The directory of the keys, as an absolute path; empty: without. A run that goes on in its own
// directory takes its own.
absl::StatusOr<std::string> ChooseKeys(const RunFlags& flags, const std::string& run_dir) {
  std::string path = flags.keys;
  const std::string own = run_dir + "/keys";
  const bool there = FileSystem::Posix()->Exists(own);
  if (flags.secure) {
    if (!there) {
      if (absl::Status made = MakeClusterKeys(own); !made.ok()) return made;
    }
    path = own;
  } else if (path.empty() && there && SameDirectory(run_dir, flags.resume)) {
    path = own;
    Say(flags, absl::StrCat("uses the keys of the run so far, ", own));
  }
  if (path.empty()) return "";
  std::error_code error;
  const fs::path absolute = fs::absolute(path, error);
  return error ? path : absolute.string();
}

// Whether the lock is held now, and still is when those that were killed must have ended.
absl::StatusOr<bool> IsHeldForLong(const std::string& path) {
  absl::StatusOr<bool> held = false;
  LoopEnv env({.offload_threads = 0});
  const absl::Duration began = env.Now();
  std::function<void()> look = [&] {
    held = FileLock::IsHeld(path);
    if (!held.ok() || !*held || env.Now() - began > kLastBreath) return env.Stop();
    env.After(kLook, look);
  };
  env.Post(look);
  env.Run();
  return held;
}

// For the life of this process, so that no other run begins here; and no scheduler is at it, such
// as one of a `parley run` that was killed, or one by hand.
absl::Status LockRunDirectory(const std::string& run_dir, std::optional<FileLock>* held) {
  const auto taken = [&run_dir](absl::string_view by) {
    return absl::AlreadyExistsError(
        absl::StrCat("parley run: run directory ", run_dir, ": a run goes on there (", by,
                     "); allowed: a new directory, or one whose run has ended"));
  };
  absl::StatusOr<FileLock> lock = FileLock::Take(run_dir + "/lock");
  if (absl::IsUnavailable(lock.status())) return taken("of another parley run");
  if (!lock.ok()) return lock.status();
  held->emplace(*std::move(lock));
  absl::StatusOr<bool> led = IsHeldForLong(run_dir + "/state/lock");
  if (!led.ok()) return led.status();
  return *led ? taken("a scheduler has its state/") : absl::OkStatus();
}

// Of the run before, what would be taken for this one's.
void ClearForResume(const std::string& run_dir) {
  std::error_code ignored;
  for (const char* name : {"/scheduler.endpoint", "/summary.json"}) {
    fs::remove(run_dir + name, ignored);
  }
}

int Run(const RunFlags& run) {
  if (absl::Status keys = CheckKeyFlags(run); !keys.ok()) return Complain(keys, kExitUsage);
  std::optional<FileLock> lock;
  const absl::Cleanup unlock = [&lock] {
    if (lock.has_value()) lock->Remove().IgnoreError();  // a free lock harms nobody
  };
  const auto lock_in = [&lock](const std::string& run_dir) {
    const absl::Status locked = LockRunDirectory(run_dir, &lock);
    if (locked.ok()) return kExitOk;
    return Complain(locked, absl::IsAlreadyExists(locked) ? kExitUsage : kExitFailure);
  };
  // Before a file of the run is touched, which may still go on.
  const bool append = SameDirectory(run.run_dir, run.resume);
  if (append) {
    if (const int code = lock_in(run.run_dir); code != kExitOk) return code;
  }
  absl::StatusOr<Plan> plan = MakePlan(run);
  if (!plan.ok()) return Complain(plan.status(), kExitUsage);
  absl::StatusOr<std::string> bin = ProgramDirectory();
  if (!bin.ok()) return Complain(bin.status(), kExitFailure);
  absl::StatusOr<std::string> run_dir = ChooseRunDirectory(run, plan->experiment.name());
  if (!run_dir.ok()) {
    return Complain(run_dir.status(),
                    absl::IsAlreadyExists(run_dir.status()) ? kExitUsage : kExitFailure);
  }
  if (!append) {
    if (const int code = lock_in(*run_dir); code != kExitOk) return code;
  }
  absl::StatusOr<std::string> keys = ChooseKeys(run, *run_dir);
  if (!keys.ok()) return Complain(keys.status(), kExitUsage);
  LocalCluster::Options options;
  options.keys = *keys;
  options.run_dir = *run_dir;
  options.bin = *std::move(bin);
  options.restore = plan->restore;
  options.append = append;
  if (append) ClearForResume(*run_dir);
  options.spare_servers = run.spare_servers;
  options.spare_workers = run.spare_workers;
  options.max_restarts = run.no_restart ? 0 : run.max_restarts;
  options.progress_ms = run.progress_ms;
  options.metrics_format = run.metrics_format;
  options.quiet = run.quiet;
  return LocalCluster(std::move(options), plan->experiment).Run();
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
  return Run(run);
}

}  // namespace parley
