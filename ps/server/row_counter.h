// RowCounter: what the sparse tables of a shard hold, for COUNT.
//
// The digest reads every row, which for a large table takes longer than a node may be silent: so
// the partitions are gone through one a task, and heartbeats and other requests come in between.
// Owned by one loop; not thread-safe.
#ifndef PARLEY_PS_SERVER_ROW_COUNTER_H_
#define PARLEY_PS_SERVER_ROW_COUNTER_H_

#include <cstddef>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "proto/cluster.pb.h"
#include "ps/base/env.h"
#include "ps/server/hosted_table.h"

namespace parley {

class RowCounter {
 public:
  using Done = absl::AnyInvocable<void(const std::vector<pb::ServerCounts::Rows>&)>;

  explicit RowCounter(Env* env) : env_(env) {}
  ~RowCounter() { env_->Cancel(timer_); }
  RowCounter(const RowCounter&) = delete;
  RowCounter& operator=(const RowCounter&) = delete;

  // Calls `done` once, with an entry for each sparse table of `tables`; at once if there is none.
  // Counts that are asked for while one runs share its result. Rows that change meanwhile make it
  // a count of no one moment: exact once nobody pushes any more. `tables`, and their partitions,
  // must stay until it is done, or abandoned.
  void Count(const std::vector<const HostedTable*>& tables, Done done);

  // Partitions are about to come or go: who waits is not called, and has to ask again.
  void Abandon();

 private:
  void Next();
  void Finish();

  Env* const env_;
  TimerId timer_ = kNoTimer;
  std::vector<const HostedTable*> tables_;    // the sparse ones
  std::vector<pb::ServerCounts::Rows> rows_;  // by table
  size_t table_ = 0, partition_ = 0;          // the next to be counted
  std::vector<Done> waiting_;
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_ROW_COUNTER_H_
