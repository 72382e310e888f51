// Where a user's checkpoints are: one answer for all commands.
#ifndef PARLEY_TOOLS_PARLEY_CHECKPOINT_ROOT_H_
#define PARLEY_TOOLS_PARLEY_CHECKPOINT_ROOT_H_

#include <string>

#include "ps/base/file_system.h"

namespace parley {

// The directory of the checkpoints that belong to `path`. Of a run directory it is where its
// experiment has them, else its checkpoints/; a directory of checkpoints, a single checkpoint, and
// what is none of these, are given back as they are. A run that was resumed with another
// `checkpoints.directory` has both: the experiment's counts once there is a checkpoint in it.
//
// A relative directory in the experiment is from where this program runs. `parley run` writes
// absolute ones.
std::string CheckpointRoot(FileSystem* files, const std::string& path);

// Whether the path is that of one checkpoint, whole or not.
bool IsOneCheckpoint(FileSystem* files, const std::string& path);

}  // namespace parley

#endif  // PARLEY_TOOLS_PARLEY_CHECKPOINT_ROOT_H_
