#include "scheduler/run_tally.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

namespace parley {

RunTally::RunTally(const pb::Experiment& experiment)
    : experiment_(experiment), workers_(experiment.cluster().workers()) {}

std::optional<EpochMetrics> RunTally::AddReport(uint32_t worker, const pb::Report& report) {
  if (report.has_generation() && report.generation() != generation_) return std::nullopt;
  for (const EpochMetrics& epoch : epochs_) {
    if (epoch.epoch == report.data_epoch()) return std::nullopt;
  }
  std::map<uint32_t, pb::Report>& of_epoch = reports_[report.data_epoch()];
  of_epoch.emplace(report.has_rank() ? report.rank() : worker, report);
  if (of_epoch.size() < workers_) return std::nullopt;
  const EpochMetrics metrics = Sum(report.data_epoch(), of_epoch);
  reports_.erase(report.data_epoch());
  epochs_.push_back(metrics);
  return metrics;
}

std::vector<EpochMetrics> RunTally::TakeIncomplete() {
  std::vector<EpochMetrics> taken;
  const uint32_t newest = epochs_.empty() ? 0 : epochs_.back().epoch;
  for (auto entry = reports_.begin(); entry != reports_.end();) {
    if (!all_finished() && entry->first >= newest) break;
    taken.push_back(Sum(entry->first, entry->second));
    epochs_.push_back(taken.back());
    entry = reports_.erase(entry);
  }
  std::sort(epochs_.begin(), epochs_.end(),
            [](const EpochMetrics& a, const EpochMetrics& b) { return a.epoch < b.epoch; });
  return taken;
}

EpochMetrics RunTally::Sum(uint32_t epoch, const std::map<uint32_t, pb::Report>& of_epoch) const {
  EpochMetrics metrics;
  metrics.epoch = epoch;
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
  return metrics;
}

void RunTally::AddFinished(uint32_t worker, const pb::Finished& finished) {
  if (finished.has_generation() && finished.generation() != generation_) return;
  finished_.emplace(finished.has_rank() ? finished.rank() : worker, finished);
}

std::set<uint32_t> RunTally::finished_ranks() const {
  std::set<uint32_t> ranks;
  for (const auto& [rank, finished] : finished_) ranks.insert(rank);
  return ranks;
}

uint64_t RunTally::finished_steps() const {
  uint64_t steps = 0;
  for (const auto& [rank, finished] : finished_) steps = std::max(steps, finished.steps());
  return steps;
}

void RunTally::BeginGeneration(uint64_t generation, uint64_t step) {
  generation_ = generation;
  first_step_ = step;
  skipped_ = false;
  std::erase_if(epochs_, [step](const EpochMetrics& epoch) { return epoch.step > step; });
  reports_.clear();
  finished_.clear();
  counts_.clear();
  history_.clear();
}

pb::TallyState RunTally::Save(std::optional<uint64_t> before_step) const {
  pb::TallyState state;
  for (const EpochMetrics& epoch : epochs_) {
    if (before_step.has_value() && epoch.step > *before_step) continue;
    pb::TallyState::Epoch* saved = state.add_epoch();
    saved->set_epoch(epoch.epoch);
    saved->set_step(epoch.step);
    saved->set_train_loss(epoch.train_loss);
    saved->set_train_accuracy(epoch.train_accuracy);
    saved->set_evaluated(epoch.evaluated);
    saved->set_test_loss(epoch.test_loss);
    saved->set_test_accuracy(epoch.test_accuracy);
    saved->set_train_samples(epoch.train_samples);
    saved->set_train_seconds(epoch.train_seconds);
    saved->set_compute_seconds(epoch.compute_seconds);
    saved->set_wait_seconds(epoch.wait_seconds);
    saved->set_eval_seconds(epoch.eval_seconds);
    saved->set_max_staleness(epoch.max_staleness);
  }
  if (before_step.has_value()) return state;
  for (const auto& [epoch, of_epoch] : reports_) {
    for (const auto& [rank, report] : of_epoch) {
      pb::Report* saved = state.add_report();
      *saved = report;
      saved->set_rank(rank);
    }
  }
  for (const auto& [rank, finished] : finished_) {
    pb::Finished* saved = state.add_finished();
    *saved = finished;
    saved->set_rank(rank);
  }
  state.set_restarts(restarts_);
  state.set_failovers(failovers_);
  state.set_workers_replaced(workers_replaced_);
  state.set_checkpoints(checkpoints_);
  state.set_skipped(skipped_);
  for (const auto& [node, counts] : counts_) {
    pb::TallyState::Counts* saved = state.add_counts();
    saved->set_node(Value(node));
    *saved->mutable_counts() = counts;
  }
  return state;
}

void RunTally::Load(const pb::TallyState& state) {
  for (const pb::TallyState::Epoch& saved : state.epoch()) {
    EpochMetrics epoch;
    epoch.epoch = saved.epoch();
    epoch.step = saved.step();
    epoch.train_loss = saved.train_loss();
    epoch.train_accuracy = saved.train_accuracy();
    epoch.evaluated = saved.evaluated();
    epoch.test_loss = saved.test_loss();
    epoch.test_accuracy = saved.test_accuracy();
    epoch.train_samples = saved.train_samples();
    epoch.train_seconds = saved.train_seconds();
    epoch.compute_seconds = saved.compute_seconds();
    epoch.wait_seconds = saved.wait_seconds();
    epoch.eval_seconds = saved.eval_seconds();
    epoch.max_staleness = saved.max_staleness();
    epochs_.push_back(epoch);
  }
  for (const pb::Report& report : state.report()) {
    reports_[report.data_epoch()][report.rank()] = report;
  }
  for (const pb::Finished& finished : state.finished()) finished_[finished.rank()] = finished;
  restarts_ = state.restarts();
  failovers_ = state.failovers();
  workers_replaced_ = state.workers_replaced();
  checkpoints_ = state.checkpoints();
  skipped_ = state.skipped();
  for (const pb::TallyState::Counts& counts : state.counts()) {
    counts_[NodeId{counts.node()}] = counts.counts();
  }
}

void RunTally::AddCounts(NodeId server, const pb::ServerCounts& counts) {
  counts_[server] = counts;
}

uint64_t RunTally::PlannedSteps(uint64_t train_samples) const {
  const uint64_t batch = std::max<uint64_t>(1, experiment_.training().global_batch());
  uint64_t steps = (train_samples + batch - 1) / batch * experiment_.training().epochs();
  if (experiment_.training().max_steps() > 0) {
    steps = std::min<uint64_t>(steps, experiment_.training().max_steps());
  }
  return steps;
}

RunProgress RunTally::ProgressOf(const std::vector<pb::Heartbeat>& beats, uint64_t train_samples,
                                 absl::Duration now) {
  RunProgress progress;
  progress.epochs = experiment_.training().epochs();
  progress.epoch = progress.epochs;
  progress.step = ~uint64_t{0};
  double loss = 0;
  uint32_t with_loss = 0;
  for (const pb::Heartbeat& beat : beats) {
    progress.epoch = std::min(progress.epoch, beat.data_epoch());
    progress.step = std::min<uint64_t>(progress.step, beat.tick());
    progress.samples += beat.samples();
    progress.max_staleness = std::max<uint64_t>(progress.max_staleness, beat.staleness());
    if (beat.loss() > 0) loss += beat.loss(), ++with_loss;
    if (progress.waiting_for.empty()) progress.waiting_for = beat.waiting_for();
  }
  if (beats.empty()) progress.step = 0;
  if (with_loss > 0) progress.loss = loss / with_loss;
  progress.steps = PlannedSteps(train_samples);
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
  summary.restarts = restarts_;
  summary.failovers = failovers_;
  summary.workers_replaced = workers_replaced_;
  summary.checkpoints = checkpoints_;
  CheckPushes(&summary);
  if (summary.ok) CheckSamples(&summary);
  return summary;
}

// What a worker saw acknowledged, the servers have taken from it, and what they have taken from
// anybody is in the weights, or came late.
void RunTally::CheckPushes(RunSummary* summary) const {
  std::map<uint32_t, uint64_t> taken;  // by rank, from its present incarnation
  uint64_t accepted = 0;
  for (const auto& [node, counts] : counts_) {
    accepted += counts.pushes_accepted();
    for (int rank = 0; rank < counts.acknowledged_size(); ++rank) {
      taken[rank] += counts.acknowledged(rank);
    }
  }
  const uint64_t done = summary->pushes_applied + summary->pushes_dropped;
  if (taken.empty()) {
    // Servers that do not count by worker: nobody was replaced.
    summary->ok = summary->pushes_acknowledged == done;
  } else {
    summary->ok = accepted == done;
    for (const auto& [rank, finished] : finished_) {
      summary->ok &= finished.pushes_acked() == taken[rank];
    }
    // A worker that was replaced takes its count with it; the servers' has all.
    if (summary->ok) summary->pushes_acknowledged = accepted;
  }
  if (summary->ok) return;
  summary->reason = absl::StrFormat(
      "%d pushes were acknowledged, but %d were applied and %d came late: an update was lost or "
      "applied twice",
      summary->pushes_acknowledged, summary->pushes_applied, summary->pushes_dropped);
}

uint64_t RunTally::SamplesBefore(uint64_t step) const {
  const uint64_t samples = tables_.train_samples();
  const uint64_t batch = std::max<uint64_t>(1, experiment_.training().global_batch());
  const uint64_t per_epoch = (samples + batch - 1) / batch;
  return step / per_epoch * samples + std::min(step % per_epoch * batch, samples);
}

// How many samples are in the weights. Where every gradient counts, each sample of each epoch is in
// every partition once, whoever computed it.
void RunTally::CheckSamples(RunSummary* summary) const {
  const pb::Consistency& consistency = experiment_.consistency();
  if (!all_finished() || tables_.train_samples() == 0 ||
      experiment_.data().sharding() != pb::Data::GLOBAL_BATCH) {
    return;
  }
  double applied = 0;
  uint64_t partitions = 0;
  for (const auto& [node, counts] : counts_) {
    if (!counts.has_samples()) return;
    applied += counts.samples();
    partitions += counts.partitions();
  }
  const uint64_t steps = PlannedSteps(tables_.train_samples());
  // Workers that end by their own plan (benchmarks) have no samples to cover.
  if (partitions == 0 || finished_steps() != steps) return;
  const uint64_t expected = SamplesBefore(steps) - SamplesBefore(first_step_);
  summary->samples_left_out = static_cast<double>(expected) - applied / partitions;
  const bool all_count =
      consistency.mode() == pb::Consistency::BSP && consistency.backup_workers() == 0 && !skipped_;
  if (!all_count || applied == static_cast<double>(expected) * partitions) return;
  summary->ok = false;
  summary->reason = absl::StrFormat(
      "%.6g samples went into each partition, but steps %d to %d have %d: some were left out or "
      "counted twice",
      applied / partitions, first_step_, steps, expected);
}

}  // namespace parley
