// The subcommands of `parley`. Each takes the arguments after its name, writes to stdout and stderr
// and returns the exit code: 0 ok, 1 failure, 2 usage or configuration, 130 interrupted.
#ifndef PARLEY_TOOLS_PARLEY_COMMANDS_H_
#define PARLEY_TOOLS_PARLEY_COMMANDS_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "ps/config/flags.h"

namespace parley {

inline constexpr int kExitOk = 0, kExitFailure = 1, kExitUsage = 2, kExitInterrupted = 130;

using CommandArgs = std::vector<std::string>;

int RunCommand(const CommandArgs& args);       // parley run FILE: starts everything on this machine
int TrainCommand(const CommandArgs& args);     // parley train --local FILE: in this process
int ValidateCommand(const CommandArgs& args);  // parley validate FILE
int ExplainCommand(const CommandArgs& args);   // parley explain FILE: what will run where
int BenchCommand(const CommandArgs& args);     // parley bench SUITE: what the data plane reaches
int ResizeCommand(const CommandArgs& args);    // parley resize --servers N RUNDIR: while it trains
int SaveCommand(const CommandArgs& args);      // parley save RUNDIR: a checkpoint now
int CheckpointNowCommand(const CommandArgs& args);  // parley checkpoint now RUNDIR: the same
int KeygenCommand(const CommandArgs& args);         // parley keygen --out DIR: keys for --keys
int PlotCommand(const CommandArgs& args);           // parley plot RUNDIR: draws curves.svg anew

// Shared by the commands. Parses; an exit code means that the command is over (help or an error was
// printed).
std::optional<int> ParseFlags(FlagSet* flags, const CommandArgs& args);

// Prints the message on stderr, a line each with "parley: " in front, unless it names its command
// already ("parley run: ..."); returns `exit_code`.
int Complain(const absl::Status& status, int exit_code);

}  // namespace parley

#endif  // PARLEY_TOOLS_PARLEY_COMMANDS_H_
