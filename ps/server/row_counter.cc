#include "ps/server/row_counter.h"

#include <utility>

namespace parley {

void RowCounter::Count(const std::vector<const HostedTable*>& tables, Done done) {
  waiting_.push_back(std::move(done));
  if (waiting_.size() > 1) return;
  tables_.clear();
  rows_.clear();
  table_ = partition_ = 0;
  for (const HostedTable* table : tables) {
    if (!table->sparse()) continue;
    tables_.push_back(table);
    rows_.emplace_back().set_table(table->id());
  }
  if (tables_.empty()) {
    Finish();
  } else {
    Next();
  }
}

void RowCounter::Abandon() {
  env_->Cancel(timer_);
  timer_ = kNoTimer;
  waiting_.clear();
}

void RowCounter::Next() {
  timer_ = kNoTimer;
  const std::vector<HostedPartition*>& hosted = tables_[table_]->hosted();
  if (partition_ < hosted.size()) hosted[partition_++]->AddCounts(&rows_[table_]);
  if (partition_ >= hosted.size()) {
    ++table_;
    partition_ = 0;
  }
  if (table_ == tables_.size()) {
    Finish();
  } else {
    timer_ = env_->After(absl::ZeroDuration(), [this] { Next(); });
  }
}

void RowCounter::Finish() {
  // A callback may ask for the next count.
  for (Done& done : std::exchange(waiting_, {})) done(rows_);
}

}  // namespace parley
