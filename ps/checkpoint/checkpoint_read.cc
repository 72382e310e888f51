// Reading: the manifest, all bytes against it, one partition.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "ps/checkpoint/checkpoint_files.h"
#include "ps/checkpoint/file_hash.h"
#include "ps/checkpoint/manifest.h"

namespace parley {
namespace {

constexpr uint64_t kChunk = uint64_t{4} << 20;

absl::Status CheckSize(FileSystem* files, const std::string& path, uint64_t bytes) {
  absl::StatusOr<uint64_t> size = files->Size(path);
  if (absl::IsNotFound(size.status())) {
    return absl::DataLossError(absl::StrCat("'", path, "' is missing"));
  }
  if (!size.ok()) return size.status();
  if (*size != bytes) {
    return absl::DataLossError(
        absl::StrCat("'", path, "' has ", *size, " bytes; expected ", bytes));
  }
  return absl::OkStatus();
}

// The arrays of `state`, and those behind them that only `offsets` knows of, of `more` bytes.
absl::StatusOr<TableState> ReadArrays(FileSystem* files, const std::string& path,
                                      const pb::TableState& header,
                                      const google::protobuf::RepeatedField<uint64_t>& offsets,
                                      const google::protobuf::RepeatedField<uint32_t>& checksums,
                                      uint64_t more, BufferPool* pool, std::string* rest) {
  TableState state;
  state.header = header;
  for (int i = 0; i < offsets.size(); ++i) {
    std::byte* to = nullptr;
    uint64_t bytes = more;
    if (i < header.array_size()) {
      if (absl::Status status = ArrayBytes(header.array(i), &bytes); !status.ok()) return status;
      state.bytes.push_back(pool->Allocate(bytes));
      to = state.bytes.back().mutable_data();
    } else {
      rest->resize(bytes);
      to = reinterpret_cast<std::byte*>(rest->data());
    }
    if (absl::Status status = files->Read(path, offsets[i], bytes, to); !status.ok()) {
      return status;
    }
    if (Crc32({to, bytes}) != checksums[i]) {
      return absl::DataLossError(absl::StrCat("'", path, "' is damaged: ", bytes, " bytes at ",
                                              offsets[i], " are not those that were written"));
    }
  }
  return state;
}

}  // namespace

absl::StatusOr<pb::CheckpointManifest> ReadManifest(FileSystem* files,
                                                    const std::string& directory) {
  const std::string path = absl::StrCat(directory, "/", kManifestName);
  absl::StatusOr<std::string> text = files->ReadWhole(path);
  if (absl::IsNotFound(text.status()) && files->Exists(directory)) {
    return absl::DataLossError(absl::StrCat("'", path, "' is missing"));
  }
  if (!text.ok()) return text.status();
  return ParseManifest(*text, path);
}

absl::Status VerifyCheckpoint(FileSystem* files, const std::string& directory,
                              const std::function<void(uint64_t)>& progress) {
  absl::StatusOr<pb::CheckpointManifest> manifest = ReadManifest(files, directory);
  if (!manifest.ok()) return manifest.status();
  // What is cheap to find out comes first.
  for (const pb::CheckpointFile& file : manifest->file()) {
    absl::Status status = CheckSize(files, absl::StrCat(directory, "/", file.name()), file.bytes());
    if (!status.ok()) return status;
  }
  Buffer chunk = Buffer::Allocate(kChunk);
  uint64_t done = 0;
  for (const pb::CheckpointFile& file : manifest->file()) {
    const std::string path = absl::StrCat(directory, "/", file.name());
    FileHash hash;
    for (uint64_t at = 0; at < file.bytes();) {
      const uint64_t bytes = std::min(kChunk, file.bytes() - at);
      absl::Status status = files->Read(path, at, bytes, chunk.mutable_data());
      if (!status.ok()) return status;
      hash.Add(absl::MakeConstSpan(chunk.data(), bytes));
      at += bytes;
      done += bytes;
      if (progress) progress(done);
    }
    if (const std::string computed = hash.Hex(); computed != file.blake2b()) {
      return absl::DataLossError(absl::StrCat("'", path, "' is damaged: its BLAKE2b is ", computed,
                                              "; expected ", file.blake2b()));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<SavedPartition> ReadPartition(FileSystem* files, const std::string& directory,
                                             const pb::CheckpointManifest& manifest, uint32_t table,
                                             uint32_t partition, BufferPool* pool) {
  struct Found {
    const pb::CheckpointFile* file;
    const pb::CheckpointPartition* saved;
  };
  std::vector<Found> found;
  for (const pb::CheckpointFile& file : manifest.file()) {
    for (const pb::CheckpointPartition& saved : file.partition()) {
      if (saved.table() == table && saved.partition() == partition)
        found.push_back({&file, &saved});
    }
  }
  const std::string what = absl::StrCat("partition ", partition, " of table ", table);
  if (found.empty()) {
    return absl::NotFoundError(absl::StrCat("checkpoint '", directory, "' has no ", what));
  }
  std::sort(found.begin(), found.end(),
            [](const Found& a, const Found& b) { return a.file->step() < b.file->step(); });
  // What came before the last that is whole does not matter.
  size_t first = found.size() - 1;
  while (first > 0 && found[first].saved->state().changes_only()) --first;
  if (found[first].saved->state().changes_only()) {
    return absl::DataLossError(absl::StrCat("checkpoint '", directory, "' has changes of ", what,
                                            ", but not what they change"));
  }
  SavedPartition partition_states;
  for (size_t i = first; i < found.size(); ++i) {
    const pb::CheckpointPartition& saved = *found[i].saved;
    const std::string path = absl::StrCat(directory, "/", found[i].file->name());
    if (absl::Status status = CheckSize(files, path, found[i].file->bytes()); !status.ok()) {
      return status;
    }
    partition_states.server_state.clear();
    absl::StatusOr<TableState> state =
        ReadArrays(files, path, saved.state(), saved.offset(), saved.crc32(),
                   saved.server_state_bytes(), pool, &partition_states.server_state);
    if (!state.ok()) return state.status();
    partition_states.states.push_back(*std::move(state));
  }
  return partition_states;
}

absl::StatusOr<TableState> ReadWorker(FileSystem* files, const std::string& directory,
                                      const pb::CheckpointManifest& manifest, uint32_t rank,
                                      BufferPool* pool) {
  const pb::CheckpointFile* newest = nullptr;
  const pb::WorkerState* state = nullptr;
  for (const pb::CheckpointFile& file : manifest.file()) {
    for (const pb::WorkerState& saved : file.worker()) {
      if (saved.rank() != rank || (newest != nullptr && newest->step() > file.step())) continue;
      newest = &file;
      state = &saved;
    }
  }
  if (newest == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("checkpoint '", directory, "' has nothing of worker ", rank));
  }
  const std::string path = absl::StrCat(directory, "/", newest->name());
  if (absl::Status status = CheckSize(files, path, newest->bytes()); !status.ok()) return status;
  return ReadArrays(files, path, state->state(), state->offset(), state->crc32(), 0, pool, nullptr);
}

}  // namespace parley
