// The one reader of experiment files.
//
//   absl::StatusOr<pb::Experiment> experiment =
//       LoadExperiment("experiments/fashion_mlp.textproto", {"cluster.workers=4"});
//
// Pure functions apart from reading the file; thread-safe.
//
// Errors: kInvalidArgument with one line per problem (all of them, joined by newlines), each
// "file:line:col: field 'cluster.servers': 0 is out of range; allowed: 1..1024". A field that was
// overridden has "--set cluster.servers=0" in the place of file:line:col. kNotFound, or another
// code by errno, for a file that cannot be read.
#ifndef PARLEY_PS_CONFIG_EXPERIMENT_H_
#define PARLEY_PS_CONFIG_EXPERIMENT_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/experiment.pb.h"

namespace parley {

// Reads Protobuf text format, applies overrides ("a.b=c", see overrides.h) in their order, resolves
// and validates: what comes back is complete and possible.
absl::StatusOr<pb::Experiment> LoadExperiment(const std::string& path,
                                              const std::vector<std::string>& overrides = {});

// The same from text; `name` stands for the file in errors.
absl::StatusOr<pb::Experiment> LoadExperimentText(const std::string& text, const std::string& name,
                                                  const std::vector<std::string>& overrides = {});

// Sets every field that has a default to it, creates cluster, training, consistency, checkpoints
// and a constant schedule where they are absent, raises a scheduler_timeout_ms that is not set to
// node_timeout_ms, and names nameless layers by kind and count ("conv1", "fc2"). Changes no value
// that is set; doing it twice changes nothing.
void ResolveExperiment(pb::Experiment* experiment);

// All impossible values, one line each, "field 'x': ...; allowed: ...". For experiments that come
// from elsewhere than a file.
absl::Status ValidateExperiment(const pb::Experiment& experiment);

// Protobuf text that LoadExperimentText reads back to an equal experiment.
std::string ExperimentToText(const pb::Experiment& experiment);

}  // namespace parley

#endif  // PARLEY_PS_CONFIG_EXPERIMENT_H_
