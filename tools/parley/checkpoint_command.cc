#include "tools/parley/checkpoint_command.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "ps/checkpoint/checkpoint_files.h"
#include "ps/config/suggest.h"
#include "tools/parley/checkpoint_export.h"
#include "tools/parley/checkpoint_root.h"

namespace parley {
namespace {

constexpr char kHelp[] =
    "usage: parley checkpoint COMMAND [flags] DIR\n\n"
    "  list DIR       what checkpoints there are, and whether they are whole\n"
    "  inspect DIR    tables, tensors and files of one\n"
    "  verify DIR     reads every byte; exit code 1 if any is not what was written\n"
    "  export DIR     writes the tensors to a file or directory for other programs\n"
    "  now RUNDIR     has a running job write one; the same as parley save\n\n"
    "DIR: a run directory, a directory of checkpoints, or one checkpoint.\n"
    "parley checkpoint COMMAND --help tells more.\n";

std::string Size(uint64_t bytes) {
  constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB"};
  if (bytes < 1024) return absl::StrCat(bytes, " B");
  double size = static_cast<double>(bytes) / 1024;
  int unit = 0;
  for (; size >= 1024 && unit < 3; ++unit) size /= 1024;
  return absl::StrFormat("%.1f %s", size, kUnits[unit]);
}

std::string Age(const std::string& written) {
  absl::Time time;
  if (!absl::ParseTime(absl::RFC3339_full, written, &time, nullptr)) return "?";
  const absl::Duration age = std::max(absl::Now() - time, absl::ZeroDuration());
  if (age < absl::Minutes(2)) return absl::StrCat(absl::ToInt64Seconds(age), " s");
  if (age < absl::Hours(2)) return absl::StrCat(absl::ToInt64Minutes(age), " min");
  if (age < absl::Hours(48)) return absl::StrCat(absl::ToInt64Hours(age), " h");
  return absl::StrCat(absl::ToInt64Hours(age) / 24, " days");
}

uint64_t TotalBytes(const pb::CheckpointManifest& manifest) {
  uint64_t bytes = 0;
  for (const pb::CheckpointFile& file : manifest.file()) bytes += file.bytes();
  return bytes;
}

FileSystem* Files() { return FileSystem::Posix(); }

std::string BaseName(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path.substr(path.rfind('/') + 1);  // npos + 1 is 0
}

// The directories of the checkpoints that `path` is, or holds, ascending.
absl::StatusOr<std::vector<std::string>> CheckpointsIn(const std::string& path,
                                                       std::optional<uint32_t> step) {
  const auto none = [](const std::string& where, absl::string_view why) {
    return absl::NotFoundError(absl::StrCat("'", where, "' ", why,
                                            "; allowed: a run directory with checkpoints, a "
                                            "directory of checkpoints, or one of them"));
  };
  if (!Files()->Exists(path)) return none(path, "does not exist");
  if (IsOneCheckpoint(Files(), path)) {
    if (step.has_value()) {
      return absl::InvalidArgumentError("--step with one checkpoint; allowed: with several");
    }
    return std::vector<std::string>{path};
  }
  const std::string root = CheckpointRoot(Files(), path);
  absl::StatusOr<std::vector<uint64_t>> steps = ListCheckpoints(Files(), root);
  if (!steps.ok()) return steps.status();
  if (steps->empty()) return none(root, "has no checkpoint");
  std::vector<std::string> directories;
  for (const uint64_t found : *steps) {
    if (!step.has_value() || *step == found) {
      directories.push_back(CheckpointDirectory(root, found));
    }
  }
  if (directories.empty()) {
    return absl::NotFoundError(
        absl::StrCat("--step ", *step, ": '", root,
                     "' has none of this step; allowed: ", absl::StrJoin(*steps, ", ")));
  }
  return directories;
}

int List(const CommandArgs& args) {
  std::string path;
  FlagSet flags("parley checkpoint list",
                "Lists checkpoints, and reads every byte of them to see whether they are whole.");
  flags.Argument("DIR", &path, "a run directory, a directory of checkpoints, or one of them");
  if (std::optional<int> over = ParseFlags(&flags, args)) return *over;
  absl::StatusOr<std::vector<std::string>> directories = CheckpointsIn(path, std::nullopt);
  if (!directories.ok()) return Complain(directories.status(), kExitUsage);
  absl::PrintF("%12s  %8s  %10s  %-8s  %s\n", "step", "age", "size", "rows", "whole");
  for (const std::string& directory : *directories) {
    absl::StatusOr<pb::CheckpointManifest> manifest = ReadManifest(Files(), directory);
    if (!manifest.ok()) {
      absl::PrintF("%12s  no: %s\n", BaseName(directory), manifest.status().message());
      continue;
    }
    const absl::Status whole = VerifyCheckpoint(Files(), directory, nullptr);
    const std::string answer = whole.ok() ? "yes" : absl::StrCat("no: ", whole.message());
    absl::PrintF("%12d  %8s  %10s  %-8s  %s\n", manifest->step(), Age(manifest->written()),
                 Size(TotalBytes(*manifest)), manifest->chain() == 0 ? "all" : "changes", answer);
  }
  return kExitOk;
}

void PrintTable(const pb::CheckpointManifest& manifest, const pb::TableSpec& table) {
  std::set<uint32_t> partitions;
  std::map<std::string, uint64_t> arrays;  // bytes by name
  for (const pb::CheckpointFile& file : manifest.file()) {
    for (const pb::CheckpointPartition& saved : file.partition()) {
      if (saved.table() != table.id()) continue;
      partitions.insert(saved.partition());
      for (const pb::StateArray& array : saved.state().array()) {
        uint64_t bytes = 0;
        if (ArrayBytes(array, &bytes).ok()) arrays[array.name()] += bytes;
      }
    }
  }
  absl::PrintF("table '%s': %s, %d partitions\n", table.name(),
               table.has_sparse() ? absl::StrCat("rows of ", table.sparse().dim()) : "dense",
               partitions.size());
  for (const auto& [name, bytes] : arrays) absl::PrintF("  %-28s %s\n", name, Size(bytes));
  for (const pb::TensorSpec& tensor : table.tensor()) {
    absl::PrintF("  tensor %-28s [%s]\n", tensor.name(), absl::StrJoin(tensor.shape(), ", "));
  }
}

int Inspect(const CommandArgs& args) {
  std::string path;
  std::optional<uint32_t> step;
  FlagSet flags("parley checkpoint inspect", "Says what is in a checkpoint.");
  flags.Argument("DIR", &path, "as of list; of several the newest")
      .MaybeNumber("step", &step, 0, 4294967295, "the one of this step");
  if (std::optional<int> over = ParseFlags(&flags, args)) return *over;
  absl::StatusOr<std::vector<std::string>> directories = CheckpointsIn(path, step);
  if (!directories.ok()) return Complain(directories.status(), kExitUsage);
  absl::StatusOr<pb::CheckpointManifest> manifest = ReadManifest(Files(), directories->back());
  if (!manifest.ok()) return Complain(manifest.status(), kExitFailure);
  absl::PrintF("%s\njob %s, step %d, epoch %d, %d workers, written %s\n", directories->back(),
               manifest->job(), manifest->step(), manifest->data_epoch(), manifest->workers(),
               manifest->written());
  for (const pb::TableSpec& table : manifest->table()) PrintTable(*manifest, table);
  for (const pb::CheckpointFile& file : manifest->file()) {
    absl::PrintF("file %-40s %10s, %d partitions, %d workers, of step %d\n", file.name(),
                 Size(file.bytes()), file.partition_size(), file.worker_size(), file.step());
  }
  return kExitOk;
}

// With a line that moves, where somebody watches.
absl::Status VerifyWatched(const std::string& directory) {
  absl::StatusOr<pb::CheckpointManifest> manifest = ReadManifest(Files(), directory);
  if (!manifest.ok()) return manifest.status();
  const uint64_t total = TotalBytes(*manifest);
  const bool watched = isatty(STDERR_FILENO) != 0;
  int shown = -1;
  absl::Status status = VerifyCheckpoint(Files(), directory, [&](uint64_t done) {
    const int percent = total == 0 ? 100 : static_cast<int>(done * 100.0 / total);
    if (!watched || percent == shown) return;
    shown = percent;
    absl::FPrintF(stderr, "\r%s: %3d%% of %s", BaseName(directory), percent, Size(total));
  });
  if (shown >= 0) absl::FPrintF(stderr, "\r%60s\r", "");
  return status;
}

int Verify(const CommandArgs& args) {
  std::string path;
  std::optional<uint32_t> step;
  FlagSet flags("parley checkpoint verify",
                "Reads every byte of checkpoints and says whether it is what was written.");
  flags.Argument("DIR", &path, "as of list")
      .MaybeNumber("step", &step, 0, 4294967295, "only the one of this step");
  if (std::optional<int> over = ParseFlags(&flags, args)) return *over;
  absl::StatusOr<std::vector<std::string>> directories = CheckpointsIn(path, step);
  if (!directories.ok()) return Complain(directories.status(), kExitUsage);
  int code = kExitOk;
  for (const std::string& directory : *directories) {
    const absl::Status status = VerifyWatched(directory);
    if (status.ok()) {
      absl::PrintF("%s: OK\n", directory);
    } else {
      code = Complain(status, kExitFailure);
    }
  }
  return code;
}

int Export(const CommandArgs& args) {
  std::string path, out, format = "safetensors";
  std::optional<uint32_t> step;
  bool slots = false;
  FlagSet flags("parley checkpoint export",
                "Writes the tensors of a checkpoint for other programs; sparse tables as keys and "
                "rows.");
  flags.Argument("DIR", &path, "as of list; of several the newest that is whole")
      .Required("out", &out, "PATH", "a file, or with npy a directory")
      .Choice("format", &format, {"safetensors", "npy"}, "what is written")
      .Switch("slots", &slots, "also what the optimizer keeps of each weight")
      .MaybeNumber("step", &step, 0, 4294967295, "the one of this step");
  if (std::optional<int> over = ParseFlags(&flags, args)) return *over;
  absl::StatusOr<std::vector<std::string>> directories = CheckpointsIn(path, step);
  if (!directories.ok()) return Complain(directories.status(), kExitUsage);
  FoundCheckpoint found;
  for (; !directories->empty() && found.directory.empty(); directories->pop_back()) {
    absl::Status status = VerifyWatched(directories->back());
    absl::StatusOr<pb::CheckpointManifest> manifest =
        status.ok() ? ReadManifest(Files(), directories->back()) : status;
    if (manifest.ok()) {
      found = {directories->back(), *std::move(manifest)};
    } else {
      Complain(manifest.status(), kExitFailure);
    }
  }
  if (found.directory.empty()) return kExitFailure;
  absl::StatusOr<std::vector<ExportedTensor>> tensors = ExportTensors(Files(), found, slots);
  if (!tensors.ok()) return Complain(tensors.status(), kExitFailure);
  const absl::Status written =
      format == "npy" ? WriteNpy(Files(), out, *tensors) : WriteSafetensors(Files(), out, *tensors);
  if (!written.ok()) return Complain(written, kExitFailure);
  absl::PrintF("%s: %d tensors of step %d\n", out, tensors->size(), found.manifest.step());
  return kExitOk;
}

}  // namespace

int CheckpointCommand(const CommandArgs& args, int (*now)(const CommandArgs& args)) {
  const std::vector<std::pair<std::string, int (*)(const CommandArgs&)>> commands = {
      {"list", List}, {"inspect", Inspect}, {"verify", Verify}, {"export", Export}, {"now", now}};
  const std::string name = args.empty() ? "" : args.front();
  if (name.empty() || name == "--help" || name == "-h") {
    fputs(kHelp, name.empty() ? stderr : stdout);
    return name.empty() ? kExitUsage : kExitOk;
  }
  std::vector<std::string> names;
  for (const auto& [known, run] : commands) {
    if (name == known) return run(CommandArgs(args.begin() + 1, args.end()));
    names.push_back(known);
  }
  return Complain(absl::InvalidArgumentError(absl::StrCat(
                      "unknown command 'checkpoint ", name, "'", DidYouMean(name, names),
                      "; allowed: ", absl::StrJoin(names, ", "))),
                  kExitUsage);
}

}  // namespace parley
