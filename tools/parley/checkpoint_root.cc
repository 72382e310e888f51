#include "tools/parley/checkpoint_root.h"

#include <filesystem>

#include "absl/strings/match.h"
#include "ps/checkpoint/checkpoint_files.h"
#include "ps/config/experiment.h"

namespace parley {

bool IsOneCheckpoint(FileSystem* files, const std::string& path) {
  // One without its manifest is still one, and what is wrong with it is to be said.
  const std::filesystem::path normal = std::filesystem::path(path + "/").lexically_normal();
  return absl::StartsWith(normal.parent_path().filename().string(), "step-") ||
         files->Exists(path + "/manifest.json");
}

std::string CheckpointRoot(FileSystem* files, const std::string& path) {
  if (IsOneCheckpoint(files, path)) return path;
  const std::string own = path + "/checkpoints";
  const std::string resolved = path + "/experiment.resolved.textproto";
  if (files->Exists(resolved)) {
    absl::StatusOr<pb::Experiment> experiment = LoadExperiment(resolved);
    const std::string named = experiment.ok() ? experiment->checkpoints().directory() : "";
    if (named.empty()) return own;
    absl::StatusOr<std::vector<uint64_t>> steps = ListCheckpoints(files, named);
    // Errors of what cannot be listed are for whoever reads it to tell.
    const bool used = !steps.ok() || !steps->empty();
    return used || !files->Exists(own) ? named : own;
  }
  return files->Exists(own) ? own : path;
}

}  // namespace parley
