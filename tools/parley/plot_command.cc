#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "scheduler/report/curves_svg.h"
#include "scheduler/report/metrics_json.h"
#include "scheduler/report/run_directory.h"
#include "tools/parley/commands.h"

namespace parley {

int PlotCommand(const CommandArgs& args) {
  std::string directory;
  FlagSet flags("parley plot", "Draws a run's curves.svg from its metrics.jsonl.");
  flags.Argument("RUNDIR", &directory, "the run directory");
  if (std::optional<int> over = ParseFlags(&flags, args)) return *over;
  const std::string source = directory + "/metrics.jsonl", target = directory + "/curves.svg";
  std::ifstream file(source);
  if (!file) {
    return Complain(absl::NotFoundError(absl::StrCat(
                        source, ": cannot be opened; allowed: the directory of a run")),
                    kExitUsage);
  }
  std::stringstream text;
  text << file.rdbuf();
  absl::StatusOr<std::vector<EpochMetrics>> epochs = ParseEpochs(text.str());
  if (!epochs.ok()) {
    return Complain(
        absl::Status(epochs.status().code(), absl::StrCat(source, ": ", epochs.status().message())),
        kExitFailure);
  }
  // "runs/x/" has an empty last part.
  std::filesystem::path path = std::filesystem::absolute(directory).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  absl::Status written = WriteFileWhole(target, CurvesSvg(path.filename().string(), *epochs));
  if (!written.ok()) return Complain(written, kExitFailure);
  absl::PrintF("%s: %d epochs\n", target, static_cast<int>(epochs->size()));
  return kExitOk;
}

}  // namespace parley
