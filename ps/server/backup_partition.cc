#include "ps/server/backup_partition.h"

#include <new>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "ps/base/payload_copy.h"
#include "ps/net/scheduler_link.h"
#include "ps/wire/payload.h"

namespace parley {
namespace {

// One run of bytes. All of them are here already, so a peer that says much brings no more than
// that once again.
Buffer Join(std::vector<Buffer> pieces, BufferPool* pool) {
  if (pieces.empty()) return Buffer();
  if (pieces.size() == 1) return std::move(pieces[0]);
  uint64_t bytes = 0;
  for (const Buffer& piece : pieces) bytes += piece.size();
  Buffer whole = pool->Allocate(bytes);
  uint64_t offset = 0;
  for (const Buffer& piece : pieces) {
    CopyPayload(whole.mutable_data() + offset, piece.data(), piece.size());
    offset += piece.size();
  }
  return whole;
}

}  // namespace

BackupPartition::BackupPartition(NodeId primary, Make make, Answer answer, BufferPool* pool)
    : primary_(primary), make_(std::move(make)), answer_(std::move(answer)), pool_(pool) {}

void BackupPartition::SetPrimary(NodeId primary) {
  if (primary == primary_) return;
  primary_ = primary;
  follows_ = false;
  waiting_.clear();  // nobody waits for the answers
  waiting_bytes_ = 0;
  attempt_ = loaded_ = 0;
  assembly_.reset();
}

absl::Status BackupPartition::CheckOp(const Frame& request, Waiting* op) const {
  absl::Status status = ParseBody(request, &op->op);
  if (!status.ok()) return status;
  std::vector<PartPayload> parts = SplitPayload(request);
  const uint32_t partition = request.header.part(0).partition();
  std::vector<Buffer> keys, values;
  uint64_t key_count = 0, value_count = 0;
  for (int i = 0; i < request.header.part_size(); ++i) {
    const pb::Part& part = request.header.part(i);
    // The codec of frames lets a control message name bytes that do not come.
    if (parts[i].keys.size() != part.keys() * sizeof(uint64_t) || part.has_value_bytes() ||
        parts[i].values.size() != part.count() * sizeof(float) || part.partition() != partition) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "operation %d on partition %d: a part of partition %d says %d keys and %d values, with "
          "%d and %d bytes",
          op->op.index(), partition, part.partition(), part.keys(), part.count(),
          parts[i].keys.size(), parts[i].values.size()));
    }
    key_count += part.keys();
    value_count += part.count();
    if (part.keys() > 0) keys.push_back(std::move(parts[i].keys));
    if (part.count() > 0) values.push_back(std::move(parts[i].values));
  }
  if (value_count != 0 && value_count != state_->values(key_count)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "operation %d on partition %d brings %d values for %d keys, allowed is %d", op->op.index(),
        partition, value_count, key_count, state_->values(key_count)));
  }
  op->keys = Join(std::move(keys), pool_);
  op->values = Join(std::move(values), pool_);
  op->request = request.header;
  return state_->CheckKeys(KeyList(op->keys));
}

void BackupPartition::OnOp(const Frame& request) {
  if (!follows_) {
    answer_(primary_, request.header,
            absl::DataLossError(absl::StrFormat("partition %d has to be brought up here first",
                                                request.header.part(0).partition())));
    return;
  }
  Waiting op;
  absl::Status status = CheckOp(request, &op);
  const uint64_t index = op.op.index();
  if (status.ok() && index <= state_->last_index()) {
    answer_(primary_, request.header, absl::OkStatus());
    return;
  }
  const uint64_t bytes = op.keys.size() + op.values.size();
  const auto before = waiting_.find(index);
  if (status.ok() && before == waiting_.end() &&
      (index > state_->last_index() + kMaxAhead ||
       (index > state_->last_index() + 1 && waiting_bytes_ + bytes > kMaxAheadBytes))) {
    status = absl::ResourceExhaustedError(absl::StrFormat(
        "operation %d comes too early, the last one here is %d", index, state_->last_index()));
  }
  if (!status.ok()) {
    answer_(primary_, request.header, status);
    return;
  }
  if (before != waiting_.end()) {
    before->second.request = std::move(op.request);  // whoever asked last hears of it
    return;
  }
  waiting_bytes_ += bytes;
  waiting_.emplace(index, std::move(op));
  ApplyWaiting();
}

void BackupPartition::ApplyWaiting() {
  while (!waiting_.empty() && waiting_.begin()->first == state_->last_index() + 1) {
    Waiting op = std::move(waiting_.begin()->second);
    waiting_.erase(waiting_.begin());
    waiting_bytes_ -= op.keys.size() + op.values.size();
    absl::Status status = state_->ApplyOp(op.op, std::move(op.keys), std::move(op.values));
    if (!status.ok()) {
      status = absl::DataLossError(status.message());
      answer_(primary_, op.request, status);
      Lose(status);
      return;
    }
    answer_(primary_, op.request, absl::OkStatus());
  }
}

// It is no copy any more, and says so to whoever believes that it is.
void BackupPartition::Lose(const absl::Status& status) {
  follows_ = false;
  state_.reset();
  for (auto& [index, op] : std::exchange(waiting_, {})) answer_(primary_, op.request, status);
  waiting_bytes_ = 0;
}

void BackupPartition::OnSync(const Frame& request) {
  absl::Status status;
  try {
    status = TakeSync(request);
  } catch (const std::bad_alloc&) {
    // What was here before still is.
    assembly_.reset();
    status = absl::ResourceExhaustedError("no memory for the state of a partition");
    ++attempt_;  // what is still to come of it is of no use
  }
  answer_(primary_, request.header, status);
}

absl::Status BackupPartition::TakeSync(const Frame& request) {
  pb::PartitionState piece;
  absl::Status status = ParseBody(request, &piece);
  if (!status.ok()) return status;
  const uint64_t attempt = request.header.part(0).sequence();
  if (attempt < attempt_ || attempt == 0) {
    return absl::AbortedError(
        absl::StrFormat("attempt %d to bring this up is over, it is at %d", attempt, attempt_));
  }
  if (attempt > attempt_) {
    if (piece.offset() != 0) {
      return absl::DataLossError(
          absl::StrFormat("the state of a partition begins at %d here", piece.offset()));
    }
    attempt_ = attempt;
    assembly_.emplace();
    status = assembly_->Begin(std::move(piece));
    piece.Clear();
    if (!status.ok()) {
      assembly_.reset();
      return status;
    }
  } else if (!assembly_) {
    // It was taken, and that is asked again; or it was given up.
    return attempt == loaded_ ? absl::OkStatus() : absl::DataLossError("this state was given up");
  } else if (piece.offset() < assembly_->received()) {
    return absl::OkStatus();
  }
  if (piece.offset() != assembly_->received()) {
    assembly_.reset();
    return absl::DataLossError(
        absl::StrFormat("a piece of the state of a partition at %d is "
                        "missing",
                        piece.offset()));
  }
  status = assembly_->Add(request.payload, pool_);
  if (status.ok() && assembly_->complete()) status = FinishSync();
  if (!status.ok()) assembly_.reset();
  return status;
}

absl::Status BackupPartition::FinishSync() {
  absl::StatusOr<std::unique_ptr<HostedPartition>> fresh = make_();
  if (!fresh.ok()) return fresh.status();
  PartitionSnapshot snapshot = assembly_->Take();
  assembly_.reset();
  absl::Status status = (*fresh)->Load(std::move(snapshot));
  if (!status.ok()) return status;
  for (auto& [index, op] : std::exchange(waiting_, {})) {
    answer_(primary_, op.request, absl::DataLossError("a newer state has taken its place"));
  }
  waiting_bytes_ = 0;
  state_ = *std::move(fresh);
  follows_ = true;
  loaded_ = attempt_;
  return absl::OkStatus();
}

}  // namespace parley
