// parley: the command that people type. Dispatches to subcommands.
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "ps/config/suggest.h"
#include "tools/parley/checkpoint_command.h"
#include "tools/parley/commands.h"

namespace parley {
namespace {

constexpr char kVersion[] = "0.1.0";

struct Command {
  const char* name;
  const char* arguments;
  const char* help;
  int (*run)(const CommandArgs& args);
};

int HelpCommand(const CommandArgs& args);

int VersionCommand(const CommandArgs& args) {
  FlagSet flags("parley version", "Prints the version.");
  if (std::optional<int> over = ParseFlags(&flags, args)) return *over;
  std::printf("parley %s\n", kVersion);
  return kExitOk;
}

constexpr Command kCommands[] = {
    {"run", "FILE", "train an experiment, all processes on this machine", RunCommand},
    {"train", "--local FILE", "train in this process, with no servers", TrainCommand},
    {"validate", "FILE", "check an experiment and print every error in it", ValidateCommand},
    {"explain", "FILE", "say what will run where, and how many bytes a step takes", ExplainCommand},
    {"bench", "SUITE", "measure a cluster on this machine beside the machine's limits",
     BenchCommand},
    {"resize", "--servers N RUNDIR", "move a running job to more servers, or to fewer",
     ResizeCommand},
    {"save", "RUNDIR", "have a running job write a checkpoint now", SaveCommand},
    {"checkpoint", "COMMAND DIR", "list, inspect, verify, export what a run has saved; now: save",
     [](const CommandArgs& args) { return CheckpointCommand(args, CheckpointNowCommand); }},
    {"keygen", "--out DIR", "make keys, for clusters whose network is not trusted", KeygenCommand},
    {"plot", "RUNDIR", "draw a run's curves.svg anew", PlotCommand},
    {"help", "", "this text", HelpCommand},
    {"version", "", "print the version", VersionCommand},
};

int HelpCommand(const CommandArgs& args) {
  FlagSet flags("parley help", "Prints what commands there are.");
  if (std::optional<int> over = ParseFlags(&flags, args)) return *over;
  std::printf("usage: parley COMMAND [arguments]\n\n");
  for (const Command& command : kCommands) {
    std::printf("  %-26s %s\n", absl::StrCat(command.name, " ", command.arguments).c_str(),
                command.help);
  }
  std::printf("\nparley COMMAND --help tells more.\n");
  return kExitOk;
}

int Main(int argc, char** argv) {
  CommandArgs args(argv + 1, argv + argc);
  if (args.empty()) {
    HelpCommand(args);
    return kExitUsage;
  }
  std::string name = args.front();
  args.erase(args.begin());
  if (name == "--help" || name == "-h") name = "help";
  if (name == "--version") name = "version";
  std::vector<std::string> names;
  for (const Command& command : kCommands) {
    if (name == command.name) return command.run(args);
    names.push_back(command.name);
  }
  return Complain(absl::InvalidArgumentError(
                      absl::StrCat("unknown command '", name, "'", DidYouMean(name, names),
                                   "; allowed: ", absl::StrJoin(names, ", "))),
                  kExitUsage);
}

}  // namespace
}  // namespace parley

int main(int argc, char** argv) { return argc > 0 ? parley::Main(argc, argv) : 2; }
