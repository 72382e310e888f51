// Replication: the copies that the primaries of a shard have elsewhere. Hands every operation to
// the senders of its partition, and tells the partition what is durable: what all copies that count
// have acknowledged (decision 014).
//
// Owned by one loop; not thread-safe.
#ifndef PARLEY_PS_SERVER_REPLICATION_H_
#define PARLEY_PS_SERVER_REPLICATION_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "ps/base/env.h"
#include "ps/net/rpc.h"
#include "ps/server/hosted_partition.h"
#include "ps/server/replica_sender.h"

namespace parley {

class Replication : public ReplicaHost {
 public:
  // Copies that are brought up at a time: each holds a snapshot of its partition.
  static constexpr int kMaxTurns = 4;

  struct Hooks {
    // A BACKUP_NEWS to the scheduler, with a deadline; calls back unless the node has ended.
    absl::AnyInvocable<void(const pb::BackupNews&, Rpc::Callback)> tell;
    // More is durable than before: somebody may be let in, or acknowledged. From anywhere.
    absl::AnyInvocable<void()> on_durable;
    absl::AnyInvocable<void(const std::string&)> log;
  };

  // `env` and `rpc` must outlive this.
  Replication(Env* env, Rpc* rpc, Hooks hooks) : env_(env), rpc_(rpc), hooks_(std::move(hooks)) {}
  ~Replication() override { Clear(); }
  Replication(const Replication&) = delete;
  Replication& operator=(const Replication&) = delete;

  // Of the map that the next calls follow; copies say it with all they send.
  void SetEpoch(uint64_t epoch) { epoch_ = epoch; }

  // `partition`, a primary here, has these copies now: senders of those that it had already go on.
  // One that a map between has dropped is another, though it is at the same node: it is empty.
  // Connected are the nodes already. `partition` must stay until Forget or Clear.
  void SetCopies(uint32_t table, HostedPartition* partition,
                 const std::vector<BackupPlace>& copies);
  // Not a primary any more: nothing of what the partition does later goes anywhere, and it is to be
  // given up. Unknown ones are ignored.
  void Forget(uint32_t table, uint32_t partition);
  void Clear();

  // Whether any partition here has a copy.
  bool any() const { return !sets_.empty(); }

 private:
  struct Set {
    HostedPartition* partition = nullptr;
    std::vector<std::unique_ptr<ReplicaSender>> senders;
  };
  using Key = std::pair<uint32_t, uint32_t>;  // table, partition

  void OnOp(Set& set, pb::ReplicaOp op, SummedGradient sum);
  void Settle(Set& set);
  void NextTurn();

  // ReplicaHost.
  uint64_t epoch() const override { return epoch_; }
  uint64_t NextAttempt() override { return ++attempts_; }
  PartitionSnapshot Snapshot(uint32_t table, uint32_t partition) override;
  uint64_t durable_index(uint32_t table, uint32_t partition) const override;
  void AwaitTurn(std::weak_ptr<void> alive, Task begin) override;
  void GiveTurnBack() override;
  void OnProgress(uint32_t table, uint32_t partition) override;
  uint64_t NextNews() override { return ++news_; }
  void TellNews(pb::BackupNews news, std::weak_ptr<void> alive, Told done) override;
  void Log(const std::string& line) override { hooks_.log(line); }

  Env* const env_;
  Rpc* const rpc_;
  Hooks hooks_;
  uint64_t epoch_ = 0;
  uint64_t attempts_ = 0;
  uint64_t news_ = 0;
  int turns_ = 0;  // given
  std::deque<std::pair<std::weak_ptr<void>, Task>> waiting_;
  TimerId turn_timer_ = kNoTimer;
  std::map<Key, Set> sets_;
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_REPLICATION_H_
