// The text of a manifest, manifest.json: pb::CheckpointManifest as JSON, whose last field is the
// checksum of all the text in front of it, so that every byte counts. Pure functions.
#ifndef PARLEY_PS_CHECKPOINT_MANIFEST_H_
#define PARLEY_PS_CHECKPOINT_MANIFEST_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/checkpoint.pb.h"

namespace parley {

inline constexpr char kManifestName[] = "manifest.json";

// Fills in `checksum`. kInvalidArgument: as CheckManifest.
absl::StatusOr<std::string> ManifestText(const pb::CheckpointManifest& manifest);

// `path` is for messages. kDataLoss: not a byte more or less, or other, than ManifestText made.
// kInvalidArgument: whole, but of another format, or as CheckManifest.
absl::StatusOr<pb::CheckpointManifest> ParseManifest(absl::string_view text,
                                                     const std::string& path);

// What whoever reads by a manifest relies on: plain names of files, each once; arrays that lie
// within their file, beside each other; of a partition at most one state a step. kInvalidArgument
// names the file.
absl::Status CheckManifest(const pb::CheckpointManifest& manifest);

// "embedding/3/rows".
std::string PartitionTensor(absl::string_view table, uint32_t partition, absl::string_view array);
// "/worker/3/residual": no table has a name that is empty.
std::string WorkerTensor(uint32_t rank, absl::string_view array);

}  // namespace parley

#endif  // PARLEY_PS_CHECKPOINT_MANIFEST_H_
