#include <cstdio>

#include "ps/config/experiment.h"
#include "tools/parley/commands.h"
#include "tools/parley/explain.h"

namespace parley {

int ExplainCommand(const CommandArgs& args) {
  std::string file;
  std::vector<std::string> overrides;
  FlagSet flags("parley explain",
                "Says what an experiment will do: processes, tensors, partitions, bytes per step.");
  flags.Argument("FILE", &file, "the experiment, Protobuf text format")
      .Repeated("set", &overrides, "A.B=C", "changes a field of the experiment");
  if (std::optional<int> over = ParseFlags(&flags, args)) return *over;
  absl::StatusOr<pb::Experiment> experiment = LoadExperiment(file, overrides);
  if (!experiment.ok()) return Complain(experiment.status(), kExitUsage);
  absl::StatusOr<Explanation> explanation = Explain(*experiment);
  if (!explanation.ok()) return Complain(explanation.status(), kExitFailure);
  fputs(ToText(*experiment, *explanation).c_str(), stdout);
  return kExitOk;
}

}  // namespace parley
