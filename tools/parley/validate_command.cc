#include <cstdio>

#include "absl/strings/str_format.h"
#include "ps/config/experiment.h"
#include "tools/parley/commands.h"

namespace parley {

int ValidateCommand(const CommandArgs& args) {
  std::string file;
  std::vector<std::string> overrides;
  FlagSet flags("parley validate", "Checks an experiment file and prints every error in it.");
  flags.Argument("FILE", &file, "the experiment, Protobuf text format")
      .Repeated("set", &overrides, "A.B=C", "changes a field of the experiment");
  if (std::optional<int> over = ParseFlags(&flags, args)) return *over;
  absl::StatusOr<pb::Experiment> experiment = LoadExperiment(file, overrides);
  if (!experiment.ok()) return Complain(experiment.status(), kExitUsage);
  absl::PrintF("%s: ok: %s, %u servers x %u shards, %u workers, %s, %d layers, %u epochs\n", file,
               experiment->name(), experiment->cluster().servers(),
               experiment->cluster().shards_per_server(), experiment->cluster().workers(),
               pb::Consistency::Mode_Name(experiment->consistency().mode()),
               experiment->model().layer_size(), experiment->training().epochs());
  return kExitOk;
}

}  // namespace parley
