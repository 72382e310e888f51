// What one server tells another of a partition: the state that a copy begins with, in pieces, and
// the operations on it. At the other end a BackupPartition, which is promoted now and then.
//
//   u8 kind of FuzzTable, then steps: u8 what, modulo 7
//   kSync        u8 attempt, u16 the body's size, the body, u8 buffers, u16 their sizes, bytes
//   kState       u8 how (bit 0: the right digest), u8 attempt, u8 index, u16 and u16 the sizes of
//                TableState and HostedState, the two, then the arrays' bytes: cut as a primary does
//   kOperation   u8 how (bits: the next index; counts that fit; a tick that fits), u16 the sizes of
//                ReplicaOp, keys and values, the three
//   kTrue        u8 count: so many operations of a real primary, and before the first its state
//   kPrimary     u8 node: by a new map
//   kPromote     the copy becomes a primary, and a new copy takes its place
//   kUpdate      u8 worker, u8 tick: at the last one that was promoted
#include <algorithm>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ps/server/backup_partition.h"
#include "ps/server/snapshot_stream.h"
#include "ps/wire/codec.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/fuzz/fuzz_tables.h"

namespace parley {
namespace {

constexpr int kMaxSteps = 64;
enum Step : uint8_t { kSync, kState, kOperation, kTrue, kPrimary, kPromote, kUpdate };
constexpr uint8_t kSteps = 7;

// As it comes over the network: anywhere, of exactly this size.
Buffer Unaligned(std::string_view bytes) {
  if (bytes.empty()) return Buffer();
  auto* copy = new ExactBytes(std::string(1, '\0').append(bytes));
  return Buffer::Wrap(copy->data() + 1, bytes.size(), [copy] { delete copy; });
}

class Fuzzed {
 public:
  explicit Fuzzed(uint8_t kind) : table_(kind) { Begin(); }

  ~Fuzzed() { Promote(); }

  void Do(FuzzInput* input) {
    switch (input->Take<uint8_t>() % kSteps) {
      case kSync:
        return Sync(input);
      case kState:
        return State(input);
      case kOperation:
        return Operation(input);
      case kTrue:
        return True(input);
      case kPrimary:
        return backup_->SetPrimary(NodeId{input->Take<uint8_t>()});
      case kPromote:
        return Promote();
      case kUpdate: {
        const auto worker = input->Take<uint8_t>();
        return Update(promoted_.get(), worker, input->Take<uint8_t>());
      }
    }
  }

 private:
  void Begin() {
    asked_ = answered_ = 0;
    last_index_ = 0;
    backup_ = std::make_unique<BackupPartition>(
        NodeId{1}, [this]() -> absl::StatusOr<std::unique_ptr<HostedPartition>> { return Made(); },
        [this](NodeId, const pb::FrameHeader& request, const absl::Status& status) {
          OnAnswer(request, status);
        },
        table_.pool());
  }

  std::unique_ptr<HostedPartition> Made() {
    return table_.Make(
        [this](uint32_t, NormGroup group, double share) { norms_.emplace_back(group, share); });
  }

  void OnAnswer(const pb::FrameHeader& request, const absl::Status& status) {
    ++answered_;
    Check(answered_ <= asked_, "a request is answered once");
    Check(status.ok() || !status.message().empty(), "a refusal says why");
    if (request.kind() == pb::REPLICATE && status.ok()) {
      pb::ReplicaOp op;
      Check(op.ParseFromString(request.body()), "what is no operation is not taken");
      last_index_ = std::max(last_index_, op.index());
    }
  }

  // A frame that the codec of frames refuses never gets here.
  void Give(pb::FrameHeader header, std::vector<Buffer> payload) {
    header.set_protocol(1);
    header.set_job(5);
    header.set_request_id(++asked_);
    header.set_epoch(1);
    absl::StatusOr<Frame> frame = DecodeFrame(EncodeHeader(header), std::move(payload));
    if (!frame.ok() || frame->header.part().empty()) {
      --asked_;
      return;
    }
    if (frame->header.kind() == pb::SYNC) {
      const uint64_t before = answered_;
      backup_->OnSync(*frame);
      Check(answered_ > before, "a piece of a state is answered at once");
    } else {
      backup_->OnOp(*frame);
    }
  }

  void Sync(FuzzInput* input) {
    pb::FrameHeader header;
    header.set_kind(pb::SYNC);
    const auto attempt = input->Take<uint8_t>();
    const auto size = input->Take<uint16_t>();
    header.set_body(std::string(input->TakeBytes(size)));
    std::vector<uint16_t> sizes(input->Take<uint8_t>() % 8);
    for (uint16_t& bytes : sizes) bytes = input->Take<uint16_t>();
    std::vector<Buffer> payload;
    for (const uint16_t bytes : sizes) {
      Buffer piece = Unaligned(input->TakeBytes(bytes));
      if (piece.empty()) continue;
      pb::Part* part = header.add_part();
      part->set_sequence(attempt);
      part->set_value_bytes(piece.size());
      payload.push_back(std::move(piece));
    }
    if (payload.empty()) header.add_part()->set_sequence(attempt);
    Give(std::move(header), std::move(payload));
  }

  void GiveSnapshot(PartitionSnapshot snapshot, uint64_t attempt) {
    SnapshotReader reader(std::move(snapshot));
    while (!reader.done()) {
      Frame frame;
      reader.Next(0, attempt, &frame);
      frame.header.set_kind(pb::SYNC);
      std::vector<Buffer> payload;
      for (const Buffer& piece : frame.payload) payload.push_back(Unaligned(piece.view()));
      Give(std::move(frame.header), std::move(payload));
    }
  }

  void State(FuzzInput* input) {
    const auto how = input->Take<uint8_t>();
    const auto attempt = input->Take<uint8_t>();
    const auto index = input->Take<uint8_t>();
    const auto header_bytes = input->Take<uint16_t>(), own_bytes = input->Take<uint16_t>();
    const std::string_view header = input->TakeBytes(header_bytes);
    PartitionSnapshot snapshot;
    snapshot.index = index;
    snapshot.server_state = std::string(input->TakeBytes(own_bytes));
    if (!snapshot.values.header.ParseFromArray(header.data(), static_cast<int>(header.size()))) {
      return;
    }
    for (const pb::StateArray& array : snapshot.values.header.array()) {
      uint64_t bytes = 0;
      if (!ArrayBytes(array, &bytes).ok() || bytes > input->left()) return;
      snapshot.values.bytes.push_back(Unaligned(input->TakeBytes(bytes)));
    }
    if (how & 1) {
      // The digest comes last: a partition that refuses it is what was loaded in all else.
      const auto scratch = Made();
      if (absl::IsDataLoss(scratch->Load(snapshot))) snapshot.digest = scratch->Digest();
    }
    GiveSnapshot(std::move(snapshot), attempt);
  }

  void Operation(FuzzInput* input) {
    const auto how = input->Take<uint8_t>();
    const auto size = input->Take<uint16_t>();
    const auto key_bytes = input->Take<uint16_t>(), value_bytes = input->Take<uint16_t>();
    const std::string_view body = input->TakeBytes(size);
    pb::ReplicaOp op;
    if (!op.ParseFromArray(body.data(), static_cast<int>(body.size()))) return;
    if (how & 1) op.set_index(last_index_ + 1);
    Buffer keys = Unaligned(input->TakeBytes(key_bytes));
    Buffer values = Unaligned(input->TakeBytes(value_bytes));
    pb::FrameHeader header;
    header.set_kind(pb::REPLICATE);
    header.set_body(op.SerializeAsString());
    pb::Part* part = header.add_part();
    part->set_keys(how & 2 ? static_cast<uint32_t>(keys.size() / sizeof(uint64_t)) : how);
    part->set_key_bytes(keys.size());
    part->set_count(values.size() / sizeof(float));
    std::vector<Buffer> payload;
    for (Buffer* buffer : {&keys, &values}) {
      if (!buffer->empty()) payload.push_back(std::move(*buffer));
    }
    Give(std::move(header), std::move(payload));
  }

  // What a primary really does, step after step.
  void True(FuzzInput* input) {
    const int count = input->Take<uint8_t>() % 8;
    if (primary_ == nullptr) {
      primary_ = table_.Make([this](uint32_t, NormGroup group, double share) {
        primary_norms_.emplace_back(group, share);
      });
      primary_->SetOpSink([this](uint32_t, pb::ReplicaOp op, SummedGradient sum) {
        primary_->OnDurable(op.index());
        ops_.emplace_back(std::move(op), std::move(sum));
      });
      primary_->SetReplicated(true);
    }
    if (count == 0) {
      ops_.clear();
      const PartitionSnapshot snapshot = primary_->Save();
      last_index_ = snapshot.index;
      return GiveSnapshot(snapshot, ++attempt_);
    }
    for (int i = 0; i < count; ++i) {
      if (ops_.empty()) {
        const auto worker = static_cast<uint32_t>(pushed_ % FuzzTable::kWorkers);
        Update(primary_.get(), worker, pushed_++ / FuzzTable::kWorkers);
      }
      while (!primary_norms_.empty()) {
        const auto [group, share] = primary_norms_.front();
        primary_norms_.pop_front();
        primary_->OnNorm(group, share);
      }
      if (ops_.empty()) continue;
      auto [op, sum] = std::move(ops_.front());
      ops_.pop_front();
      pb::FrameHeader header;
      header.set_kind(pb::REPLICATE);
      header.set_body(op.SerializeAsString());
      pb::Part* part = header.add_part();
      part->set_keys(static_cast<uint32_t>(sum.keys.size() / sizeof(uint64_t)));
      part->set_key_bytes(sum.keys.size());
      part->set_count(sum.values.num_floats());
      std::vector<Buffer> payload;
      for (const Buffer& buffer : {sum.keys, sum.values}) {
        if (!buffer.empty()) payload.push_back(Unaligned(buffer.view()));
      }
      Give(std::move(header), std::move(payload));
    }
  }

  // What a worker pushes, as far as the partition lets it; then it reads.
  void Update(HostedPartition* partition, uint32_t worker, uint64_t tick) {
    if (partition == nullptr) return;
    table_.Push(partition, worker, tick);
    if (!partition->MayRead(tick)) return;
    const uint64_t keys[] = {tick, 40, 41};
    pb::Part asked, answer;
    asked.set_base_version(tick);
    const Buffer read = partition->Read(
        worker, tick, asked,
        table_.sparse() ? Unaligned({reinterpret_cast<const char*>(keys), sizeof(keys)}) : Buffer(),
        &answer);
    ReadAll(read.data(), read.size());
  }

  // A copy that has anything is as good as a primary, whatever it was told.
  void Promote() {
    std::unique_ptr<HostedPartition> state = backup_->has_state() ? backup_->TakeState() : nullptr;
    Begin();
    if (state == nullptr) return;
    promoted_ = std::move(state);
    promoted_->Resume();
    while (!norms_.empty()) {
      const auto [group, share] = norms_.front();
      norms_.pop_front();
      promoted_->OnNorm(group, share);
    }
    PartitionSnapshot snapshot = promoted_->Save();
    Check(snapshot.values.Check().ok(), "what is saved is whole");
    Check(snapshot.digest == promoted_->Digest(), "its digest is its own");
    const auto again = Made();
    Check(again->Load(std::move(snapshot)).ok(), "whatever was loaded can be saved and loaded");
    norms_.clear();
  }

  FuzzTable table_;
  std::deque<std::pair<NormGroup, double>> norms_, primary_norms_;
  std::unique_ptr<BackupPartition> backup_;
  std::unique_ptr<HostedPartition> promoted_, primary_;
  std::deque<std::pair<pb::ReplicaOp, SummedGradient>> ops_;
  uint64_t asked_ = 0, answered_ = 0, last_index_ = 0, attempt_ = 0, pushed_ = 0;
};

}  // namespace
}  // namespace parley

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  parley::FuzzInput input(data, size);
  parley::Fuzzed fuzzed(input.Take<uint8_t>());
  for (int step = 0; step < parley::kMaxSteps && input.left() > 0; ++step) fuzzed.Do(&input);
  return 0;
}
