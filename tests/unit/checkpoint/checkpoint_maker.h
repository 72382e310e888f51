// CheckpointMaker: what the tests save - a dense and a sparse table on two servers, and a worker -
// with values that follow from step, table and partition.
#ifndef PARLEY_TESTS_UNIT_CHECKPOINT_CHECKPOINT_MAKER_H_
#define PARLEY_TESTS_UNIT_CHECKPOINT_CHECKPOINT_MAKER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "ps/checkpoint/checkpoint_files.h"

namespace parley {

inline constexpr uint32_t kDense = 0, kSparse = 1, kServers = 2, kPartitions = 4, kDim = 3;

inline Buffer Filled(uint64_t bytes, uint64_t seed) {
  Buffer buffer = Buffer::Allocate(bytes);
  for (uint64_t i = 0; i < bytes; ++i) {
    seed = seed * 6364136223846793005 + 1442695040888963407;
    buffer.mutable_data()[i] = static_cast<std::byte>(seed >> 56);
  }
  return buffer;
}

inline TableState StateOf(uint64_t step, uint32_t table, uint32_t partition, bool changes) {
  TableState state;
  const uint64_t seed = step * 1000 + table * 100 + partition;
  state.header.set_version(step);
  if (table == kDense) {
    state.Add("weights", "F32", {101}, Filled(404, seed));
    state.Add("slot0", "F32", {101}, Filled(404, seed + 17));
    return state;
  }
  const uint64_t rows = changes ? 2 : 5 + partition;
  state.header.set_changes_only(changes);
  state.Add("counts", "U8", {rows}, Filled(rows, seed + 1));
  state.Add("rows", "F16", {rows, kDim}, Filled(rows * kDim * 2, seed + 2));
  state.Add("keys", "U64", {rows}, Filled(rows * 8, seed + 3));
  if (changes) state.Add("removed", "U64", {0}, Buffer());
  return state;
}

inline std::string ServerStateOf(uint64_t step, uint32_t partition) {
  return partition == 1 ? "" : absl::StrCat("state of ", partition, " at ", step);
}

// Writes the files of `step` and says what is in them. With a `base` sparse tables are changes.
inline absl::StatusOr<pb::CheckpointManifest> WriteFiles(FileSystem* files, const std::string& root,
                                                         uint64_t step,
                                                         const pb::CheckpointManifest* base) {
  const std::string pending = PendingDirectory(root, step);
  if (absl::Status status = files->MakeDirectory(pending); !status.ok()) return status;
  pb::CheckpointManifest manifest;
  manifest.set_job("job");
  manifest.set_step(step);
  manifest.set_workers(3);
  manifest.set_tally(std::string("\0\xFF tally", 8));
  manifest.mutable_experiment()->set_seed(0xFFFFFFFFFFFFFFFF);
  manifest.mutable_experiment()->mutable_data()->set_mean(0.28604060411453247f);
  if (base != nullptr) {
    manifest.set_chain(base->chain() + 1);
    *manifest.mutable_file() = base->file();
  }
  for (uint32_t server = 0; server < kServers; ++server) {
    std::vector<PartitionRecord> records;
    for (uint32_t partition = server; partition < kPartitions; partition += kServers) {
      records.push_back({"model", kDense, partition, StateOf(step, kDense, partition, false),
                         ServerStateOf(step, partition)});
      records.push_back({"emb", kSparse, partition,
                         StateOf(step, kSparse, partition, base != nullptr),
                         ServerStateOf(step, partition)});
    }
    std::vector<WorkerRecord> workers;
    if (server == 0) workers.push_back({2, StateOf(step, kDense, 7, false)});
    absl::StatusOr<pb::CheckpointFile> file = WriteCheckpointFile(
        files, pending, absl::StrCat("server-", server, "-0.safetensors"), records, workers);
    if (!file.ok()) return file.status();
    file->set_step(step);
    *manifest.add_file() = *std::move(file);
  }
  return manifest;
}

// Writes and commits; `base` as above, found in `root`.
inline absl::Status WriteCheckpoint(FileSystem* files, const std::string& root, uint64_t step,
                                    uint64_t base = 0) {
  absl::StatusOr<pb::CheckpointManifest> older;
  if (base != 0) {
    older = ReadManifest(files, CheckpointDirectory(root, base));
    if (!older.ok()) return older.status();
  }
  absl::StatusOr<pb::CheckpointManifest> manifest =
      WriteFiles(files, root, step, base != 0 ? &*older : nullptr);
  if (!manifest.ok()) return manifest.status();
  return CommitCheckpoint(files, root, base != 0 ? CheckpointDirectory(root, base) : "",
                          *std::move(manifest));
}

inline bool SameState(const TableState& a, const TableState& b) {
  if (a.header.SerializeAsString() != b.header.SerializeAsString()) return false;
  if (a.bytes.size() != b.bytes.size()) return false;
  for (size_t i = 0; i < a.bytes.size(); ++i) {
    if (a.bytes[i].view() != b.bytes[i].view()) return false;
  }
  return true;
}

// "" if `found` is the checkpoint of a step with these steps of sparse changes, to the byte.
inline std::string Mismatch(FileSystem* files, const FoundCheckpoint& found,
                            const std::vector<uint64_t>& chain) {
  const uint64_t step = chain.back();
  BufferPool pool;
  if (found.manifest.step() != step) return absl::StrCat("step ", found.manifest.step());
  for (const uint32_t table : {kDense, kSparse}) {
    for (uint32_t partition = 0; partition < kPartitions; ++partition) {
      const std::string what = absl::StrCat("table ", table, " partition ", partition, ": ");
      absl::StatusOr<SavedPartition> saved =
          ReadPartition(files, found.directory, found.manifest, table, partition, &pool);
      if (!saved.ok()) return absl::StrCat(what, saved.status().ToString());
      const std::vector<uint64_t> steps = table == kDense ? std::vector<uint64_t>{step} : chain;
      if (saved->states.size() != steps.size()) {
        return absl::StrCat(what, saved->states.size(), " states");
      }
      for (size_t i = 0; i < steps.size(); ++i) {
        if (!SameState(saved->states[i], StateOf(steps[i], table, partition, i > 0))) {
          return absl::StrCat(what, "state ", i);
        }
      }
      if (saved->server_state != ServerStateOf(step, partition)) {
        return absl::StrCat(what, "'", saved->server_state, "'");
      }
    }
  }
  absl::StatusOr<TableState> worker = ReadWorker(files, found.directory, found.manifest, 2, &pool);
  if (!worker.ok()) return worker.status().ToString();
  return SameState(*worker, StateOf(step, kDense, 7, false)) ? "" : "worker 2";
}

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_CHECKPOINT_CHECKPOINT_MAKER_H_
