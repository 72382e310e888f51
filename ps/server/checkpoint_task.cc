#include "ps/server/checkpoint_task.h"

#include <new>
#include <utility>

#include "absl/strings/str_format.h"
#include "ps/table/gpu_place.h"

namespace parley {

// Belongs to the loop until Write, and to the work from then on.
struct CheckpointTask::Writing {
  FileSystem* files;
  std::string directory, name;
  std::vector<PartitionRecord> records;
  absl::StatusOr<pb::CheckpointFile> result = absl::UnknownError("not written");

  void Run() {
    try {
      result = WriteCheckpointFile(files, directory, name, records, {});
    } catch (const std::bad_alloc&) {
      result = absl::ResourceExhaustedError(
          absl::StrFormat("%s/%s: no memory to write it", directory, name));
    }
    records.clear();
  }
};

absl::Status CheckpointTask::Check(uint64_t step, const std::vector<HostedTable*>& tables) {
  for (const HostedTable* table : tables) {
    for (const HostedPartition* partition : table->hosted()) {
      if (!partition->HasApplied(step)) continue;
      return absl::OutOfRangeError(absl::StrFormat(
          "table %d, partition %d has done %d steps, it cannot be saved as of step %d any more",
          table->id(), partition->index(), partition->applied_clock(), step));
    }
  }
  return absl::OkStatus();
}

CheckpointTask::CheckpointTask(Env* env, FileSystem* files, pb::CheckpointRequest request,
                               std::string file_name, const std::vector<HostedTable*>& tables,
                               bool bsp, Done done)
    : env_(env),
      request_(std::move(request)),
      done_(std::move(done)),
      writing_(std::make_shared<Writing>()) {
  writing_->files = files;
  writing_->directory = request_.directory();
  writing_->name = std::move(file_name);
  for (HostedTable* table : tables) {
    for (HostedPartition* partition : table->hosted()) items_.push_back({table, partition});
  }
  unsaved_ = items_.size();
  for (size_t i = 0; bsp && i < items_.size(); ++i) {
    items_[i].partition->BeforeStep(request_.step(), [this, i] {
      if (!items_[i].saved) Save(items_[i]);
    });
  }
  timer_ = env_->After(absl::ZeroDuration(), [this] { SaveNext(); });
}

CheckpointTask::~CheckpointTask() {
  env_->Cancel(timer_);
  for (const Item& item : items_) item.partition->BeforeStep(0, nullptr);
}

bool CheckpointTask::IsReady(const Item& item) const {
  return !item.saved && (request_.step() == 0 || item.partition->HasApplied(request_.step() - 1));
}

void CheckpointTask::OnApplied() {
  if (unsaved_ == 0 || timer_ != kNoTimer) return;
  timer_ = env_->After(absl::ZeroDuration(), [this] { SaveNext(); });
}

void CheckpointTask::SaveNext() {
  timer_ = kNoTimer;
  if (!status_.ok()) return Finish(status_);
  for (Item& item : items_) {
    if (IsReady(item)) return Save(item);  // which comes back here
  }
  if (unsaved_ == 0) Write();
}

// Throws nothing: the hook of BeforeStep runs in the middle of an update.
void CheckpointTask::Save(Item& item) {
  item.saved = true;
  --unsaved_;
  // For the next one, to write, or to say why not.
  if (timer_ == kNoTimer) timer_ = env_->After(absl::ZeroDuration(), [this] { SaveNext(); });
  if (!status_.ok()) return;
  HostedTable& table = *item.table;
  const uint32_t index = item.partition->index();
  try {
    const auto marked = table.marked.find(index);
    const bool changes = table.sparse() && !request_.full() && marked != table.marked.end() &&
                         marked->second == request_.since();
    PartitionRecord record;
    record.table_name = table.spec().name();
    record.table = table.id();
    record.partition = index;
    record.state = item.partition->SaveCheckpoint(changes);
    writing_->records.push_back(std::move(record));
    if (table.sparse()) {
      item.partition->MarkSaved();
      table.marked[index] = request_.step();
    }
  } catch (const std::bad_alloc& failure) {
    status_ = StatusOf(
        failure, absl::StrFormat("no memory to save table %d, partition %d", table.id(), index));
  }
}

void CheckpointTask::Write() {
  if (items_.empty()) return Finish(pb::CheckpointFile());
  auto work = std::make_shared<std::shared_ptr<Writing>>(writing_);
  env_->Offload([work] { (*work)->Run(); },
                [this, work, alive = std::weak_ptr(writing_)] {
                  work->reset();
                  if (!alive.expired()) Finish(std::move(writing_->result));
                });
}

void CheckpointTask::Finish(absl::StatusOr<pb::CheckpointFile> result) {
  if (result.ok()) result->set_step(request_.step());
  if (done_) std::exchange(done_, nullptr)(std::move(result));  // may end this
}

std::string CheckpointTask::WaitsFor() const {
  if (unsaved_ == 0) return "the file to be written";
  return absl::StrFormat("%d of %d partitions to reach step %d", unsaved_, items_.size(),
                         request_.step());
}

}  // namespace parley
