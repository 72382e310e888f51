#include "worker/client/sparse_updates.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_format.h"
#include "ps/base/payload_copy.h"

namespace parley {

SparseUpdates::SparseUpdates(SparseShared* shared)
    : shared_(shared),
      dim_(shared->layout.dim()),
      row_bytes_(sizeof(uint64_t) + dim_ * sizeof(float)),
      batches_(shared->core->queues->shards()),
      count_(shared->layout.partitions()) {}

void SparseUpdates::Add(absl::Span<const uint64_t> keys, const float* gradients, Done done) {
  if (shared_->core->queues->failed()) return;
  ++open_;
  if (keys.size() != 1) {
    AddMany(keys, gradients, std::move(done));
    return;
  }
  const uint32_t partition = shared_->layout.PartitionOf(keys[0]);
  const uint32_t shard = shared_->route.owner[partition];
  Append(shard, partition, keys[0], gradients);
  EndCall(shard, std::move(done));
  FlushIfFull(shard);
}

// Sums the gradients of a key that repeats, and ends with the last of the shards.
void SparseUpdates::AddMany(absl::Span<const uint64_t> keys, const float* gradients, Done done) {
  absl::flat_hash_map<uint64_t, std::pair<uint32_t, size_t>> places;  // key -> shard, first value
  std::vector<uint32_t> shards;
  for (size_t i = 0; i < keys.size(); ++i) {
    const float* gradient = gradients + i * dim_;
    const uint32_t partition = shared_->layout.PartitionOf(keys[i]);
    const uint32_t shard = shared_->route.owner[partition];
    std::vector<float>& values = batches_[shard].values;
    const auto [place, is_new] = places.try_emplace(keys[i], shard, values.size());
    if (is_new) {
      Append(shard, partition, keys[i], gradient);
      if (std::find(shards.begin(), shards.end(), shard) == shards.end()) shards.push_back(shard);
      continue;
    }
    for (uint32_t d = 0; d < dim_; ++d) values[place->second.second + d] += gradient[d];
  }
  if (shards.empty()) {  // no key: over as soon as the caller has returned
    shared_->core->queues->Hold();
    shared_->core->env->Post(
        [this, done = std::move(done), alive = std::weak_ptr<bool>(alive_)]() mutable {
          if (alive.expired() || shared_->core->queues->failed()) return;
          --open_;
          ++shared_->core->counters.updates_acked;
          if (done) done();
          shared_->core->queues->Release();
        });
    return;
  }
  if (shards.size() == 1) {
    EndCall(shards[0], std::move(done));
  } else {
    // The call is over with the last acknowledgement; it is counted at one shard of them.
    auto missing = std::make_shared<std::pair<size_t, Done>>(shards.size(), std::move(done));
    open_ += shards.size() - 1;
    for (uint32_t shard : shards) {
      EndCall(shard, [this, missing] {
        if (--missing->first > 0) {
          --shared_->core->counters.updates_acked;
        } else if (missing->second) {
          missing->second();
        }
      });
    }
  }
  for (uint32_t shard : shards) FlushIfFull(shard);
}

void SparseUpdates::Append(uint32_t shard, uint32_t partition, uint64_t key,
                           const float* gradient) {
  Batch& batch = batches_[shard];
  if (batch.keys.empty()) {
    shared_->core->queues->Hold();
    touched_.push_back(shard);
    if (!std::exchange(turn_posted_, true)) {
      shared_->core->env->Post([this, alive = std::weak_ptr<bool>(alive_)] {
        if (!alive.expired()) EndTurn();
      });
    }
  }
  batch.keys.push_back(key);
  batch.partitions.push_back(partition);
  batch.values.insert(batch.values.end(), gradient, gradient + dim_);
}

void SparseUpdates::EndCall(uint32_t shard, Done done) {
  Batch& batch = batches_[shard];
  ++batch.calls;
  if (done) batch.done.push_back(std::move(done));
}

void SparseUpdates::FlushIfFull(uint32_t shard) {
  if ((batches_[shard].keys.size() + 1) * row_bytes_ > kBatchBytes) Flush(shard);
}

void SparseUpdates::EndTurn() {
  turn_posted_ = false;
  for (uint32_t shard : std::exchange(touched_, {})) {
    if (!batches_[shard].keys.empty() && batches_[shard].on_the_way < kPartial) Flush(shard);
  }
}

void SparseUpdates::FlushAll() {
  for (uint32_t shard = 0; shard < batches_.size(); ++shard) {
    if (!batches_[shard].keys.empty()) Flush(shard);
  }
}

// Sends what the shard's batch holds: sorted by partition, as a push has it, calls in order.
void SparseUpdates::Flush(uint32_t shard) {
  if (shared_->core->queues->failed()) return;
  Batch& batch = batches_[shard];
  const size_t n = batch.keys.size();
  if (n * row_bytes_ > shared_->core->max_part_bytes) {
    shared_->core->queues->Fail(absl::InvalidArgumentError(absl::StrFormat(
        "update of table %d: %d keys of one shard take %d bytes, allowed is %d in one message; "
        "update fewer keys in one call",
        shared_->route.table, n, n * row_bytes_, shared_->core->max_part_bytes)));
    return;
  }
  // Each key and its values by Append, and once more below.
  NoteCopied(2 * n * row_bytes_, /*calls=*/2);
  runs_.clear();
  for (uint32_t partition : batch.partitions) {
    if (count_[partition]++ == 0) runs_.push_back(partition);
  }
  auto request = std::make_unique<SparseRequest>(
      shared_, ShardRequest::Kind::kPush, shard,
      [this, shard, owed = Owed{batch.calls, std::move(batch.done)}](
          const SparseRequest&, const Frame&, bool last) mutable {
        if (last) OnAcknowledged(shard, owed);
        return absl::OkStatus();
      });
  request->weight = 1;
  request->bytes = shared_->core->pool->Allocate(n * row_bytes_);
  uint64_t used = 0;
  request->runs.reserve(runs_.size());
  std::vector<SparseRequest::Run>& runs = request->runs;
  for (uint32_t partition : runs_) {
    SparseRequest::Run& run = runs.emplace_back();
    run.partition = partition;
    run.keys = count_[partition];
    run.key_offset = used;
    run.value_offset = used + run.keys * sizeof(uint64_t);
    run.value_bytes = uint64_t{run.keys} * dim_ * sizeof(float);
    used = run.value_offset + run.value_bytes;
    count_[partition] = static_cast<uint32_t>(runs.size()) - 1;  // its run, from here on
  }
  std::byte* const bytes = request->bytes.mutable_data();
  for (SparseRequest::Run& run : runs) run.keys = 0;
  for (size_t i = 0; i < n; ++i) {
    SparseRequest::Run& run = runs[count_[batch.partitions[i]]];
    std::copy_n(reinterpret_cast<const std::byte*>(&batch.keys[i]), sizeof(uint64_t),
                bytes + run.key_offset + run.keys * sizeof(uint64_t));
    std::copy_n(reinterpret_cast<const std::byte*>(&batch.values[i * dim_]), dim_ * sizeof(float),
                bytes + run.value_offset + uint64_t{run.keys} * dim_ * sizeof(float));
    ++run.keys;
  }
  for (uint32_t partition : runs_) count_[partition] = 0;
  batch.keys.clear();
  batch.partitions.clear();
  batch.values.clear();
  batch.calls = 0;
  batch.done.clear();
  if (!idle_.empty()) {
    batch.done = std::move(idle_.back());
    idle_.pop_back();
  }
  ++batch.on_the_way;
  request->Seal(/*answer_bytes=*/0);
  shared_->core->queues->Enqueue(shard, std::move(request));
  shared_->core->queues->Release();  // what Append held
}

void SparseUpdates::OnAcknowledged(uint32_t shard, Owed& owed) {
  open_ -= owed.calls;
  shared_->core->counters.updates_acked += owed.calls;
  --batches_[shard].on_the_way;
  for (Done& done : owed.done) {
    done();
    if (shared_->core->queues->failed()) return;
  }
  owed.done.clear();
  idle_.push_back(std::move(owed.done));
  // What gathered meanwhile; where a callback has just added to it, at the end of the turn.
  if (batches_[shard].keys.empty()) return;
  if (turn_posted_) {
    touched_.push_back(shard);
  } else if (batches_[shard].on_the_way < kPartial) {
    Flush(shard);
  }
}

}  // namespace parley
