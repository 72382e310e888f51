// parley checkpoint list|inspect|verify|export DIR: what a job has left on disk; now: one more.
#ifndef PARLEY_TOOLS_PARLEY_CHECKPOINT_COMMAND_H_
#define PARLEY_TOOLS_PARLEY_CHECKPOINT_COMMAND_H_

#include "tools/parley/commands.h"

namespace parley {

// The arguments after "checkpoint". 1: a checkpoint is not what was written, or the export failed.
// `now` has a running job write one.
int CheckpointCommand(const CommandArgs& args, int (*now)(const CommandArgs& args));

}  // namespace parley

#endif  // PARLEY_TOOLS_PARLEY_CHECKPOINT_COMMAND_H_
