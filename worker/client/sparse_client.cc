#include "worker/client/sparse_client.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"
#include "ps/base/payload_copy.h"
#include "ps/wire/payload.h"
#include "worker/client/sparse_rows.h"

namespace parley {
namespace {

// Splits kept for the next calls: a few pulls may be open at once.
constexpr size_t kMaxIdleSplits = 4;

uint64_t KeyBytes(uint64_t keys) { return keys * sizeof(uint64_t); }

}  // namespace

struct SparseClient::PullCall {
  std::unique_ptr<KeySplit> split;
  float* rows = nullptr;
  uint64_t missing = 0;  // messages
  PullResult result;
  OnPulled done;
};

struct SparseClient::PushCall {
  std::unique_ptr<KeySplit> split;  // while messages are being made
  uint64_t tick = 0;
  double weight = 0;
  uint64_t missing = 0;  // messages
  absl::AnyInvocable<void()> done;
};

absl::StatusOr<std::unique_ptr<SparseClient>> SparseClient::Create(ClientCore* core,
                                                                   const pb::TableSpec& table,
                                                                   TableRoute route) {
  absl::StatusOr<SparseLayout> layout = SparseLayout::Create(table);
  if (!layout.ok()) return layout.status();
  absl::StatusOr<SparsePushEncoder> encoder =
      SparsePushEncoder::Create(table.compression(), layout->dim());
  if (!encoder.ok()) return encoder.status();
  auto pull_codec = PayloadCodec::Create(table.compression().pull(), table.compression());
  if (!pull_codec.ok()) return pull_codec.status();
  if (*pull_codec != nullptr && (*pull_codec)->keeps_residual()) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "table '%s': compression.pull is '%s', which keeps state; rows of a sparse table allow "
        "codecs without",
        table.name(), table.compression().pull()));
  }
  SparseShared shared;
  shared.core = core;
  shared.route = std::move(route);
  shared.layout = *layout;
  shared.streams.resize(layout->partitions());
  return std::unique_ptr<SparseClient>(
      new SparseClient(std::move(shared), *std::move(encoder), *std::move(pull_codec)));
}

SparseClient::SparseClient(SparseShared shared, SparsePushEncoder encoder,
                           std::unique_ptr<PayloadCodec> pull_codec)
    : shared_(std::move(shared)),
      encoder_(std::move(encoder)),
      pull_codec_(std::move(pull_codec)),
      updates_(&shared_) {}

std::unique_ptr<KeySplit> SparseClient::Split(absl::Span<const uint64_t> keys) {
  std::unique_ptr<KeySplit> split;
  if (idle_splits_.empty()) {
    split = std::make_unique<KeySplit>();
  } else {
    split = std::move(idle_splits_.back());
    idle_splits_.pop_back();
  }
  splitter_.Split(shared_.layout, keys, shared_.core->pool, split.get());
  return split;
}

void SparseClient::SetRoute(TableRoute route) {
  updates_.FlushAll();
  shared_.route = std::move(route);
  updates_.OnShards();
}

void SparseClient::Pull(uint64_t tick, absl::Span<const uint64_t> keys, float* rows,
                        OnPulled done) {
  if (shared_.core->queues->failed()) return;
  auto call = std::make_shared<PullCall>();
  call->split = Split(keys);
  call->rows = rows;
  call->done = std::move(done);
  const KeySplit& split = *call->split;
  const uint64_t row_bytes = uint64_t{dim()} * sizeof(float);
  const uint64_t most_keys =
      std::max<uint64_t>(1, shared_.core->max_request_bytes / (row_bytes + sizeof(uint64_t)));
  // Filled as far as they go, by shard, and sent in the order in which they are full.
  Open open(shared_.core->queues->shards());
  std::vector<uint64_t> asked(open.size());  // keys
  call->missing = 1;                         // until all are sent
  const auto flush = [&](uint32_t shard) {
    if (open[shard] != nullptr) SendPull(call, shard, std::move(open[shard]));
    asked[shard] = 0;
  };
  for (uint32_t partition = 0; partition < shared_.layout.partitions(); ++partition) {
    const uint32_t shard = shared_.route.owner[partition];
    for (uint32_t from = split.begin[partition]; from < split.begin[partition + 1];) {
      if (open[shard] != nullptr &&
          (asked[shard] >= most_keys || open[shard]->runs.size() >= kMaxPartsPerMessage ||
           open[shard]->runs.back().partition == partition)) {
        flush(shard);
      }
      if (open[shard] == nullptr) {
        open[shard] = std::make_unique<SparseRequest>(
            &shared_, ShardRequest::Kind::kPull, shard,
            [this, call](const SparseRequest& request, Frame answer, bool last) {
              return TakeRows(*call, request, answer, last);
            });
        open[shard]->pull_tick = tick;
        open[shard]->bytes = split.key_bytes;
      }
      const uint32_t count = static_cast<uint32_t>(
          std::min<uint64_t>(split.begin[partition + 1] - from, most_keys - asked[shard]));
      open[shard]->runs.push_back(
          {.partition = partition, .keys = count, .key_offset = KeyBytes(from), .from = from});
      asked[shard] += count;
      from += count;
    }
  }
  for (uint32_t shard = 0; shard < open.size(); ++shard) flush(shard);
  call->result.min_clock = call->result.min_version = std::numeric_limits<uint64_t>::max();
  if (--call->missing > 0) return;
  // Without a key there is nobody to ask; nothing that was read is stale.
  call->result = {.min_clock = tick, .min_version = 0, .max_version = 0};
  shared_.core->env->Post([this, call, alive = std::weak_ptr<bool>(alive_)] {
    if (!alive.expired() && !shared_.core->queues->failed()) FinishPull(*call);
  });
}

void SparseClient::SendPull(const std::shared_ptr<PullCall>& call, uint32_t shard,
                            std::unique_ptr<SparseRequest> request) {
  uint64_t keys = 0;
  for (const SparseRequest::Run& run : request->runs) keys += run.keys;
  request->Seal(keys * dim() * sizeof(float));
  // Its bytes are all keys of the call; what travels is less.
  request->push_bytes = KeyBytes(keys);
  ++call->missing;
  shared_.core->queues->Enqueue(shard, std::move(request));
}

// Checks the answer as a whole, then brings its rows to where they were asked for.
absl::Status SparseClient::TakeRows(PullCall& call, const SparseRequest& request,
                                    const Frame& answer, bool last) {
  const std::vector<SparseRequest::Run>& runs = request.runs;
  if (static_cast<size_t>(answer.header.part_size()) != runs.size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("the answer has %d parts, expected is %d, as many as were asked for",
                        answer.header.part_size(), runs.size()));
  }
  const std::vector<PartPayload> payload = SplitPayload(answer);
  for (size_t i = 0; i < runs.size(); ++i) {
    const pb::Part& part = answer.header.part(static_cast<int>(i));
    const uint64_t expected = uint64_t{runs[i].keys} * dim();
    if (part.partition() != runs[i].partition) {
      return absl::InvalidArgumentError(
          absl::StrFormat("part %d of the answer is partition %d, expected is %d as asked", i,
                          part.partition(), runs[i].partition));
    }
    const bool plain = pull_codec_ == nullptr;
    if (part.count() != expected ||
        (plain && payload[i].values.size() != expected * sizeof(float))) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "partition %d in the answer has count %d and %d bytes, expected is %d for %d keys",
          part.partition(), part.count(), payload[i].values.size(), expected, runs[i].keys));
    }
    const std::byte* values = payload[i].values.data();
    if (!plain) {
      scratch_.resize(expected);
      absl::Status status =
          pull_codec_->Decode(payload[i].values.view(), expected, scratch_.data());
      if (!status.ok()) {
        return absl::InvalidArgumentError(
            absl::StrFormat("partition %d in the answer: %s", part.partition(), status.message()));
      }
      values = reinterpret_cast<const std::byte*>(scratch_.data());
    }
    const uint32_t from = runs[i].from, to = from + runs[i].keys;
    ScatterRows(*call.split, from, to, dim(), values, call.rows);
    const KeySplit& split = *call.split;
    NoteCopied(uint64_t{split.first[to] - split.first[from]} * dim() * sizeof(float));
    shared_.core->counters.bytes_pulled += payload[i].values.size();
    PullResult& result = call.result;
    result.min_clock = std::min(result.min_clock, part.min_clock());
    result.min_version = std::min(result.min_version, part.version());
    result.max_version = std::max(result.max_version, part.version());
  }
  if (last && --call.missing == 0) FinishPull(call);
  return absl::OkStatus();
}

void SparseClient::FinishPull(PullCall& call) {
  if (idle_splits_.size() < kMaxIdleSplits) idle_splits_.push_back(std::move(call.split));
  OnPulled done = std::move(call.done);
  done(call.result);
}

// All partitions, as the messages of a push name them: those of one shard in order, whole, as many
// as max_request_bytes takes, one at least.
std::vector<std::vector<uint32_t>> SparseClient::PushGroups(const KeySplit& split) const {
  constexpr size_t kNone = ~size_t{0};
  std::vector<std::vector<uint32_t>> groups;
  std::vector<size_t> open(shared_.core->queues->shards(), kNone);
  std::vector<uint64_t> bytes;
  for (uint32_t partition = 0; partition < shared_.layout.partitions(); ++partition) {
    const uint32_t keys = split.begin[partition + 1] - split.begin[partition];
    const uint64_t size = keys == 0 ? 0 : KeyBytes(keys) + encoder_.MaxBytes(keys);
    size_t& group = open[shared_.route.owner[partition]];
    if (group == kNone || bytes[group] + size > shared_.core->max_request_bytes ||
        groups[group].size() >= kMaxPartsPerMessage) {
      group = groups.size();
      groups.emplace_back();
      bytes.push_back(0);
    }
    groups[group].push_back(partition);
    bytes[group] += size;
  }
  return groups;
}

void SparseClient::Push(uint64_t tick, double weight, absl::Span<const uint64_t> keys,
                        const float* gradients, absl::AnyInvocable<void()> done) {
  if (shared_.core->queues->failed()) return;
  auto call = std::make_shared<PushCall>();
  call->tick = tick;
  call->weight = weight;
  call->done = std::move(done);
  call->split = Split(weight == 0 ? absl::Span<const uint64_t>() : keys);
  const std::vector<std::vector<uint32_t>> groups = PushGroups(*call->split);
  call->missing = groups.size();
  // Each message leaves while the next is gathered.
  for (const std::vector<uint32_t>& group : groups) {
    SendPush(call, group, gradients);
    if (shared_.core->queues->failed()) return;
  }
  if (idle_splits_.size() < kMaxIdleSplits) idle_splits_.push_back(std::move(call->split));
}

void SparseClient::SendPush(const std::shared_ptr<PushCall>& call,
                            const std::vector<uint32_t>& partitions, const float* gradients) {
  const KeySplit& split = *call->split;
  const uint32_t shard = shared_.route.owner[partitions.front()];
  auto request =
      std::make_unique<SparseRequest>(&shared_, ShardRequest::Kind::kPush, shard,
                                      [call](const SparseRequest&, const Frame&, bool last) {
                                        if (last && --call->missing == 0 && call->done)
                                          call->done();
                                        return absl::OkStatus();
                                      });
  request->tick = call->tick;
  request->weight = call->weight;
  request->encoded = !encoder_.plain();
  uint64_t most = 0;
  for (uint32_t partition : partitions) {
    const uint32_t keys = split.begin[partition + 1] - split.begin[partition];
    if (keys > 0) most += KeyBytes(keys) + encoder_.MaxBytes(keys);
  }
  if (most > 0) request->bytes = shared_.core->pool->Allocate(most);
  uint64_t used = 0;
  for (uint32_t partition : partitions) AddRun(partition, split, gradients, &used, request.get());
  if (used > shared_.core->max_part_bytes) {
    // Only one partition alone can be so large: its rows of a step are one push, which is not cut.
    shared_.core->queues->Fail(absl::InvalidArgumentError(absl::StrFormat(
        "push of step %d of table %d: %d keys of partition %d take %d bytes, allowed is %d in one "
        "message; raise embedding.partitions, which is %d, or lower global_batch",
        call->tick, shared_.route.table, request->runs.back().keys, partitions.back(), used,
        shared_.core->max_part_bytes, shared_.layout.partitions())));
    return;
  }
  request->bytes = request->bytes.Slice(0, used);
  request->Seal(/*answer_bytes=*/0);
  shared_.core->queues->Enqueue(shard, std::move(request));
}

// Appends a partition's keys and values to the bytes of `request`.
void SparseClient::AddRun(uint32_t partition, const KeySplit& split, const float* gradients,
                          uint64_t* used, SparseRequest* request) {
  const uint32_t from = split.begin[partition], to = split.begin[partition + 1];
  SparseRequest::Run& run = request->runs.emplace_back();
  run.partition = partition;
  run.keys = to - from;
  if (from == to) return;
  run.key_offset = *used;
  std::byte* const bytes = request->bytes.mutable_data();
  CopyPayload(bytes + *used, split.keys() + from, KeyBytes(run.keys));
  *used += KeyBytes(run.keys);
  run.value_offset = *used;
  NoteCopied(uint64_t{run.keys} * dim() * sizeof(float));  // by GatherRows
  if (encoder_.plain()) {
    run.value_bytes = uint64_t{run.keys} * dim() * sizeof(float);
    GatherRows(split, from, to, dim(), gradients, bytes + *used);
  } else {
    scratch_.resize(uint64_t{run.keys} * dim());
    GatherRows(split, from, to, dim(), gradients, reinterpret_cast<std::byte*>(scratch_.data()));
    run.value_bytes =
        encoder_.Encode(split.keys() + from, run.keys, scratch_.data(), bytes + *used);
  }
  *used += run.value_bytes;
}

}  // namespace parley
