#include "ps/server/snapshot_stream.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"
#include "ps/base/payload_copy.h"

namespace parley {

SnapshotReader::SnapshotReader(PartitionSnapshot snapshot)
    : arrays_(std::move(snapshot.values.bytes)) {
  first_.set_index(snapshot.index);
  first_.set_digest(snapshot.digest);
  *first_.mutable_values() = std::move(snapshot.values.header);
  first_.set_server_state(std::move(snapshot.server_state));
  uint64_t total = 0;
  for (const Buffer& array : arrays_) total += array.size();
  first_.set_total_bytes(total);
}

void SnapshotReader::Next(uint32_t partition, uint64_t attempt, Frame* frame) {
  pb::PartitionState body;
  if (begun_) {
    body.set_index(first_.index());
    body.set_total_bytes(first_.total_bytes());
    body.set_offset(offset_);
  } else {
    body = first_;
    body.set_offset(0);
  }
  begun_ = true;
  frame->header.set_body(body.SerializeAsString());
  // A run lies in one buffer, so each piece of an array is a part of its own.
  const auto add_part = [&](uint64_t bytes) {
    pb::Part* part = frame->header.add_part();
    part->set_partition(partition);
    part->set_sequence(attempt);
    part->set_value_bytes(bytes);
  };
  uint64_t room = kMaxMessageBytes;
  while (array_ < arrays_.size() && room > 0 && frame->header.part_size() < kMaxMessageParts) {
    Buffer& array = arrays_[array_];
    const uint64_t bytes = std::min<uint64_t>(room, array.size() - array_offset_);
    if (bytes > 0) {
      frame->payload.push_back(array.Slice(array_offset_, bytes));
      add_part(bytes);
    }
    room -= bytes;
    offset_ += bytes;
    array_offset_ += bytes;
    if (array_offset_ < array.size()) continue;
    array = Buffer();
    ++array_;
    array_offset_ = 0;
  }
  if (frame->header.part().empty()) add_part(0);
}

absl::Status SnapshotAssembly::Begin(pb::PartitionState first) {
  *this = SnapshotAssembly();
  const auto error = [](const std::string& what) {
    return absl::InvalidArgumentError("the state of a partition: " + what);
  };
  if (first.values().array_size() > kMaxArrays) {
    return error(
        absl::StrFormat("%d arrays, allowed is %d", first.values().array_size(), kMaxArrays));
  }
  uint64_t total = 0;
  for (const pb::StateArray& array : first.values().array()) {
    absl::Status status = ArrayBytes(array, &sizes_.emplace_back());
    if (!status.ok()) return status;
    if (sizes_.back() > kMaxBytes - total) {
      return error(absl::StrFormat("more than %d bytes, which are allowed", kMaxBytes));
    }
    total += sizes_.back();
  }
  if (total != first.total_bytes()) {
    return error(
        absl::StrFormat("%d bytes are announced, its arrays have %d", first.total_bytes(), total));
  }
  first_ = std::move(first);
  arrays_.resize(sizes_.size());
  return absl::OkStatus();
}

absl::Status SnapshotAssembly::Add(const std::vector<Buffer>& payload, BufferPool* pool) {
  for (const Buffer& piece : payload) {
    uint64_t taken = 0;
    while (taken < piece.size()) {
      while (array_ < sizes_.size() && filled_ == sizes_[array_]) {
        ++array_;
        filled_ = 0;
      }
      if (array_ == sizes_.size()) {
        return absl::InvalidArgumentError(absl::StrFormat(
            "the state of a partition: more comes than the %d bytes that were announced",
            first_.total_bytes()));
      }
      const uint64_t bytes = std::min(piece.size() - taken, sizes_[array_] - filled_);
      MakeRoom(bytes, pool);
      CopyPayload(arrays_[array_].mutable_data() + filled_, piece.data() + taken, bytes);
      taken += bytes;
      filled_ += bytes;
      received_ += bytes;
    }
  }
  return absl::OkStatus();
}

// What is announced need not come: beyond the first bytes, memory is taken for as much again as
// has.
void SnapshotAssembly::MakeRoom(uint64_t bytes, BufferPool* pool) {
  Buffer& array = arrays_[array_];
  if (filled_ + bytes <= array.size()) return;
  const uint64_t wanted = std::max({filled_ + bytes, 2 * filled_, kFirstBytes});
  Buffer larger = pool->Allocate(std::min(sizes_[array_], wanted));
  if (filled_ > 0) CopyPayload(larger.mutable_data(), array.data(), filled_);
  array = std::move(larger);
}

PartitionSnapshot SnapshotAssembly::Take() {
  PartitionSnapshot snapshot;
  snapshot.index = first_.index();
  snapshot.digest = first_.digest();
  snapshot.server_state = std::move(*first_.mutable_server_state());
  snapshot.values.header = std::move(*first_.mutable_values());
  snapshot.values.bytes = std::move(arrays_);
  return snapshot;
}

}  // namespace parley
