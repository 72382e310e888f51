// What a checkpoint's tables are to somebody who does not know partitions: whole tensors by name,
// rows by key. Blocking; for the command. Memory: what is exported, once or twice.
#ifndef PARLEY_TOOLS_PARLEY_CHECKPOINT_EXPORT_H_
#define PARLEY_TOOLS_PARLEY_CHECKPOINT_EXPORT_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ps/checkpoint/checkpoint_files.h"

namespace parley {

struct ExportedTensor {
  std::string name;
  pb::StateArray array;  // dtype and shape
  Buffer bytes;
};

// Dense tables: their tensors by name, the table's name in front where two tables share one. Sparse
// tables: "<table>.keys", ascending, and "<table>.rows", changes applied. With `slots` also what
// the optimizer keeps: "<name>.slot0" and so on. Errors name table and partition.
absl::StatusOr<std::vector<ExportedTensor>> ExportTensors(FileSystem* files,
                                                          const FoundCheckpoint& checkpoint,
                                                          bool slots);

// One file, there whole or not at all.
absl::Status WriteSafetensors(FileSystem* files, const std::string& path,
                              const std::vector<ExportedTensor>& tensors);
// A directory with a file for each tensor, "<name>.npy", '/' in names as '_'. numpy has no BF16:
// those are F32 there.
absl::Status WriteNpy(FileSystem* files, const std::string& directory,
                      const std::vector<ExportedTensor>& tensors);

}  // namespace parley

#endif  // PARLEY_TOOLS_PARLEY_CHECKPOINT_EXPORT_H_
