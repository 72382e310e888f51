// The directory of checkpoints: what is in it under which name, and how that changes.
//
//   pending-N    being written               step-N     a checkpoint
//   replaced-N   a step-N that another one is about to take the place of
//   abandoned-N  a step-N from which the job went back, when it has come to a checkpoint again
//   removed-N    what is being removed
//
// A rename is the only thing that makes or unmakes a step-N.
#include "ps/checkpoint/checkpoint_files.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "ps/checkpoint/manifest.h"

namespace parley {
namespace {

constexpr char kStep[] = "step-", kPending[] = "pending-", kReplaced[] = "replaced-",
               kAbandoned[] = "abandoned-", kRemoved[] = "removed-";

std::string Name(const char* kind, uint64_t step) { return absl::StrFormat("%s%012u", kind, step); }

std::string In(const std::string& root, const char* kind, uint64_t step) {
  return absl::StrCat(root, "/", Name(kind, step));
}

// Steps of the names of one kind, ascending.
using StepsByKind = std::map<std::string, std::set<uint64_t>>;
absl::StatusOr<StepsByKind> ListAll(FileSystem* files, const std::string& root) {
  StepsByKind all;
  if (!files->Exists(root)) return all;
  absl::StatusOr<std::vector<std::string>> names = files->List(root);
  if (!names.ok()) return names.status();
  for (const std::string& name : *names) {
    for (const char* kind : {kStep, kPending, kReplaced, kAbandoned, kRemoved}) {
      uint64_t step = 0;
      absl::string_view number = name;
      if (absl::ConsumePrefix(&number, kind) && absl::SimpleAtoi(number, &step) &&
          Name(kind, step) == name) {
        all[kind].insert(step);
      }
    }
  }
  return all;
}

// The name of a file of an earlier step in the directories of later ones, where a file of the
// same writer may have its own.
std::string LinkedName(const std::string& name, uint64_t step) {
  const std::string suffix = absl::StrCat(".", Name(kStep, step), ".safetensors");
  if (absl::EndsWith(name, suffix)) return name;
  return absl::StrCat(absl::StripSuffix(name, ".safetensors"), suffix);
}

// Gives the files of earlier steps their names in `pending`, and the manifest.
absl::Status LinkEarlier(FileSystem* files, const std::string& base, const std::string& pending,
                         pb::CheckpointManifest* manifest) {
  for (pb::CheckpointFile& file : *manifest->mutable_file()) {
    if (file.step() >= manifest->step()) continue;
    const std::string linked = LinkedName(file.name(), file.step());
    std::string source = absl::StrCat(base, "/", linked);
    // In the checkpoint that wrote it, it has its first name.
    if (!files->Exists(source)) source = absl::StrCat(base, "/", file.name());
    const std::string target = absl::StrCat(pending, "/", linked);
    if (absl::Status status = files->Remove(target); !status.ok()) return status;
    if (absl::Status status = files->Link(source, target); !status.ok()) return status;
    file.set_name(linked);
  }
  return absl::OkStatus();
}

// All files are there, and no others.
absl::Status TidyPending(FileSystem* files, const std::string& pending,
                         const pb::CheckpointManifest& manifest) {
  std::set<std::string> expected;
  for (const pb::CheckpointFile& file : manifest.file()) {
    const std::string path = absl::StrCat(pending, "/", file.name());
    absl::StatusOr<uint64_t> size = files->Size(path);
    if (!size.ok()) return size.status();
    if (*size != file.bytes()) {
      return absl::DataLossError(
          absl::StrCat("'", path, "' has ", *size, " bytes; expected ", file.bytes()));
    }
    expected.insert(file.name());
  }
  absl::StatusOr<std::vector<std::string>> names = files->List(pending);
  if (!names.ok()) return names.status();
  for (const std::string& name : *names) {
    if (expected.count(name) != 0) continue;
    absl::Status status = files->Remove(absl::StrCat(pending, "/", name));
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// step-N is there, of these very files.
bool IsCommitted(FileSystem* files, const std::string& root,
                 const pb::CheckpointManifest& manifest) {
  const std::string directory = In(root, kStep, manifest.step());
  if (!files->Exists(directory)) return false;
  absl::StatusOr<pb::CheckpointManifest> there = ReadManifest(files, directory);
  if (!there.ok() || there->file_size() != manifest.file_size()) return false;
  // Those that this step wrote, in the order in which servers answered: never the same twice.
  const auto written = [step = manifest.step()](const pb::CheckpointManifest& of) {
    std::map<std::string, std::string> found;
    for (const pb::CheckpointFile& file : of.file()) {
      if (file.step() == step) found[file.name()] = file.SerializeAsString();
    }
    return found;
  };
  if (written(*there) != written(manifest)) return false;
  return VerifyCheckpoint(files, directory, nullptr).ok();
}

// step-N becomes what pending-N is. Wherever this ends, one of step-N and replaced-N is whole.
absl::Status TakePlace(FileSystem* files, const std::string& root, uint64_t step) {
  const std::string name = In(root, kStep, step), old = In(root, kReplaced, step);
  const bool replaces = files->Exists(name);
  if (replaces) {
    if (absl::Status status = files->Remove(old); !status.ok()) return status;
    if (absl::Status status = files->Rename(name, old); !status.ok()) return status;
    if (absl::Status status = files->SyncDirectory(root); !status.ok()) return status;
  }
  if (absl::Status status = files->Rename(In(root, kPending, step), name); !status.ok()) {
    if (replaces) files->Rename(old, name).IgnoreError();  // the first error is the one to tell
    return status;
  }
  if (absl::Status status = files->SyncDirectory(root); !status.ok()) return status;
  return files->Remove(old);
}

// pending-N with its manifest becomes step-N.
absl::Status Install(FileSystem* files, const std::string& root, const std::string& base,
                     pb::CheckpointManifest manifest) {
  const std::string pending = In(root, kPending, manifest.step());
  manifest.set_format(kCheckpointFormat);
  manifest.set_written(absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::Now(), absl::UTCTimeZone()));
  absl::Status status = LinkEarlier(files, base, pending, &manifest);
  if (status.ok()) status = TidyPending(files, pending, manifest);
  if (!status.ok()) return status;
  absl::StatusOr<std::string> text = ManifestText(manifest);
  if (!text.ok()) return text.status();
  status = files->WriteWhole(absl::StrCat(pending, "/", kManifestName), *text);
  return status.ok() ? TakePlace(files, root, manifest.step()) : status;
}

}  // namespace

std::string PendingDirectory(const std::string& root, uint64_t step) {
  return In(root, kPending, step);
}

std::string CheckpointDirectory(const std::string& root, uint64_t step) {
  return In(root, kStep, step);
}

std::vector<std::string> CheckpointDirectories(const std::string& root, uint64_t step) {
  return {In(root, kStep, step), In(root, kReplaced, step)};
}

absl::Status CommitCheckpoint(FileSystem* files, const std::string& root, const std::string& base,
                              pb::CheckpointManifest manifest) {
  const uint64_t step = manifest.step();
  absl::Status status = IsCommitted(files, root, manifest)
                            ? files->Remove(In(root, kPending, step))
                            : Install(files, root, base, std::move(manifest));
  if (!status.ok()) return status;

  // The job went back to below these, or it would not come by here: they are not its past any more.
  absl::StatusOr<StepsByKind> all = ListAll(files, root);
  if (!all.ok()) return all.status();
  bool renamed = false;
  const std::set<uint64_t>& steps = (*all)[kStep];
  for (auto later = steps.upper_bound(step); later != steps.end(); ++later) {
    const std::string to = In(root, kAbandoned, *later);
    if (absl::Status removed = files->Remove(to); !removed.ok()) return removed;
    status = files->Rename(In(root, kStep, *later), to);
    if (!status.ok()) return status;
    renamed = true;
  }
  return renamed ? files->SyncDirectory(root) : absl::OkStatus();
}

absl::StatusOr<std::vector<uint64_t>> ListCheckpoints(FileSystem* files, const std::string& root) {
  absl::StatusOr<StepsByKind> all = ListAll(files, root);
  if (!all.ok()) return all.status();
  const std::set<uint64_t>& steps = (*all)[kStep];
  return std::vector<uint64_t>(steps.begin(), steps.end());
}

absl::Status CheckNoCheckpoints(FileSystem* files, const std::string& root) {
  absl::StatusOr<StepsByKind> all = ListAll(files, root);
  if (!all.ok()) return all.status();
  for (const char* kind : {kStep, kReplaced}) {
    const std::set<uint64_t>& steps = (*all)[kind];
    if (steps.empty()) continue;
    return absl::FailedPreconditionError(absl::StrFormat(
        "checkpoints.directory '%s' has checkpoints of another run, up to step %d; allowed: a "
        "directory without, or to go on from them (parley run --resume, parley-scheduler "
        "--restore)",
        root, *steps.rbegin()));
  }
  return absl::OkStatus();
}

UsableCheckpoint FindUsable(FileSystem* files, const std::vector<std::string>& directories) {
  UsableCheckpoint found;
  for (const std::string& directory : directories) {
    absl::Status status = VerifyCheckpoint(files, directory, nullptr);
    absl::StatusOr<pb::CheckpointManifest> manifest =
        status.ok() ? ReadManifest(files, directory) : status;
    if (manifest.ok()) {
      found.checkpoint = FoundCheckpoint{directory, *std::move(manifest)};
      break;
    }
    status = manifest.status();
    if (!files->Exists(directory)) continue;
    found.skipped.push_back(
        absl::StrCat("checkpoint '", directory, "' is not used: ", status.message()));
    if (!absl::IsDataLoss(status) && !absl::IsNotFound(status)) found.unreachable = status;
  }
  return found;
}

absl::StatusOr<FoundCheckpoint> FindCheckpoint(
    FileSystem* files, const std::string& root,
    const std::function<void(const std::string&)>& skipped) {
  std::vector<std::string> candidates;  // newest first
  if (files->Exists(absl::StrCat(root, "/", kManifestName))) {
    candidates.push_back(root);
  } else {
    absl::StatusOr<StepsByKind> all = ListAll(files, root);
    if (!all.ok()) return all.status();
    std::set<uint64_t> steps = (*all)[kStep];
    steps.insert((*all)[kReplaced].begin(), (*all)[kReplaced].end());
    for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
      for (const char* kind : {kStep, kReplaced}) {
        if ((*all)[kind].count(*step) != 0) candidates.push_back(In(root, kind, *step));
      }
    }
  }
  UsableCheckpoint found = FindUsable(files, candidates);
  for (const std::string& line : found.skipped) {
    if (skipped) skipped(line);
  }
  if (found.checkpoint.has_value()) return *std::move(found.checkpoint);
  return absl::NotFoundError(absl::StrCat(
      "no checkpoint in '", root, "'",
      candidates.empty() ? ""
                         : absl::StrCat(" holds what was written; there are ", candidates.size())));
}

absl::Status PruneCheckpoints(FileSystem* files, const std::string& root, uint32_t keep) {
  absl::StatusOr<StepsByKind> all = ListAll(files, root);
  if (!all.ok()) return all.status();
  const std::set<uint64_t>& steps = (*all)[kStep];
  if (steps.empty()) return absl::OkStatus();
  const uint64_t newest = *steps.rbegin();
  auto kept = steps.end();
  for (uint32_t i = 0; i < std::max(keep, 1u) && kept != steps.begin(); ++i) --kept;

  std::vector<std::string> doomed;
  bool renamed = false;
  for (auto step = steps.begin(); step != kept; ++step) {
    // First the name goes, so that a checkpoint that is removed in part is none.
    doomed.push_back(In(root, kRemoved, *step));
    if (absl::Status status = files->Remove(doomed.back()); !status.ok()) return status;
    absl::Status status = files->Rename(In(root, kStep, *step), doomed.back());
    if (!status.ok()) return status;
    renamed = true;
  }
  if (renamed) {
    if (absl::Status status = files->SyncDirectory(root); !status.ok()) return status;
  }
  for (const uint64_t step : (*all)[kRemoved]) doomed.push_back(In(root, kRemoved, step));
  for (const uint64_t step : (*all)[kPending]) {
    // One of the newest step may be on its way to replace it.
    if (step < newest) doomed.push_back(In(root, kPending, step));
  }
  for (const char* kind : {kReplaced, kAbandoned}) {
    for (const uint64_t step : (*all)[kind]) {
      if (step <= newest) doomed.push_back(In(root, kind, step));
    }
  }
  for (const std::string& path : doomed) {
    if (absl::Status status = files->Remove(path); !status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace parley
