#include "worker/client/sparse_request.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace parley {

void SparseRequest::Seal(uint64_t answer_bytes) {
  push_bytes = bytes.size();
  pull_bytes = answer_bytes;
  // Updates stay in one lane, or they would not stay in order.
  small = (kind == Kind::kPush && !tick.has_value()) ||
          std::max(push_bytes, pull_bytes) <= ShardQueues::kSmallBytes;
  // Small pushes keep their order; the rest has its step's, before the dense tables, whose layers
  // come after the embedding.
  if (kind == Kind::kPull) {
    step = 2 * pull_tick;
  } else if (!small) {
    step = 2 * *tick + 1;
  }
  for (Run& run : runs) {
    // Updates come one by one: their lists do not come again.
    if (run.keys < KnownLists::kMinKeys || (kind == Kind::kPush && !tick.has_value())) continue;
    run.digest = KeyDigest(bytes.view().substr(run.key_offset, run.keys * sizeof(uint64_t)));
  }
}

bool SparseRequest::MayLeave() const {
  if (kind == Kind::kPull || !sequences_.empty()) return true;
  return std::all_of(runs.begin(), runs.end(),
                     [this](const Run& run) { return shared_->streams[run.partition].HasRoom(); });
}

Frame SparseRequest::MakeFrame() {
  Frame frame;
  pb::FrameHeader& header = frame.header;
  header.set_kind(kind == Kind::kPull ? pb::PULL : pb::PUSH);
  header.set_table(shared_->route.table);
  header.set_epoch(shared_->core->epoch);
  if (kind == Kind::kPull) {
    header.set_tick(pull_tick);
  } else {
    header.set_weight(weight);
    if (tick.has_value()) header.set_tick(*tick);
  }
  const bool first_time = sequences_.empty();
  for (size_t i = 0; i < runs.size(); ++i) {
    Run& run = runs[i];
    pb::Part* part = header.add_part();
    part->set_partition(run.partition);
    if (run.keys > 0) AddKeys(run, part, &frame.payload);
    if (kind == Kind::kPull) continue;
    PushStream& stream = shared_->streams[run.partition];
    if (first_time) sequences_.push_back(stream.Take());
    part->set_sequence(sequences_[i]);
    part->set_acked_below(stream.acked_below());
    part->set_count(uint64_t{run.keys} * shared_->layout.dim());
    if (encoded && run.keys > 0) part->set_value_bytes(run.value_bytes);
    Append(run.value_offset, run.value_bytes, &frame.payload);
  }
  sent_bytes_ = frame.payload_bytes();
  return frame;
}

void SparseRequest::AddKeys(Run& run, pb::Part* part, std::vector<Buffer>* payload) {
  part->set_keys(run.keys);
  run.list_sent = true;
  if (run.digest.has_value()) {
    part->set_key_digest(run.digest->data(), run.digest->size());
    run.list_sent = with_lists_ || !KnownThere().Contains(shared_->route.table, *run.digest);
  }
  PsClient::Counters& counters = shared_->core->counters;
  ++(run.list_sent ? counters.key_lists_sent : counters.key_digests_sent);
  part->set_key_bytes(run.list_sent ? run.keys * sizeof(uint64_t) : 0);
  if (run.list_sent) Append(run.key_offset, run.keys * sizeof(uint64_t), payload);
}

// Adds a slice of `bytes`, as part of the last one where it goes on from there.
void SparseRequest::Append(uint64_t offset, uint64_t size, std::vector<Buffer>* payload) {
  if (size == 0) return;
  if (!payload->empty() && offset == appended_) {
    const uint64_t before = payload->back().size();
    payload->back() = bytes.Slice(offset - before, before + size);
  } else {
    payload->push_back(bytes.Slice(offset, size));
  }
  appended_ = offset + size;
}

std::string SparseRequest::What(const std::string& shard) const {
  const uint32_t table = shared_->route.table;
  if (kind == Kind::kPull) {
    return absl::StrFormat("pull of step %d of table %d from %s", pull_tick, table, shard);
  }
  if (!tick.has_value()) return absl::StrFormat("update of table %d to %s", table, shard);
  return absl::StrFormat("push of step %d of table %d to %s", *tick, table, shard);
}

bool SparseRequest::TryAgain(const absl::Status& error) {
  if (!absl::IsNotFound(error) || with_lists_) return false;
  uint64_t unsent = 0;
  for (const Run& run : runs) {
    if (run.keys == 0 || run.list_sent) continue;
    ++unsent;
    KnownThere().Forget(shared_->route.table, *run.digest);
  }
  if (unsent == 0) return false;
  shared_->core->counters.key_misses += unsent;
  with_lists_ = true;
  return true;
}

bool SparseRequest::BelongsTo(uint32_t shard) const {
  return std::all_of(runs.begin(), runs.end(), [this, shard](const Run& run) {
    return shared_->route.owner[run.partition] == shard;
  });
}

// All pieces refer to the same bytes. What a shard knows of their lists is looked up anew.
std::vector<ShardRequest::Piece> SparseRequest::SplitByOwner() {
  std::vector<Piece> pieces;
  std::vector<SparseRequest*> by_shard(shared_->core->queues->shards());
  for (size_t i = 0; i < runs.size(); ++i) {
    const uint32_t shard = shared_->route.owner[runs[i].partition];
    SparseRequest*& piece = by_shard[shard];
    if (piece == nullptr) {
      piece = new SparseRequest(shared_, kind, shard, whole_);
      pieces.push_back({shard, std::unique_ptr<ShardRequest>(piece)});
      piece->tick = tick;
      piece->weight = weight;
      piece->encoded = encoded;
      piece->bytes = bytes;
      piece->small = small;
      piece->step = step;
      piece->rank = rank;
      piece->pull_tick = pull_tick;
    }
    piece->runs.push_back(runs[i]);
    if (!sequences_.empty()) piece->sequences_.push_back(sequences_[i]);
    piece->push_bytes += runs[i].keys * sizeof(uint64_t) + runs[i].value_bytes;
    if (kind == Kind::kPull) {
      piece->pull_bytes += uint64_t{runs[i].keys} * shared_->layout.dim() * sizeof(float);
    }
  }
  whole_->missing += pieces.size() - 1;
  return pieces;
}

absl::Status SparseRequest::OnAnswer(Frame answer) {
  for (const Run& run : runs) {
    if (run.digest.has_value()) {
      KnownThere().Remember(shared_->route.table, *run.digest, run.keys * sizeof(uint64_t));
    }
  }
  if (kind == Kind::kPush) {
    for (size_t i = 0; i < runs.size(); ++i) {
      shared_->streams[runs[i].partition].Acknowledge(sequences_[i]);
    }
    shared_->core->counters.pushes_acked += runs.size();
    shared_->core->counters.bytes_pushed += sent_bytes_;
  }
  const bool last = --whole_->missing == 0;
  return whole_->answered(*this, std::move(answer), last);
}

}  // namespace parley
