#include "worker/client/dense_client.h"

#include <algorithm>
#include <cassert>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/wire/payload.h"

namespace parley {
namespace {

// Places in the queue: the pushes of a tick, then the pulls of the next.
uint64_t PushPlace(uint64_t tick) { return 2 * tick + 1; }
uint64_t PullPlace(uint64_t tick) {
  return tick == DenseTable::kFinalTick ? std::numeric_limits<uint64_t>::max() : 2 * tick;
}

}  // namespace

class DenseClient::Request : public ShardRequest {
 public:
  Request(DenseClient* table, Kind kind) : ShardRequest(kind), table_(table) {}

  uint64_t tick = 0;  // of the push
  double weight = 0;
  std::vector<uint32_t> partitions;
  Buffer gradients;  // the whole arena; given back once sliced or encoded

  // Once the partitions are known.
  void Place() {
    const bool pushes = kind != Kind::kPull;
    small = table_->small_;
    // Small pushes leave as they came.
    if (!pushes || !small) step = pushes ? PushPlace(tick) : PullPlace(pull_tick);
    if (!small) rank = 1 + *std::min_element(partitions.begin(), partitions.end());  // sparse: 0
    CountBytes();
  }

  bool MayLeave() const override {
    return kind == Kind::kPull || !sequences_.empty() ||
           std::all_of(partitions.begin(), partitions.end(),
                       [this](uint32_t p) { return table_->streams_[p].HasRoom(); });
  }

  std::unique_ptr<ShardRequest> Split() override {
    auto pull = std::make_unique<Request>(table_, Kind::kPull);
    pull->pull_tick = pull_tick;
    pull->partitions = partitions;
    pull->Place();
    return pull;
  }

  Frame MakeFrame() override {
    Frame frame;
    pb::FrameHeader& header = frame.header;
    header.set_table(table_->route_.table);
    header.set_epoch(table_->core_->epoch);
    const bool raw = pull_tick == kFinalTick;
    const bool first_time = sequences_.empty();
    for (size_t i = 0; i < partitions.size(); ++i) {
      const uint32_t partition = partitions[i];
      pb::Part* part = header.add_part();
      part->set_partition(partition);
      if (kind != Kind::kPush) table_->decoder_.Ask(raw, part);
      if (kind == Kind::kPull) continue;
      part->set_count(0);
      if (first_time) sequences_.push_back(table_->streams_[partition].Take());
      part->set_sequence(sequences_[i]);
      part->set_acked_below(table_->streams_[partition].acked_below());
    }
    if (kind == Kind::kPull) {
      header.set_kind(pb::PULL);
      header.set_tick(pull_tick);
      return frame;
    }
    header.set_kind(kind == Kind::kPush ? pb::PUSH : pb::PUSH_PULL);
    header.set_tick(tick);
    header.set_weight(weight);
    if (kind == Kind::kPushPull) header.set_pull_tick(pull_tick);
    if (weight > 0) first_time ? Encode(&header) : NameValues(&header);
    gradients = Buffer();
    frame.payload = payload_;
    sent_bytes_ = frame.payload_bytes();
    return frame;
  }

  std::string What(const std::string& shard) const override {
    switch (kind) {
      case Kind::kPush:
        return absl::StrFormat("push of step %d to %s", tick, shard);
      case Kind::kPushPull:
        return absl::StrFormat("push of step %d and pull of step %d from %s", tick, pull_tick,
                               shard);
      default:
        if (pull_tick == kFinalTick) return absl::StrCat("pull of the final weights from ", shard);
        return absl::StrFormat("pull of step %d from %s", pull_tick, shard);
    }
  }

  // Others may have long to go before the final weights are there.
  bool TryAgain(const absl::Status& error) override {
    return kind == Kind::kPull && pull_tick == kFinalTick && absl::IsDeadlineExceeded(error);
  }

  bool BelongsTo(uint32_t shard) const override {
    return std::all_of(partitions.begin(), partitions.end(), [this, shard](uint32_t partition) {
      return table_->route_.owner[partition] == shard;
    });
  }

  std::vector<Piece> SplitByOwner() override {
    const std::vector<Buffer> values = ValuesSent();
    std::vector<Piece> pieces;
    std::vector<Request*> by_shard(table_->core_->queues->shards());
    for (size_t i = 0; i < partitions.size(); ++i) {
      const uint32_t shard = table_->route_.owner[partitions[i]];
      Request*& piece = by_shard[shard];
      if (piece == nullptr) {
        auto made = std::make_unique<Request>(table_, kind);
        piece = made.get();
        piece->TakePlaceOf(*this);
        pieces.push_back({shard, std::move(made)});
      }
      piece->partitions.push_back(partitions[i]);
      if (!sequences_.empty()) piece->sequences_.push_back(sequences_[i]);
      if (!values.empty()) piece->payload_.push_back(values[i]);
      if (!value_bytes_.empty()) piece->value_bytes_.push_back(value_bytes_[i]);
    }
    for (Request* piece : by_shard) {
      if (piece != nullptr) piece->CountBytes();
    }
    return pieces;
  }

  absl::Status OnAnswer(Frame answer) override {
    payload_.clear();  // given back before a callback may want to use the arena again
    if (kind != Kind::kPush) {
      absl::Status status = table_->TakeAnswer(partitions, answer);
      if (!status.ok()) return status;
    }
    if (kind != Kind::kPull) {
      for (size_t i = 0; i < partitions.size(); ++i) {
        table_->streams_[partitions[i]].Acknowledge(sequences_[i]);
      }
      table_->core_->counters.pushes_acked += partitions.size();
      table_->core_->counters.bytes_pushed += sent_bytes_;
    }
    if (kind != Kind::kPush) table_->AfterAnswer(partitions);
    return absl::OkStatus();
  }

 private:
  void CountBytes() {
    push_bytes = pull_bytes = 0;
    for (uint32_t partition : partitions) {
      pull_bytes += table_->layout_->partition(partition).size() * sizeof(float);
      if (kind != Kind::kPull && weight > 0) push_bytes += table_->encoder_.BytesOf(partition);
    }
  }

  void TakePlaceOf(const Request& whole) {
    small = whole.small;
    step = whole.step;
    rank = whole.rank;
    pull_tick = whole.pull_tick;
    tick = whole.tick;
    weight = whole.weight;
    gradients = whole.gradients;
  }

  // Once, since a residual moves on: what travels now is what travels after a move.
  void Encode(pb::FrameHeader* header) {
    payload_ = table_->encoder_.Encode(partitions, gradients, header);
    if (!header->part(0).has_value_bytes()) return;
    for (const pb::Part& part : header->part()) value_bytes_.push_back(part.value_bytes());
  }

  void NameValues(pb::FrameHeader* header) const {
    for (size_t i = 0; i < partitions.size(); ++i) {
      pb::Part* part = header->mutable_part(static_cast<int>(i));
      part->set_count(table_->layout_->partition(partitions[i]).size());
      if (!value_bytes_.empty()) part->set_value_bytes(value_bytes_[i]);
    }
  }

  // By partition: slices of the payload; none if there is no payload.
  std::vector<Buffer> ValuesSent() const {
    std::vector<Buffer> values;
    if (payload_.empty()) return values;
    size_t buffer = 0;
    uint64_t offset = 0;
    for (size_t i = 0; i < partitions.size(); ++i) {
      const uint64_t bytes = value_bytes_.empty()
                                 ? table_->layout_->partition(partitions[i]).size() * sizeof(float)
                                 : value_bytes_[i];
      if (offset == payload_[buffer].size()) {
        ++buffer;
        offset = 0;
      }
      values.push_back(payload_[buffer].Slice(offset, bytes));
      offset += bytes;
    }
    return values;
  }

  DenseClient* const table_;
  // Of a push that has left once:
  std::vector<uint64_t> sequences_;    // by partition
  std::vector<uint64_t> value_bytes_;  // by partition, where a codec makes them
  std::vector<Buffer> payload_;
  uint64_t sent_bytes_ = 0;
};

absl::StatusOr<std::unique_ptr<DenseClient>> DenseClient::Create(ClientCore* core,
                                                                 const pb::TableSpec& table,
                                                                 TableRoute route) {
  absl::StatusOr<DenseLayout> layout = DenseLayout::Create(table);
  if (!layout.ok()) return layout.status();
  auto kept = std::make_unique<DenseLayout>(*std::move(layout));
  absl::StatusOr<DensePushEncoder> encoder =
      DensePushEncoder::Create(table, kept.get(), core->pool);
  if (!encoder.ok()) return encoder.status();
  const bool on_gpu = table.compute().placement() == pb::Compute::GPU;
  PayloadMover* const mover = on_gpu ? core->mover : nullptr;
  absl::StatusOr<DensePullDecoder> decoder =
      DensePullDecoder::Create(table, kept.get(), core->pool, mover);
  if (!decoder.ok()) return decoder.status();
  return std::unique_ptr<DenseClient>(new DenseClient(core, std::move(kept), std::move(route),
                                                      *std::move(encoder), *std::move(decoder)));
}

DenseClient::DenseClient(ClientCore* core, std::unique_ptr<DenseLayout> layout, TableRoute route,
                         DensePushEncoder encoder, DensePullDecoder decoder)
    : core_(core),
      layout_(std::move(layout)),
      route_(std::move(route)),
      encoder_(std::move(encoder)),
      decoder_(std::move(decoder)),
      streams_(layout_->partitions()) {
  std::vector<uint64_t> there(core_->queues->shards()), back(there.size());  // bytes, by shard
  for (uint32_t partition = 0; partition < layout_->partitions(); ++partition) {
    there[route_.owner[partition]] += encoder_.BytesOf(partition);
    back[route_.owner[partition]] += layout_->partition(partition).size() * sizeof(float);
  }
  for (size_t shard = 0; shard < there.size(); ++shard) {
    small_ &= std::max(there[shard], back[shard]) <= ShardQueues::kSmallBytes;
  }
}

// Cuts partitions into messages: of one owner each, capped in bytes, ordered by the first of each.
std::vector<std::vector<uint32_t>> DenseClient::Group(absl::Span<const uint32_t> partitions) const {
  constexpr size_t kNone = ~size_t{0};
  std::vector<std::vector<uint32_t>> groups;
  std::vector<size_t> open(core_->queues->shards(), kNone);  // by shard: its group not full yet
  std::vector<uint64_t> bytes;                               // by group
  for (uint32_t partition : partitions) {
    const uint64_t size = layout_->partition(partition).size() * sizeof(float);
    size_t& group = open[route_.owner[partition]];
    if (group == kNone || bytes[group] + size > core_->max_request_bytes ||
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

void DenseClient::Send(absl::Span<const uint32_t> partitions, const Request& like) {
  for (std::vector<uint32_t>& group : Group(partitions)) {
    auto request = std::make_unique<Request>(like);
    const uint32_t shard = route_.owner[group.front()];
    request->partitions = std::move(group);
    request->Place();
    core_->queues->Enqueue(shard, std::move(request));
  }
}

void DenseClient::BeginPull(uint64_t tick, float* parameters, OnArrived on_arrived, OnPulled done) {
  assert(!pull_.active);
  if (core_->queues->failed()) return;
  pull_ = OpenPull{};
  pull_.active = true;
  pull_.tick = tick;
  pull_.parameters = parameters;
  pull_.missing = layout_->partitions();
  pull_.result.min_clock = pull_.result.min_version = std::numeric_limits<uint64_t>::max();
  pull_.on_arrived = std::move(on_arrived);
  pull_.done = std::move(done);
}

void DenseClient::Pull(uint64_t tick, float* parameters, OnArrived on_arrived, OnPulled done) {
  BeginPull(tick, parameters, std::move(on_arrived), std::move(done));
  // Tensors lie in the order in which forward uses them, and partitions are numbered along them.
  std::vector<uint32_t> all(layout_->partitions());
  std::iota(all.begin(), all.end(), 0);
  Request like(this, Request::Kind::kPull);
  like.pull_tick = tick;
  Send(all, like);
}

void DenseClient::Push(uint64_t tick, double weight, absl::Span<const uint32_t> partitions,
                       const Buffer& gradients) {
  assert(weight == 0 || gradients.num_floats() == layout_->elements());
  Request like(this, Request::Kind::kPush);
  like.tick = tick;
  like.weight = weight;
  like.gradients = gradients;
  Send(partitions, like);
}

void DenseClient::PushPull(uint64_t tick, double weight, absl::Span<const uint32_t> partitions,
                           const Buffer& gradients) {
  assert(weight == 0 || gradients.num_floats() == layout_->elements());
  assert(pull_.active || core_->queues->failed());
  Request like(this, Request::Kind::kPushPull);
  like.tick = tick;
  like.weight = weight;
  like.gradients = gradients;
  like.pull_tick = pull_.tick;
  Send(partitions, like);
}

absl::Status DenseClient::TakeAnswer(const std::vector<uint32_t>& partitions, const Frame& answer) {
  if (static_cast<size_t>(answer.header.part_size()) != partitions.size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("the answer has %d parts, expected is %d, as many as were asked for",
                        answer.header.part_size(), partitions.size()));
  }
  for (size_t i = 0; i < partitions.size(); ++i) {
    const uint32_t partition = answer.header.part(static_cast<int>(i)).partition();
    if (partition != partitions[i]) {
      return absl::InvalidArgumentError(
          absl::StrFormat("part %d of the answer is partition %d, expected is %d as asked", i,
                          partition, partitions[i]));
    }
  }
  const std::vector<PartPayload> payload = SplitPayload(answer);
  PullResult& result = pull_.result;
  for (size_t i = 0; i < partitions.size(); ++i) {
    const pb::Part& part = answer.header.part(static_cast<int>(i));
    absl::Status status =
        decoder_.Take(pull_.tick == kFinalTick, part, payload[i].values, pull_.parameters);
    if (!status.ok()) {
      decoder_.Finish().IgnoreError();  // of the parts before
      return status;
    }
    core_->counters.bytes_pulled += payload[i].values.size();
    result.min_clock = std::min(result.min_clock, part.min_clock());
    result.min_version = std::min(result.min_version, part.version());
    result.max_version = std::max(result.max_version, part.version());
  }
  return decoder_.Finish();
}

void DenseClient::AfterAnswer(const std::vector<uint32_t>& partitions) {
  pull_.missing -= static_cast<uint32_t>(partitions.size());
  // The pull may be over and the next begun once the last callback has run.
  const bool complete = pull_.missing == 0;
  if (!complete) {
    pull_.on_arrived(partitions);
    return;
  }
  OnArrived arrived = std::move(pull_.on_arrived);
  OnPulled done = std::move(pull_.done);
  const PullResult result = pull_.result;
  arrived(partitions);
  if (core_->queues->failed()) return;
  pull_.active = false;
  done(result);
}

}  // namespace parley
