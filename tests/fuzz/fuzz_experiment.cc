// Experiment files: whatever the text, problems with a place, or an experiment that reads back.
#include <string>

#include "ps/config/experiment.h"
#include "tests/fuzz/fuzz_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using parley::Check;
  const std::string text(reinterpret_cast<const char*>(data), size);
  const absl::StatusOr<parley::pb::Experiment> experiment =
      parley::LoadExperimentText(text, "fuzz");
  if (!experiment.ok()) {
    Check(experiment.status().code() == absl::StatusCode::kInvalidArgument, "an error is named");
    Check(!experiment.status().message().empty(), "and says what is wrong");
    return 0;
  }
  Check(parley::ValidateExperiment(*experiment).ok(), "what comes out is possible");
  const auto again = parley::LoadExperimentText(parley::ExperimentToText(*experiment), "resolved");
  Check(again.ok(), "what comes out reads back");
  Check(again->SerializeAsString() == experiment->SerializeAsString(), "as it was");
  return 0;
}
