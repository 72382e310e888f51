#include "ps/server/replica_sender.h"

#include <algorithm>
#include <new>
#include <utility>

#include "absl/strings/str_format.h"
#include "ps/table/gpu_place.h"

namespace parley {
namespace {

// A copy that cannot be brought up now is tried again after this.
constexpr absl::Duration kPause = absl::Milliseconds(500);

// Losing a message of this kind holds up a step, so little silence is taken for loss. But what is
// still on its way through a slow network must not be sent once more behind itself.
CallOptions ToCopy(std::string what, uint64_t bytes) {
  constexpr double kSlowBytesPerSecond = 32 << 20;
  const absl::Duration transfer = absl::Seconds(static_cast<double>(bytes) / kSlowBytesPerSecond);
  CallOptions options;
  options.attempt = absl::Milliseconds(250) + transfer;
  options.max_attempt = absl::Seconds(2) + 2 * transfer;
  options.what = std::move(what);
  return options;
}

// The i-th Part has the i-th piece of the keys, and that of the values; there is one at least.
void CutOp(const SharedOp& op, uint32_t partition, Frame* frame) {
  const auto piece_of = [](const Buffer& whole, uint64_t offset) {
    if (offset >= whole.size()) return Buffer();
    return whole.Slice(offset, std::min(ReplicaSender::kMaxPieceBytes, whole.size() - offset));
  };
  uint64_t offset = 0;
  do {
    pb::Part* part = frame->header.add_part();
    part->set_partition(partition);
    if (Buffer keys = piece_of(op.keys, offset); !keys.empty()) {
      part->set_keys(static_cast<uint32_t>(keys.size() / sizeof(uint64_t)));
      part->set_key_bytes(keys.size());
      frame->payload.push_back(std::move(keys));
    }
    if (Buffer values = piece_of(op.values, offset); !values.empty()) {
      part->set_count(values.num_floats());
      frame->payload.push_back(std::move(values));
    }
    offset += ReplicaSender::kMaxPieceBytes;
  } while (offset < std::max(op.keys.size(), op.values.size()));
}

}  // namespace

ReplicaSender::ReplicaSender(Env* env, Rpc* rpc, ReplicaHost* host, uint32_t table,
                             uint32_t partition, const BackupPlace& place)
    : env_(env),
      rpc_(rpc),
      host_(host),
      table_(table),
      partition_(partition),
      place_(place),
      counts_(place.synced),
      told_synced_(place.synced),
      alive_(std::make_shared<int>()) {
  // Whatever the copy has, it has it from another primary, or from another time here.
  Restart(absl::ZeroDuration());
}

ReplicaSender::~ReplicaSender() {
  env_->Cancel(timer_);
  CancelCalls();
  GiveTurnBack();
}

std::string ReplicaSender::Name() const {
  return absl::StrFormat("the copy of table %d, partition %d at %s", table_, partition_,
                         place_.name);
}

void ReplicaSender::CancelCalls() {
  if (sync_call_) rpc_->Cancel(*sync_call_);
  sync_call_.reset();
  for (Pending& pending : queue_) {
    if (pending.call) rpc_->Cancel(*pending.call);
  }
}

void ReplicaSender::GiveTurnBack() {
  if (std::exchange(has_turn_, false)) host_->GiveTurnBack();
}

// Everything from the start: operations so far will be in the snapshot.
void ReplicaSender::Restart(absl::Duration delay) {
  CancelCalls();
  GiveTurnBack();
  queue_.clear();
  queued_bytes_ = 0;
  sent_ = 0;
  sent_bytes_ = 0;
  snapshot_.reset();
  message_ = Frame();
  state_ = State::kWaiting;
  env_->Cancel(timer_);
  timer_ = env_->After(delay, [this] {
    timer_ = kNoTimer;
    host_->AwaitTurn(alive_, [this] { BeginSync(); });
  });
}

void ReplicaSender::BeginSync() {
  has_turn_ = true;
  try {
    snapshot_.emplace(host_->Snapshot(table_, partition_));
  } catch (const std::bad_alloc& failure) {
    return OnRefused(StatusOf(failure, "there is no memory for it here"));
  }
  snapshot_bytes_ = snapshot_->total_bytes();
  state_ = State::kSyncing;
  attempt_ = host_->NextAttempt();
  if (MakeMessage()) SendSync();
}

// False: there is none, and it is over for now.
bool ReplicaSender::MakeMessage() {
  try {
    message_ = Frame();
    snapshot_->Next(partition_, attempt_, &message_);
    return true;
  } catch (const std::bad_alloc&) {
    OnRefused(absl::ResourceExhaustedError("there is no memory for a message here"));
    return false;
  }
}

void ReplicaSender::SendSync() {
  message_epoch_ = host_->epoch();
  message_refused_ = false;
  Frame frame = message_;
  frame.header.set_kind(pb::SYNC);
  frame.header.set_table(table_);
  frame.header.set_epoch(message_epoch_);
  CallOptions options = ToCopy("bringing up " + Name(), frame.payload_bytes());
  sync_call_ = rpc_->Call(place_.node, std::move(frame), std::move(options),
                          [this](absl::StatusOr<Frame> answer) { OnSyncAnswer(answer.status()); });
}

void ReplicaSender::OnSyncAnswer(const absl::Status& status) {
  sync_call_.reset();
  if (absl::IsFailedPrecondition(status)) {
    message_refused_ = true;
    if (host_->epoch() > message_epoch_) SendSync();
    return;
  }
  if (absl::IsDeadlineExceeded(status)) return SendSync();
  if (!status.ok()) return OnRefused(status);
  if (snapshot_->done()) return OnSynced();
  if (MakeMessage()) SendSync();
}

void ReplicaSender::OnRefused(const absl::Status& status) {
  host_->Log(
      absl::StrFormat("%s cannot be brought up; it is tried again: %s", Name(), status.ToString()));
  Restart(kPause);
  const bool is_told = !news_.empty() && news_.back().what() == pb::BackupNews::UNSYNCED;
  if (counts_ && !is_told) Tell(pb::BackupNews::UNSYNCED, std::string(status.message()));
  LetGo();
}

void ReplicaSender::OnSynced() {
  acknowledged_ = std::max(acknowledged_, snapshot_->index());
  snapshot_.reset();
  message_ = Frame();
  GiveTurnBack();
  state_ = State::kFollowing;
  // From now on nothing is durable without it; once it has what was durable before, it has
  // everything that was ever acknowledged.
  counts_ = true;
  announce_at_ = host_->durable_index(table_, partition_);
  SendOps();
  MaybeTellSynced();
  host_->OnProgress(table_, partition_);
}

void ReplicaSender::Enqueue(std::shared_ptr<const SharedOp> op) {
  if (state_ == State::kWaiting) return;  // the snapshot will hold it
  if (IsFull(*op)) {
    host_->Log(absl::StrFormat("%s is %d operations behind, of %d bytes; it is brought up anew",
                               Name(), queue_.size(), queued_bytes_));
    // The next time there would be no fewer: they wait for it.
    holds_back_ = true;
    return Restart(kPause);
  }
  queued_bytes_ += op->bytes();
  queue_.push_back({std::move(op), std::nullopt, 0, false});
  if (state_ == State::kFollowing) SendOps();
}

// What waits for a copy that counts is bounded by what workers may send ahead.
bool ReplicaSender::IsFull(const SharedOp& op) const {
  if (queue_.size() >= kMaxQueued) return true;
  return !counts() && queued_bytes_ + op.bytes() > std::max(kMaxQueuedBytes, snapshot_bytes_);
}

// It cannot be brought up now: what was held back for it need not wait.
void ReplicaSender::LetGo() {
  if (std::exchange(holds_back_, false)) host_->OnProgress(table_, partition_);
}

void ReplicaSender::SendOps() {
  while (sent_ < queue_.size() && sent_ < kMaxInFlight &&
         (sent_ == 0 || sent_bytes_ + queue_[sent_].op->bytes() <= kMaxInFlightBytes)) {
    Pending& pending = queue_[sent_++];
    sent_bytes_ += pending.op->bytes();
    Send(pending);
  }
}

void ReplicaSender::Send(Pending& pending) {
  const SharedOp& op = *pending.op;
  pending.epoch = host_->epoch();
  pending.refused = false;
  Frame frame;
  frame.header.set_kind(pb::REPLICATE);
  frame.header.set_table(table_);
  frame.header.set_epoch(pending.epoch);
  frame.header.set_body(op.body);
  CutOp(op, partition_, &frame);
  CallOptions options =
      ToCopy(absl::StrFormat("operation %d to ", op.index) + Name(), frame.payload_bytes());
  pending.call = rpc_->Call(place_.node, std::move(frame), std::move(options),
                            [this, index = op.index](absl::StatusOr<Frame> answer) {
                              OnOpAnswer(index, answer.status());
                            });
}

void ReplicaSender::OnOpAnswer(uint64_t index, const absl::Status& status) {
  // Ascending, one by one: the place follows from the index.
  if (queue_.empty() || index < queue_.front().op->index) return;
  Pending& answered = queue_[index - queue_.front().op->index];
  answered.call.reset();
  if (status.ok()) {
    // It applies them in order: what came before is there, too.
    while (!queue_.empty() && queue_.front().op->index <= index) {
      if (queue_.front().call) rpc_->Cancel(*queue_.front().call);
      sent_bytes_ -= queue_.front().op->bytes();
      queued_bytes_ -= queue_.front().op->bytes();
      --sent_;
      queue_.pop_front();
    }
    acknowledged_ = std::max(acknowledged_, index);
    SendOps();
    MaybeTellSynced();
    host_->OnProgress(table_, partition_);
  } else if (absl::IsFailedPrecondition(status)) {
    answered.refused = true;
    if (host_->epoch() > answered.epoch) Send(answered);
  } else if (absl::IsDeadlineExceeded(status)) {
    Send(answered);
  } else if (absl::IsDataLoss(status)) {
    Tell(pb::BackupNews::DIVERGED, std::string(status.message()));
    Restart(absl::ZeroDuration());
  } else {
    // It did not come there, or not as one: nothing is known against the state that is there.
    host_->Log(absl::StrFormat("%s did not get operation %d, and is brought up anew: %s", Name(),
                               index, status.ToString()));
    Restart(kPause);
  }
}

void ReplicaSender::OnMap(bool synced) {
  // A map that does not call it synced says what the scheduler knew when it made the map; it may
  // have been told since.
  counts_ |= synced;
  // One that calls it synced may be from before something else was told, which is what the
  // scheduler goes by. One that does not may be from before SYNCED: told again it does no harm.
  told_synced_ &= synced;
  // What is still to be told is told of this map.
  for (size_t i = 1; i < news_.size(); ++i) news_[i].set_epoch(host_->epoch());
  MaybeTellSynced();
  if (message_refused_ && !sync_call_ && state_ == State::kSyncing) SendSync();
  for (size_t i = 0; i < sent_; ++i) {
    if (queue_[i].refused) Send(queue_[i]);
  }
}

void ReplicaSender::MaybeTellSynced() {
  if (state_ != State::kFollowing || told_synced_ || acknowledged_ < announce_at_) return;
  Tell(pb::BackupNews::SYNCED, "");
}

void ReplicaSender::Tell(pb::BackupNews::What what, const std::string& text) {
  told_synced_ = what == pb::BackupNews::SYNCED;
  // One after the other, so that they arrive in order; of those not begun the last says all.
  if (news_.size() > 1) news_.resize(1);
  pb::BackupNews news;
  news.set_epoch(host_->epoch());
  news.set_table(table_);
  news.set_partition(partition_);
  news.set_node(Value(place_.node));
  news.set_what(what);
  news.set_text(text);
  news.set_number(host_->NextNews());
  news_.push_back(std::move(news));
  if (news_.size() == 1) TellNext();
}

void ReplicaSender::TellNext() {
  host_->TellNews(news_.front(), alive_, [this](bool believed) { OnTold(believed); });
}

void ReplicaSender::OnTold(bool believed) {
  const pb::BackupNews::What what = news_.front().what();
  news_.pop_front();
  if (!news_.empty()) return TellNext();
  // One that follows by now will be said to be complete.
  if (what != pb::BackupNews::UNSYNCED || !believed || state_ == State::kFollowing) return;
  counts_ = false;
  host_->OnProgress(table_, partition_);
}

}  // namespace parley
