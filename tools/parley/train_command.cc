// `parley train --local FILE`: the same experiment in this process, with no servers.
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "ps/config/experiment.h"
#include "tools/local/local_run.h"
#include "tools/parley/commands.h"

namespace parley {
namespace {

void PrintEpoch(const LocalEpoch& epoch, uint32_t epochs) {
  std::string line =
      absl::StrFormat("epoch %d/%d  step %d  train loss %.4f  accuracy %.4f", epoch.epoch + 1,
                      epochs, epoch.step, epoch.train_loss, epoch.train_accuracy);
  if (epoch.evaluated) {
    absl::StrAppendFormat(&line, "  test loss %.4f  accuracy %.4f", epoch.test_loss,
                          epoch.test_accuracy);
  }
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

}  // namespace

int TrainCommand(const CommandArgs& args) {
  std::string file;
  std::vector<std::string> overrides;
  bool local = false;
  FlagSet flags("parley train", "Trains an experiment in this process, as a reference for `run`.");
  flags.Argument("FILE", &file, "the experiment, Protobuf text format")
      .Switch("local", &local, "required: no servers, the workers take turns")
      .Repeated("set", &overrides, "A.B=C", "changes a field of the experiment");
  if (std::optional<int> over = ParseFlags(&flags, args)) return *over;
  if (!local) {
    return Complain(absl::InvalidArgumentError("train needs --local; with servers it is `parley "
                                               "run FILE`"),
                    kExitUsage);
  }
  absl::StatusOr<pb::Experiment> experiment = LoadExperiment(file, overrides);
  if (!experiment.ok()) return Complain(experiment.status(), kExitUsage);
  absl::PrintF("training %s in this process, as %d logical workers\n", experiment->name(),
               experiment->cluster().workers());
  absl::StatusOr<LocalResult> result = RunLocal(*experiment, [&](const LocalEpoch& epoch) {
    PrintEpoch(epoch, experiment->training().epochs());
  });
  if (!result.ok()) return Complain(result.status(), kExitFailure);
  absl::PrintF("steps %d\nweights_sha256 %s\n", result->steps, result->weights_sha256);
  if (const auto& rows = result->embedding; rows.has_table()) {
    absl::PrintF("embedding_rows %d\nembedding_digest %016x%016x\n", rows.rows(),
                 rows.digest_high(), rows.digest_low());
  }
  return kExitOk;
}

}  // namespace parley
