#include "ps/server/restore_task.h"

#include <new>
#include <optional>
#include <string>

#include "absl/strings/str_format.h"
#include "ps/checkpoint/checkpoint_files.h"
#include "ps/table/gpu_place.h"

namespace parley {

// Belongs to the work while it runs, and to the loop between works.
struct RestoreTask::Reading {
  FileSystem* files;
  BufferPool* pool;
  std::string directory;
  std::optional<pb::CheckpointManifest> manifest;  // read with the first partition
  absl::Status status;
  SavedPartition saved;

  void Read(uint32_t table, uint32_t partition) {
    try {
      if (!manifest) {
        absl::StatusOr<pb::CheckpointManifest> read = ReadManifest(files, directory);
        if (read.ok()) {
          manifest = *std::move(read);
        } else {
          status = read.status();
        }
      }
      if (!status.ok()) return;
      absl::StatusOr<SavedPartition> read =
          ReadPartition(files, directory, *manifest, table, partition, pool);
      if (read.ok()) {
        saved = *std::move(read);
      } else {
        status = read.status();
      }
    } catch (const std::bad_alloc&) {
      status = absl::ResourceExhaustedError(
          absl::StrFormat("%s: no memory for table %d, partition %d", directory, table, partition));
    }
  }
};

RestoreTask::RestoreTask(Env* env, FileSystem* files, BufferPool* pool, const pb::Restore& restore,
                         std::vector<Item> items, absl::AnyInvocable<void(absl::Status)> done)
    : env_(env),
      items_(std::move(items)),
      step_(restore.step()),
      done_(std::move(done)),
      reading_(std::make_shared<Reading>()) {
  reading_->files = files;
  reading_->pool = pool;
  reading_->directory = restore.directory();
  if (!items_.empty()) {
    Next();
    return;
  }
  env_->Post([this, alive = std::weak_ptr(reading_)] {
    if (!alive.expired()) std::exchange(done_, nullptr)(absl::OkStatus());
  });
}

RestoreTask::~RestoreTask() = default;

void RestoreTask::Next() {
  const auto [table, partition] = items_[next_];
  // The work holds it too, and lets it go on the loop: so that a task which is gone is seen there.
  auto work = std::make_shared<std::shared_ptr<Reading>>(reading_);
  env_->Offload([work, table = table, index = partition->index()] { (*work)->Read(table, index); },
                [this, work, alive = std::weak_ptr(reading_)] {
                  work->reset();
                  if (!alive.expired()) OnRead();
                });
}

void RestoreTask::OnRead() {
  HostedPartition* partition = items_[next_].second;
  absl::Status status = std::exchange(reading_->status, absl::OkStatus());
  if (status.ok()) {
    try {
      status = partition->LoadCheckpoint(std::move(reading_->saved.states), step_);
    } catch (const std::bad_alloc& failure) {
      status = StatusOf(failure, "no memory");
    }
    if (!status.ok()) {
      status = absl::Status(status.code(), absl::StrFormat("%s: table %d, partition %d: %s",
                                                           reading_->directory, items_[next_].first,
                                                           partition->index(), status.message()));
    }
  }
  reading_->saved = SavedPartition();
  if (status.ok() && ++next_ < items_.size()) return Next();
  std::exchange(done_, nullptr)(std::move(status));  // may end this
}

}  // namespace parley
