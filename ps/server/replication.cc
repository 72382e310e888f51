#include "ps/server/replication.h"

#include <algorithm>

#include "absl/strings/str_format.h"

namespace parley {
namespace {

// News that the scheduler did not take are told again after this: it may be away.
constexpr absl::Duration kNewsPause = absl::Seconds(1);

}  // namespace

void Replication::Forget(uint32_t table, uint32_t partition) { sets_.erase(Key(table, partition)); }

void Replication::Clear() {
  sets_.clear();
  waiting_.clear();
  env_->Cancel(turn_timer_);
  turn_timer_ = kNoTimer;
}

void Replication::SetCopies(uint32_t table, HostedPartition* partition,
                            const std::vector<BackupPlace>& copies) {
  const Key key(table, partition->index());
  if (copies.empty()) {
    if (sets_.erase(key) > 0) {
      partition->SetReplicated(false);
      hooks_.on_durable();
    }
    return;
  }
  Set& set = sets_[key];
  if (set.partition != partition) {
    set.senders.clear();
    set.partition = partition;
    partition->SetOpSink([this, &set](uint32_t, pb::ReplicaOp op, SummedGradient sum) {
      OnOp(set, std::move(op), std::move(sum));  // std::map: it stays where it is
    });
  }
  partition->SetReplicated(true);
  std::vector<std::unique_ptr<ReplicaSender>> before = std::move(set.senders);
  set.senders.clear();
  for (const BackupPlace& copy : copies) {
    const auto known = std::find_if(before.begin(), before.end(), [&](const auto& sender) {
      return sender != nullptr && sender->node() == copy.node && sender->since() == copy.since;
    });
    if (known != before.end()) {
      set.senders.push_back(std::move(*known));
      set.senders.back()->OnMap(copy.synced);
    } else {
      set.senders.push_back(
          std::make_unique<ReplicaSender>(env_, rpc_, this, table, partition->index(), copy));
    }
  }
  Settle(set);
}

void Replication::OnOp(Set& set, pb::ReplicaOp op, SummedGradient sum) {
  auto shared = std::make_shared<SharedOp>();
  shared->index = op.index();
  shared->body = op.SerializeAsString();
  shared->keys = std::move(sum.keys);
  shared->values = std::move(sum.values);
  bool counts = false;
  for (const auto& sender : set.senders) {
    sender->Enqueue(shared);
    counts |= sender->counts();
  }
  // Who makes the operation looks at what is durable itself, once it is done.
  if (!counts) set.partition->OnDurable(shared->index);
}

void Replication::Settle(Set& set) {
  uint64_t durable = set.partition->last_index();
  for (const auto& sender : set.senders) {
    if (sender->counts()) durable = std::min(durable, sender->acknowledged());
  }
  if (durable <= set.partition->durable_index()) return;
  set.partition->OnDurable(durable);
  hooks_.on_durable();
}

PartitionSnapshot Replication::Snapshot(uint32_t table, uint32_t partition) {
  return sets_.at(Key(table, partition)).partition->Save();
}

uint64_t Replication::durable_index(uint32_t table, uint32_t partition) const {
  return sets_.at(Key(table, partition)).partition->durable_index();
}

void Replication::OnProgress(uint32_t table, uint32_t partition) {
  Settle(sets_.at(Key(table, partition)));
}

void Replication::AwaitTurn(std::weak_ptr<void> alive, Task begin) {
  if (turns_ < kMaxTurns && waiting_.empty()) {
    ++turns_;
    begin();
  } else {
    waiting_.emplace_back(std::move(alive), std::move(begin));
  }
}

void Replication::GiveTurnBack() {
  --turns_;
  // Later: who gives it back may be on its way out.
  if (!waiting_.empty() && turn_timer_ == kNoTimer) {
    turn_timer_ = env_->After(absl::ZeroDuration(), [this] { NextTurn(); });
  }
}

void Replication::NextTurn() {
  turn_timer_ = kNoTimer;
  while (turns_ < kMaxTurns && !waiting_.empty()) {
    auto [alive, begin] = std::move(waiting_.front());
    waiting_.pop_front();
    if (alive.expired()) continue;
    ++turns_;
    begin();
  }
}

void Replication::TellNews(pb::BackupNews news, std::weak_ptr<void> alive, Told done) {
  // Of copies that are complete there may be thousands at a time; the scheduler says so in sum.
  if (news.what() == pb::BackupNews::DIVERGED) {
    hooks_.log(absl::StrFormat("table %d, partition %d: the copy at node %s is brought up anew: %s",
                               news.table(), news.partition(), ToString(NodeId{news.node()}),
                               news.text()));
  }
  hooks_.tell(news, [this, news, alive = std::move(alive),
                     done = std::move(done)](absl::StatusOr<Frame> answer) mutable {
    if (alive.expired()) return;
    if (answer.ok() ||
        !(absl::IsDeadlineExceeded(answer.status()) || absl::IsUnavailable(answer.status()))) {
      return done(answer.ok());
    }
    env_->After(kNewsPause, [this, news = std::move(news), alive = std::move(alive),
                             done = std::move(done)]() mutable {
      if (!alive.expired()) TellNews(std::move(news), alive, std::move(done));
    });
  });
}

}  // namespace parley
