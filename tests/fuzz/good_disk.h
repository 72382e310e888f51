// A disk with two checkpoints of one partition and one worker, as a job writes them.
#ifndef PARLEY_TESTS_FUZZ_GOOD_DISK_H_
#define PARLEY_TESTS_FUZZ_GOOD_DISK_H_

#include <cstdint>
#include <map>
#include <string>

#include "ps/base/sim_file_system.h"
#include "ps/checkpoint/checkpoint_files.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/fuzz/fuzz_tables.h"

namespace parley {

struct GoodDisk {
  static constexpr const char* kRoot = "root";
  static constexpr uint64_t kEarlier = 4, kStep = 8;

  using Contents = std::map<std::string, std::string>;  // by path

  // Of rows the second checkpoint holds changes, and builds on the first.
  static Contents Make(FuzzTable* table) {
    SimFileSystem disk(1);
    HostedPartition* asked = nullptr;
    const auto partition =
        table->Make([&](uint32_t, NormGroup group, double share) { asked->OnNorm(group, share); });
    asked = partition.get();
    uint64_t tick = 0;
    for (const uint64_t step : {kEarlier, kStep}) {
      for (; tick < step; ++tick) {
        for (uint32_t w = 0; w < FuzzTable::kWorkers; ++w) table->Push(partition.get(), w, tick);
      }
      Commit(&disk, step, {"model", 1, 0, partition->SaveCheckpoint(step == kStep), "state"});
      partition->MarkSaved();
    }
    Contents contents;
    for (const std::string& path : disk.Files(kRoot)) contents[path] = *disk.Content(path);
    return contents;
  }

 private:
  static void Commit(SimFileSystem* disk, uint64_t step, PartitionRecord record) {
    const std::string base = CheckpointDirectory(kRoot, kEarlier);
    pb::CheckpointManifest manifest;
    if (record.state.header.changes_only()) {
      *manifest.mutable_file() = ReadManifest(disk, base)->file();
    }
    manifest.set_step(step);
    manifest.set_workers(FuzzTable::kWorkers);
    WorkerRecord worker{1, {}};
    worker.state.Add("residual", "F32", {2}, Buffer::Copy("residual"));
    const std::string pending = PendingDirectory(kRoot, step);
    Check(disk->MakeDirectory(pending).ok(), "a directory can be made");
    const auto add = [&](const char* name, absl::Span<const PartitionRecord> partitions,
                         absl::Span<const WorkerRecord> workers) {
      auto file = WriteCheckpointFile(disk, pending, name, partitions, workers);
      Check(file.ok(), "a file of a checkpoint can be written");
      file->set_step(step);
      *manifest.add_file() = *file;
    };
    add("server-0-0.safetensors", {&record, 1}, {});
    add("worker-1.safetensors", {}, {&worker, 1});
    Check(CommitCheckpoint(disk, kRoot, base, manifest).ok(), "and committed");
  }
};

}  // namespace parley

#endif  // PARLEY_TESTS_FUZZ_GOOD_DISK_H_
