#include "ps/checkpoint/manifest.h"

#include <google/protobuf/util/json_util.h>

#include <set>
#include <tuple>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "ps/base/table_state.h"
#include "ps/checkpoint/checkpoint_files.h"
#include "ps/checkpoint/file_hash.h"

namespace parley {
namespace {

namespace json = google::protobuf::util;

// How a manifest ends: kBeforeChecksum, 64 digits, kAfterChecksum.
constexpr absl::string_view kBeforeChecksum = ",\n \"checksum\": \"";
constexpr absl::string_view kAfterChecksum = "\"\n}\n";
constexpr size_t kChecksumDigits = 64;

std::string ChecksumOf(absl::string_view body) {
  FileHash hash;
  hash.Add(body);
  return hash.Hex();
}

absl::Status CheckArrays(const pb::CheckpointFile& file, const pb::TableState& state,
                         const google::protobuf::RepeatedField<uint64_t>& offsets, int checksums,
                         const uint64_t* more, uint64_t* left) {
  const int expected = state.array_size() + (more != nullptr ? 1 : 0);
  if (offsets.size() != expected || checksums != expected) {
    return absl::InvalidArgumentError(absl::StrCat("has ", offsets.size(), " offsets and ",
                                                   checksums, " checksums for ", expected,
                                                   " arrays"));
  }
  for (int i = 0; i < expected; ++i) {
    uint64_t bytes = more != nullptr ? *more : 0;
    if (i < state.array_size()) {
      if (absl::Status status = ArrayBytes(state.array(i), &bytes); !status.ok()) return status;
    }
    if (bytes > file.bytes() || offsets[i] > file.bytes() - bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("has ", bytes, " bytes at ", offsets[i], " of ", file.bytes()));
    }
    // Who reads takes memory for each.
    if (bytes > *left) {
      return absl::InvalidArgumentError(absl::StrCat(
          "has arrays over others': all have more bytes; allowed: the file's, ", file.bytes()));
    }
    *left -= bytes;
  }
  return absl::OkStatus();
}

absl::Status CheckName(const std::string& name) {
  if (!name.empty() && name[0] != '.' && absl::EndsWith(name, ".safetensors") &&
      !absl::StrContains(name, '/') && !absl::StrContains(name, '\0')) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "file '", name, "' of a checkpoint; allowed: a plain name that ends in .safetensors"));
}

}  // namespace

std::string PartitionTensor(absl::string_view table, uint32_t partition, absl::string_view array) {
  return absl::StrCat(table, "/", partition, "/", array);
}

std::string WorkerTensor(uint32_t rank, absl::string_view array) {
  return absl::StrCat("/worker/", rank, "/", array);
}

absl::Status CheckManifest(const pb::CheckpointManifest& manifest) {
  std::set<std::string> names;
  std::set<std::tuple<uint32_t, uint32_t, uint64_t>> partitions;
  std::set<std::pair<uint32_t, uint64_t>> workers;
  for (const pb::CheckpointFile& file : manifest.file()) {
    if (absl::Status status = CheckName(file.name()); !status.ok()) return status;
    const auto refused = [&](absl::string_view what, absl::string_view why) {
      return absl::InvalidArgumentError(absl::StrCat("file '", file.name(), "': ", what, why));
    };
    uint64_t left = file.bytes();
    if (!names.insert(file.name()).second) return refused("", "is listed twice; allowed: once");
    if (file.step() > manifest.step()) {
      return refused(
          "", absl::StrCat("is of step ", file.step(), "; allowed: up to ", manifest.step()));
    }
    for (const pb::CheckpointPartition& saved : file.partition()) {
      const std::string what =
          absl::StrCat("partition ", saved.partition(), " of table ", saved.table(), " ");
      if (!partitions.insert({saved.table(), saved.partition(), file.step()}).second) {
        return refused(what, absl::StrCat("is there twice of step ", file.step()));
      }
      const uint64_t more = saved.server_state_bytes();
      absl::Status status = CheckArrays(file, saved.state(), saved.offset(), saved.crc32_size(),
                                        more != 0 ? &more : nullptr, &left);
      if (!status.ok()) return refused(what, status.message());
    }
    for (const pb::WorkerState& saved : file.worker()) {
      const std::string what = absl::StrCat("worker ", saved.rank(), " ");
      if (!workers.insert({saved.rank(), file.step()}).second) {
        return refused(what, absl::StrCat("is there twice of step ", file.step()));
      }
      absl::Status status =
          CheckArrays(file, saved.state(), saved.offset(), saved.crc32_size(), nullptr, &left);
      if (!status.ok()) return refused(what, status.message());
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ManifestText(const pb::CheckpointManifest& manifest) {
  if (absl::Status status = CheckManifest(manifest); !status.ok()) return status;
  pb::CheckpointManifest unsigned_one = manifest;
  unsigned_one.clear_checksum();
  unsigned_one.set_format(kCheckpointFormat);  // so there is a field for the comma to follow
  json::JsonPrintOptions options;
  options.add_whitespace = true;
  options.preserve_proto_field_names = true;
  std::string text;
  const auto printed = json::MessageToJsonString(unsigned_one, &text, options);
  if (!printed.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the manifest of a checkpoint cannot be written: ", printed.ToString()));
  }
  absl::string_view body = absl::StripTrailingAsciiWhitespace(text);
  absl::ConsumeSuffix(&body, "}");
  body = absl::StripTrailingAsciiWhitespace(body);
  return absl::StrCat(body, kBeforeChecksum, ChecksumOf(body), kAfterChecksum);
}

absl::StatusOr<pb::CheckpointManifest> ParseManifest(absl::string_view text,
                                                     const std::string& path) {
  absl::string_view body = text;
  absl::string_view checksum;
  bool whole = absl::ConsumeSuffix(&body, kAfterChecksum) && body.size() >= kChecksumDigits;
  if (whole) {
    checksum = body.substr(body.size() - kChecksumDigits);
    body.remove_suffix(kChecksumDigits);
    whole = absl::ConsumeSuffix(&body, kBeforeChecksum);
  }
  if (!whole) {
    return absl::DataLossError(
        absl::StrCat("'", path, "' is not whole: it does not end with its checksum"));
  }
  if (const std::string computed = ChecksumOf(body); computed != checksum) {
    return absl::DataLossError(absl::StrCat("'", path, "' is damaged: its checksum is ", computed,
                                            "; expected ", checksum));
  }
  pb::CheckpointManifest manifest;
  json::JsonParseOptions options;
  options.ignore_unknown_fields = true;  // of a later format, which is refused by its number
  const auto parsed = json::JsonStringToMessage(
      google::protobuf::StringPiece(text.data(), text.size()), &manifest, options);
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", path, "' is no manifest of a checkpoint: ", parsed.ToString()));
  }
  if (manifest.format() != kCheckpointFormat) {
    return absl::InvalidArgumentError(absl::StrCat("'", path, "' has format ", manifest.format(),
                                                   "; allowed: ", kCheckpointFormat));
  }
  if (absl::Status status = CheckManifest(manifest); !status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("'", path, "': ", status.message()));
  }
  return manifest;
}

}  // namespace parley
