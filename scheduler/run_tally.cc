#include "scheduler/run_tally.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

namespace parley {

RunTally::RunTally(const pb::Experiment& experiment)
    : experiment_(experiment), workers_(experiment.cluster().workers()) {}

std::optional<EpochMetrics> RunTally::AddReport(uint32_t worker, const pb::Report& report) {
  std::map<uint32_t, pb::Report>& of_epoch = reports_[report.data_epoch()];
  if (!of_epoch.emplace(worker, report).second || of_epoch.size() < workers_) return std::nullopt;
  EpochMetrics metrics;
  metrics.epoch = report.data_epoch();
  double train_loss = 0, test_loss = 0;
  uint64_t train_correct = 0, test_samples = 0, test_correct = 0;
  for (const auto& [rank, r] : of_epoch) {
    metrics.step = std::max<uint64_t>(metrics.step, r.tick());
    metrics.train_samples += r.train_samples();
    train_loss += r.train_loss_sum();
    train_correct += r.train_correct();
    test_samples += r.test_samples();
    test_loss += r.test_loss_sum();
    test_correct += r.test_correct();
    metrics.train_seconds = std::max(metrics.train_seconds, r.train_seconds());
    metrics.compute_seconds += r.compute_seconds() / workers_;
    metrics.wait_seconds += r.wait_seconds() / workers_;
    metrics.eval_seconds = std::max(metrics.eval_seconds, r.eval_seconds());
    metrics.max_staleness = std::max<uint64_t>(metrics.max_staleness, r.max_staleness());
  }
  if (metrics.train_samples > 0) {
    metrics.train_loss = train_loss / metrics.train_samples;
    metrics.train_accuracy = static_cast<double>(train_correct) / metrics.train_samples;
  }
  if (test_samples > 0) {
    metrics.evaluated = true;
    metrics.test_loss = test_loss / test_samples;
    metrics.test_accuracy = static_cast<double>(test_correct) / test_samples;
  }
  epochs_.push_back(metrics);
  return metrics;
}

void RunTally::AddFinished(uint32_t worker, const pb::Finished& finished) {
  finished_.emplace(worker, finished);
}

void RunTally::AddCounts(NodeId server, const pb::ServerCounts& counts) {
  counts_[server] = counts;
}

RunProgress RunTally::Progress(const std::vector<Member*>& workers, uint64_t train_samples,
                               absl::Duration now) {
  RunProgress progress;
  progress.epochs = experiment_.training().epochs();
  progress.epoch = progress.epochs;
  progress.step = ~uint64_t{0};
  double loss = 0;
  uint32_t with_loss = 0;
  for (const Member* worker : workers) {
    const pb::Heartbeat& beat = worker->heartbeat;
    progress.epoch = std::min(progress.epoch, beat.data_epoch());
    progress.step = std::min<uint64_t>(progress.step, beat.tick());
    progress.samples += beat.samples();
    progress.max_staleness = std::max<uint64_t>(progress.max_staleness, beat.staleness());
    if (beat.loss() > 0) loss += beat.loss(), ++with_loss;
    if (progress.waiting_for.empty()) progress.waiting_for = beat.waiting_for();
  }
  if (workers.empty()) progress.step = 0;
  if (with_loss > 0) progress.loss = loss / with_loss;
  const uint64_t batch = std::max<uint64_t>(1, experiment_.training().global_batch());
  progress.steps = (train_samples + batch - 1) / batch * progress.epochs;
  if (experiment_.training().max_steps() > 0) {
    progress.steps = std::min<uint64_t>(progress.steps, experiment_.training().max_steps());
  }
  // The rate over the last ten seconds: long enough to be calm, short enough to show a stall.
  history_.emplace_back(now, progress.samples);
  while (history_.size() > 2 && now - history_[1].first > absl::Seconds(10)) {
    history_.erase(history_.begin());
  }
  const double seconds = absl::ToDoubleSeconds(now - history_.front().first);
  if (seconds > 0 && progress.samples >= history_.front().second) {
    progress.samples_per_second = (progress.samples - history_.front().second) / seconds;
  }
  return progress;
}

// Digests are sums over rows, so those of the servers add up, modulo 2^64.
std::vector<TableSummary> RunTally::SparseTables() const {
  std::vector<TableSummary> tables;
  if (counts_.empty()) return tables;  // it ended before anybody counted
  for (const pb::TableSpec& spec : tables_.table()) {
    if (!spec.has_sparse()) continue;
    TableSummary table;
    table.name = spec.name();
    uint64_t low = 0, high = 0;
    for (const auto& [node, counts] : counts_) {
      for (const pb::ServerCounts::Rows& rows : counts.rows()) {
        if (rows.table() != spec.id()) continue;
        table.rows += rows.rows();
        table.evicted += rows.evicted();
        table.bytes += rows.bytes();
        low += rows.digest_low();
        high += rows.digest_high();
      }
    }
    table.digest = absl::StrFormat("%016x%016x", high, low);
    tables.push_back(std::move(table));
  }
  return tables;
}

RunSummary RunTally::Summary(absl::Duration wall) const {
  RunSummary summary;
  summary.wall_seconds = absl::ToDoubleSeconds(wall);
  summary.epochs = epochs_;
  uint64_t samples = 0;
  for (const EpochMetrics& epoch : epochs_) {
    summary.train_seconds += epoch.train_seconds;
    summary.compute_seconds += epoch.compute_seconds;
    summary.wait_seconds += epoch.wait_seconds;
    summary.max_staleness = std::max(summary.max_staleness, epoch.max_staleness);
    samples += epoch.train_samples;
  }
  if (summary.train_seconds > 0) summary.samples_per_second = samples / summary.train_seconds;
  for (const auto& [rank, finished] : finished_) {
    summary.steps = std::max<uint64_t>(summary.steps, finished.steps());
    summary.pushes_acknowledged += finished.pushes_acked();
    summary.rpc_retries += finished.rpc_retries();
    summary.bytes_pushed += finished.bytes_pushed();
    summary.bytes_pulled += finished.bytes_pulled();
    if (!finished.weights_sha256().empty()) summary.weights_sha256 = finished.weights_sha256();
  }
  for (const auto& [node, counts] : counts_) {
    summary.pushes_applied += counts.pushes_applied();
    summary.pushes_dropped += counts.pushes_dropped();
    summary.pushes_duplicate += counts.pushes_duplicate();
    summary.apply_seconds = std::max(summary.apply_seconds, counts.apply_seconds());
    summary.frames_refused += counts.refused();
  }
  summary.tables = SparseTables();
  summary.ok = summary.pushes_acknowledged == summary.pushes_applied + summary.pushes_dropped;
  if (!summary.ok) {
    summary.reason = absl::StrFormat(
        "%d pushes were acknowledged, but %d were applied and %d came late: an update was lost or "
        "applied twice",
        summary.pushes_acknowledged, summary.pushes_applied, summary.pushes_dropped);
  }
  return summary;
}

}  // namespace parley
