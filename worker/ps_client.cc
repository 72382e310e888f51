#include "worker/ps_client.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace parley {

struct PsClient::Message {
  pb::Kind kind = pb::PULL;  // PUSH, PULL or LEAVE
  uint64_t tick = 0;
  double weight = 0;
  std::vector<uint32_t> partitions;
  std::vector<uint64_t> sequences;  // push: of each partition
  std::vector<Buffer> payload;      // push: of each partition, none if weight is 0
  uint64_t payload_bytes = 0;
};

struct PsClient::InFlight {
  uint64_t id;
  uint32_t shard;
  CallId call;
  std::unique_ptr<Message> message;
};

namespace {

std::string ShardName(const pb::ShardAddress& shard) {
  return absl::StrFormat("server %d shard %d (%s)", shard.server_rank(), shard.shard(),
                         shard.endpoint());
}

}  // namespace

absl::StatusOr<std::unique_ptr<PsClient>> PsClient::Create(Rpc* rpc,
                                                           const pb::Assignment& assignment,
                                                           uint32_t table, Options options) {
  for (const pb::TableSpec& spec : assignment.table()) {
    if (spec.id() != table) continue;
    absl::StatusOr<DenseLayout> layout = DenseLayout::Create(spec);
    if (!layout.ok()) return layout.status();
    auto client = std::unique_ptr<PsClient>(
        new PsClient(rpc, *layout, table, assignment.map().epoch(), std::move(options)));
    absl::Status status = client->AddShards(assignment.map());
    if (!status.ok()) return status;
    return client;
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("assignment: table %d is not in it, expected is the one registered", table));
}

PsClient::PsClient(Rpc* rpc, DenseLayout layout, uint32_t table, uint64_t epoch, Options options)
    : rpc_(rpc),
      layout_(std::move(layout)),
      table_(table),
      epoch_(epoch),
      options_(std::move(options)),
      streams_(layout_.partitions()) {}

PsClient::~PsClient() {
  for (const InFlight& flight : in_flight_) rpc_->Cancel(flight.call);
}

absl::Status PsClient::AddShards(const pb::PartitionMap& map) {
  for (const pb::ShardAddress& address : map.shard()) {
    Shard shard;
    shard.node = NodeId{address.node()};
    shard.name = ShardName(address);
    shards_.push_back(std::move(shard));
  }
  for (const pb::TableMap& owners : map.table()) {
    if (owners.table() != table_) continue;
    if (static_cast<uint32_t>(owners.owner_size()) != layout_.partitions()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("assignment: the map of table %d has %d owners, expected is one for each "
                          "of %d partitions",
                          table_, owners.owner_size(), layout_.partitions()));
    }
    for (uint32_t partition = 0; partition < layout_.partitions(); ++partition) {
      const uint32_t owner = owners.owner(static_cast<int>(partition));
      if (owner >= shards_.size()) {
        return absl::InvalidArgumentError(
            absl::StrFormat("assignment: partition %d of table %d is owned by shard %d, allowed is "
                            "less than %d",
                            partition, table_, owner, shards_.size()));
      }
      owner_.push_back(owner);
    }
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("assignment: it has no partition map of table %d", table_));
}

// Cuts partitions into messages: of one owner each, capped in bytes, ordered by the first of each.
std::vector<std::vector<uint32_t>> PsClient::Group(const std::vector<uint32_t>& partitions) const {
  constexpr size_t kNone = ~size_t{0};
  std::vector<std::vector<uint32_t>> groups;
  std::vector<size_t> open(shards_.size(), kNone);  // by shard: its group that is not full yet
  std::vector<uint64_t> bytes;                      // by group
  for (uint32_t partition : partitions) {
    const uint64_t size = layout_.partition(partition).size() * sizeof(float);
    size_t& group = open[owner_[partition]];
    if (group == kNone || bytes[group] + size > options_.max_request_bytes ||
        groups[group].size() >= kMaxParts) {
      group = groups.size();
      groups.emplace_back();
      bytes.push_back(0);
    }
    groups[group].push_back(partition);
    bytes[group] += size;
  }
  return groups;
}

void PsClient::Pull(uint64_t tick, float* parameters, OnArrived on_arrived, OnPulled done) {
  assert(!pull_.active);
  if (failed_) return;
  pull_ = PullState{};
  pull_.active = true;
  pull_.tick = tick;
  pull_.parameters = parameters;
  pull_.missing = layout_.partitions();
  pull_.result.min_clock = pull_.result.min_version = std::numeric_limits<uint64_t>::max();
  pull_.on_arrived = std::move(on_arrived);
  pull_.done = std::move(done);
  // Tensors lie in the order in which forward uses them, and partitions are numbered along them.
  std::vector<uint32_t> all(layout_.partitions());
  for (uint32_t i = 0; i < all.size(); ++i) all[i] = i;
  for (std::vector<uint32_t>& group : Group(all)) {
    auto message = std::make_unique<Message>();
    message->kind = pb::PULL;
    message->tick = tick;
    const uint32_t shard = owner_[group.front()];
    message->partitions = std::move(group);
    Enqueue(shard, std::move(message));
  }
}

void PsClient::Push(uint64_t tick, double weight, absl::Span<const uint32_t> partitions,
                    const Buffer& gradients) {
  assert(weight == 0 || gradients.num_floats() == layout_.elements());
  if (failed_) return;
  for (std::vector<uint32_t>& group :
       Group(std::vector<uint32_t>(partitions.begin(), partitions.end()))) {
    auto message = std::make_unique<Message>();
    message->kind = pb::PUSH;
    message->tick = tick;
    message->weight = weight;
    for (uint32_t partition : group) {
      message->sequences.push_back(streams_[partition].next_sequence++);
      if (weight == 0) continue;
      const Range range = layout_.partition(partition);
      message->payload.push_back(
          gradients.Slice(range.begin * sizeof(float), range.size() * sizeof(float)));
      message->payload_bytes += message->payload.back().size();
    }
    const uint32_t shard = owner_[group.front()];
    message->partitions = std::move(group);
    ++pushes_open_;
    Enqueue(shard, std::move(message));
  }
}

void PsClient::Enqueue(uint32_t shard, std::unique_ptr<Message> message) {
  shards_[shard].queue.push_back(std::move(message));
  SendQueued(shard);
}

void PsClient::SendQueued(uint32_t shard) {
  std::deque<std::unique_ptr<Message>>& queue = shards_[shard].queue;
  while (!queue.empty() && MaySend(shards_[shard], *queue.front())) {
    std::unique_ptr<Message> message = std::move(queue.front());
    queue.pop_front();
    Send(shard, std::move(message));
  }
}

bool PsClient::MaySend(const Shard& shard, const Message& message) const {
  if (message.kind != pb::PUSH) return shard.pulls_in_flight < kMaxInFlight;
  if (shard.pushes_in_flight >= kMaxInFlight) return false;
  for (size_t i = 0; i < message.partitions.size(); ++i) {
    const Stream& stream = streams_[message.partitions[i]];
    if (message.sequences[i] >= stream.acked_below + kMaxUnacknowledged) return false;
  }
  return true;
}

void PsClient::Send(uint32_t shard_index, std::unique_ptr<Message> message) {
  Shard& shard = shards_[shard_index];
  const uint64_t id = next_message_++;
  CallOptions options{.deadline = options_.progress_timeout, .what = Describe(shard, *message)};
  ++(message->kind == pb::PUSH ? shard.pushes_in_flight : shard.pulls_in_flight);
  const CallId call = rpc_->Call(shard.node, MakeFrame(*message), std::move(options),
                                 [this, shard_index, id](absl::StatusOr<Frame> answer) {
                                   OnAnswer(shard_index, id, std::move(answer));
                                 });
  message->payload.clear();  // the rpc holds it from here on
  in_flight_.push_back({id, shard_index, call, std::move(message)});
}

Frame PsClient::MakeFrame(const Message& message) {
  Frame frame;
  frame.header.set_kind(message.kind);
  frame.header.set_table(table_);
  frame.header.set_epoch(epoch_);
  if (message.kind == pb::LEAVE) {
    pb::Leave leave;
    leave.set_after_tick(message.tick);
    frame.header.set_body(leave.SerializeAsString());
    return frame;
  }
  frame.header.set_tick(message.tick);
  if (message.kind == pb::PUSH) frame.header.set_weight(message.weight);
  for (size_t i = 0; i < message.partitions.size(); ++i) {
    const uint32_t partition = message.partitions[i];
    pb::Part* part = frame.header.add_part();
    part->set_partition(partition);
    if (message.kind != pb::PUSH) continue;
    part->set_count(message.payload.empty() ? 0 : layout_.partition(partition).size());
    part->set_sequence(message.sequences[i]);
    part->set_acked_below(streams_[partition].acked_below);
  }
  frame.payload = message.payload;
  return frame;
}

void PsClient::OnAnswer(uint32_t shard_index, uint64_t id, absl::StatusOr<Frame> answer) {
  auto flight = std::find_if(in_flight_.begin(), in_flight_.end(),
                             [id](const InFlight& candidate) { return candidate.id == id; });
  assert(flight != in_flight_.end());
  std::unique_ptr<Message> message = std::move(flight->message);
  in_flight_.erase(flight);
  Shard& shard = shards_[shard_index];
  --(message->kind == pb::PUSH ? shard.pushes_in_flight : shard.pulls_in_flight);
  if (failed_) return;

  if (!answer.ok() && absl::IsDeadlineExceeded(answer.status()) && message->kind == pb::PULL &&
      message->tick == kFinalTick) {
    if (options_.log) options_.log(absl::StrCat("still waiting: ", answer.status().message()));
    Enqueue(shard_index, std::move(message));
    return;
  }
  if (!answer.ok()) {
    // A deadline's message names the request already.
    const std::string what = Describe(shard, *message);
    const std::string text(answer.status().message());
    Fail(absl::StartsWith(text, what)
             ? answer.status()
             : absl::Status(answer.status().code(), absl::StrCat(what, ": ", text)));
    return;
  }
  if (message->kind == pb::PULL) {
    absl::Status status = CheckPullAnswer(*message, *answer);
    if (!status.ok()) {
      Fail(absl::Status(status.code(),
                        absl::StrCat(Describe(shard, *message), ": ", status.message())));
      return;
    }
  }
  // After a push, once its acknowledgement is counted: the next one should say so.
  if (message->kind != pb::PUSH) SendQueued(shard_index);
  switch (message->kind) {
    case pb::PUSH:
      OnPushed(*message);
      break;
    case pb::PULL:
      OnPullAnswer(*message, *answer);
      break;
    default:
      if (--leaves_missing_ == 0) std::exchange(on_left_, nullptr)();
      break;
  }
}

void PsClient::OnPushed(const Message& message) {
  for (size_t i = 0; i < message.partitions.size(); ++i) {
    Acknowledge(message.partitions[i], message.sequences[i]);
  }
  counters_.pushes_acked += message.partitions.size();
  counters_.bytes_pushed += message.payload_bytes;
  --pushes_open_;
  SendQueued(owner_[message.partitions.front()]);
  MaybeAllAcknowledged();
}

void PsClient::Acknowledge(uint32_t partition, uint64_t sequence) {
  Stream& stream = streams_[partition];
  if (sequence != stream.acked_below) {
    stream.acked_ahead.insert(sequence);
    return;
  }
  ++stream.acked_below;
  while (stream.acked_ahead.erase(stream.acked_below) > 0) ++stream.acked_below;
}

absl::Status PsClient::CheckPullAnswer(const Message& message, const Frame& answer) const {
  const size_t parts = message.partitions.size();
  if (static_cast<size_t>(answer.header.part_size()) != parts || answer.payload.size() != parts) {
    return absl::InvalidArgumentError(
        absl::StrFormat("the answer has %d parts and %d payloads, expected is %d of each",
                        answer.header.part_size(), answer.payload.size(), parts));
  }
  for (size_t i = 0; i < parts; ++i) {
    const pb::Part& part = answer.header.part(static_cast<int>(i));
    if (part.partition() != message.partitions[i]) {
      return absl::InvalidArgumentError(
          absl::StrFormat("part %d of the answer is partition %d, expected is %d as asked", i,
                          part.partition(), message.partitions[i]));
    }
    const uint64_t expected = layout_.partition(part.partition()).size();
    if (part.count() != expected || answer.payload[i].size() != expected * sizeof(float)) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "partition %d in the answer has count %d and %d bytes, expected is %d and %d",
          part.partition(), part.count(), answer.payload[i].size(), expected,
          expected * sizeof(float)));
    }
  }
  return absl::OkStatus();
}

void PsClient::OnPullAnswer(const Message& message, const Frame& answer) {
  PullResult& result = pull_.result;
  for (size_t i = 0; i < message.partitions.size(); ++i) {
    const pb::Part& part = answer.header.part(static_cast<int>(i));
    const Buffer& payload = answer.payload[i];
    std::memcpy(pull_.parameters + layout_.partition(part.partition()).begin, payload.data(),
                payload.size());
    counters_.bytes_pulled += payload.size();
    result.min_clock = std::min(result.min_clock, part.min_clock());
    result.min_version = std::min(result.min_version, part.version());
    result.max_version = std::max(result.max_version, part.version());
  }
  pull_.missing -= static_cast<uint32_t>(message.partitions.size());
  // The pull may be over and the next begun once the last callback has run.
  const bool complete = pull_.missing == 0;
  pull_.on_arrived(message.partitions);
  if (!complete || failed_) return;
  pull_.active = false;
  OnPulled done = std::move(pull_.done);
  done(PullResult(result));
}

void PsClient::WhenAllAcknowledged(absl::AnyInvocable<void()> done) {
  on_all_acknowledged_ = std::move(done);
  MaybeAllAcknowledged();
}

void PsClient::MaybeAllAcknowledged() {
  if (pushes_open_ == 0 && on_all_acknowledged_) std::exchange(on_all_acknowledged_, nullptr)();
}

void PsClient::Leave(uint64_t after_tick, absl::AnyInvocable<void()> done) {
  assert(pushes_open_ == 0);
  if (failed_) return;
  leaves_missing_ = static_cast<uint32_t>(shards_.size());
  on_left_ = std::move(done);
  for (uint32_t shard = 0; shard < shards_.size(); ++shard) {
    auto message = std::make_unique<Message>();
    message->kind = pb::LEAVE;
    message->tick = after_tick;
    Enqueue(shard, std::move(message));
  }
}

std::string PsClient::WaitingFor() const {
  if (in_flight_.empty()) return "";
  const InFlight& oldest = in_flight_.front();
  const std::string reason = rpc_->ParkedFor(oldest.call);
  return reason.empty() ? Describe(shards_[oldest.shard], *oldest.message) : reason;
}

std::string PsClient::Describe(const Shard& shard, const Message& message) const {
  switch (message.kind) {
    case pb::PUSH:
      return absl::StrFormat("push of step %d to %s", message.tick, shard.name);
    case pb::PULL:
      if (message.tick == kFinalTick)
        return absl::StrCat("pull of the final weights from ", shard.name);
      return absl::StrFormat("pull of step %d from %s", message.tick, shard.name);
    default:
      return absl::StrFormat("leave after %d steps to %s", message.tick, shard.name);
  }
}

void PsClient::Fail(const absl::Status& status) {
  if (std::exchange(failed_, true)) return;
  for (const InFlight& flight : in_flight_) rpc_->Cancel(flight.call);
  in_flight_.clear();
  for (Shard& shard : shards_) shard.queue.clear();
  options_.on_error(status);
}

}  // namespace parley
