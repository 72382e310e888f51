// Checkpoint files: a directory "step-000000000123" with safetensors files and a manifest, that is
// there whole or not at all.
//
// Each server shard writes one file with its partitions into a directory of another name; when all
// are written the scheduler adds the manifest and renames the directory. Blocking: call from
// Env::Offload. Functions keep no state; thread-safe. Errors name file and reason; kDataLoss: what
// is there is not what was written.
#ifndef PARLEY_PS_CHECKPOINT_CHECKPOINT_FILES_H_
#define PARLEY_PS_CHECKPOINT_CHECKPOINT_FILES_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/checkpoint.pb.h"
#include "ps/base/file_system.h"
#include "ps/base/table_state.h"

namespace parley {

inline constexpr uint32_t kCheckpointFormat = 1;

// What one shard, or one worker, has to write.
struct PartitionRecord {
  std::string table_name;
  uint32_t table = 0;
  uint32_t partition = 0;
  TableState state;
  std::string server_state;  // opaque here
};
struct WorkerRecord {
  uint32_t rank = 0;
  TableState state;
};

// Directories in `root`: the one that a checkpoint of this step is written in, and its last name.
std::string PendingDirectory(const std::string& root, uint64_t step);
std::string CheckpointDirectory(const std::string& root, uint64_t step);

// Writes and syncs `directory`/`name`, which ends in ".safetensors".
absl::StatusOr<pb::CheckpointFile> WriteCheckpointFile(FileSystem* files,
                                                       const std::string& directory,
                                                       const std::string& name,
                                                       absl::Span<const PartitionRecord> partitions,
                                                       absl::Span<const WorkerRecord> workers);

// Makes PendingDirectory(root, step) a checkpoint: links the files of earlier steps that it builds
// on (manifest.file(i).step() < step) out of `base`'s directory, writes the manifest, renames.
// Fills in format, written and checksum. Replaces a checkpoint of the same step. Done already, by a
// scheduler that did not live to know it: OK.
absl::Status CommitCheckpoint(FileSystem* files, const std::string& root, const std::string& base,
                              pb::CheckpointManifest manifest);

// Steps of the checkpoints in `root`, ascending, whatever is in them. None if there is no `root`.
absl::StatusOr<std::vector<uint64_t>> ListCheckpoints(FileSystem* files, const std::string& root);

// Where a checkpoint of this step may be, the likelier first: one that was about to be replaced by
// another of the same step when the machine stopped still has another name.
std::vector<std::string> CheckpointDirectories(const std::string& root, uint64_t step);

// For a job that begins: kFailedPrecondition if there are checkpoints in `root`, which it would
// take for its own future and remove.
absl::Status CheckNoCheckpoints(FileSystem* files, const std::string& root);

// The manifest, checked against its own checksum.
absl::StatusOr<pb::CheckpointManifest> ReadManifest(FileSystem* files,
                                                    const std::string& directory);

// Every byte of every file against the manifest. `progress` (may be empty) is told the bytes done.
absl::Status VerifyCheckpoint(FileSystem* files, const std::string& directory,
                              const std::function<void(uint64_t)>& progress);

// The newest checkpoint in `root` that holds what was written; `skipped` gets a line for each newer
// one that does not. kNotFound: there is none. `root` may be a checkpoint's own directory.
struct FoundCheckpoint {
  std::string directory;
  pb::CheckpointManifest manifest;
};
absl::StatusOr<FoundCheckpoint> FindCheckpoint(
    FileSystem* files, const std::string& root,
    const std::function<void(const std::string&)>& skipped);

// The first of these checkpoint's directories that holds what was written, and a line for each
// before it that does not.
struct UsableCheckpoint {
  std::optional<FoundCheckpoint> checkpoint;
  std::vector<std::string> skipped;
  // Not OK: one of those skipped was neither missing nor damaged, as far as can be told: reading
  // failed.
  absl::Status unreachable;
};
UsableCheckpoint FindUsable(FileSystem* files, const std::vector<std::string>& directories);

// A partition as it was saved: for sparse tables all rows, then the changes after them, oldest
// first. Throws std::bad_alloc. kNotFound: the manifest does not have it.
struct SavedPartition {
  std::vector<TableState> states;
  std::string server_state;  // of the newest
};
absl::StatusOr<SavedPartition> ReadPartition(FileSystem* files, const std::string& directory,
                                             const pb::CheckpointManifest& manifest, uint32_t table,
                                             uint32_t partition, BufferPool* pool);
absl::StatusOr<TableState> ReadWorker(FileSystem* files, const std::string& directory,
                                      const pb::CheckpointManifest& manifest, uint32_t rank,
                                      BufferPool* pool);

// Removes all but the newest `keep` checkpoints, and what attempts below the newest left behind.
absl::Status PruneCheckpoints(FileSystem* files, const std::string& root, uint32_t keep);

}  // namespace parley

#endif  // PARLEY_PS_CHECKPOINT_CHECKPOINT_FILES_H_
