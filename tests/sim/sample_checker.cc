#include "tests/sim/sample_checker.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"

namespace parley {

SampleChecker::SampleChecker(const pb::Experiment& experiment, uint64_t samples,
                             std::function<void(std::string)> violation)
    : experiment_(experiment),
      samples_(samples),
      workers_(experiment.cluster().workers()),
      batch_(std::max<uint64_t>(1, experiment.training().global_batch())),
      by_worker_(experiment.data().sharding() == pb::Data::BY_WORKER),
      violation_(std::move(violation)) {}

void SampleChecker::OnGradient(uint32_t rank, uint64_t tick, uint32_t epoch,
                               const std::vector<uint64_t>& samples) {
  const auto [known, fresh] = batches_.try_emplace({rank, tick}, Batch{epoch, samples});
  if (fresh || (known->second.epoch == epoch && known->second.samples == samples)) return;
  violation_(
      absl::StrFormat("worker %d computed tick %d from other samples than before", rank, tick));
}

uint64_t SampleChecker::PartOf(uint32_t rank) const {
  return samples_ / workers_ + (rank < samples_ % workers_ ? 1 : 0);
}

uint64_t SampleChecker::TicksPerEpoch(uint32_t rank) const {
  if (!by_worker_) return (samples_ + batch_ - 1) / batch_;
  const uint64_t own = std::max<uint64_t>(1, batch_ / workers_);
  return (PartOf(rank) + own - 1) / own;
}

// Of what there is of the epoch at this tick, a share; or, by worker, the next few of its own.
uint64_t SampleChecker::Rows(uint32_t rank, uint64_t tick) const {
  const uint64_t step = tick % TicksPerEpoch(rank);
  if (by_worker_) {
    const uint64_t own = std::max<uint64_t>(1, batch_ / workers_);
    return std::min(own, PartOf(rank) - step * own);
  }
  const uint64_t rows = std::min(batch_, samples_ - step * batch_);
  return rows / workers_ + (rank < rows % workers_ ? 1 : 0);
}

bool SampleChecker::TakeGradient(const std::string& name, Mark mark, double weight,
                                 std::map<std::pair<uint32_t, uint64_t>, Mark>* seen) {
  const auto [rank, tick] = mark;
  if (weight == 0) return false;
  auto batch = batches_.find(mark);
  const uint64_t computed = batch == batches_.end() ? 0 : batch->second.samples.size();
  if (static_cast<double>(computed) != weight) {
    violation_(absl::StrFormat("tick %d of worker %d is in %s as of %g samples, computed were %d",
                               tick, rank, name, weight, computed));
    return false;
  }
  for (uint64_t sample : batch->second.samples) {
    const auto [first, once] = seen->try_emplace({batch->second.epoch, sample}, mark);
    if (once) continue;
    violation_(absl::StrFormat(
        "sample %d of epoch %d is in %s twice: by tick %d of worker %d and tick %d of worker %d",
        sample, batch->second.epoch, name, first->second.second, first->second.first, tick, rank));
  }
  return true;
}

uint64_t SampleChecker::CheckPartition(const std::string& name, const std::vector<Update>& updates,
                                       uint64_t first_step, bool some_left_out) {
  std::map<Mark, double> counted;
  for (const Update& update : updates) {
    if (update.late || !update.tick.has_value()) continue;
    for (size_t i = 0; i < update.workers.size(); ++i) {
      counted[{update.workers[i], *update.tick}] = update.weights[i];
    }
  }
  std::map<std::pair<uint32_t, uint64_t>, Mark> seen;  // epoch, sample
  uint64_t left_out = 0;
  for (uint32_t rank = 0; rank < workers_; ++rank) {
    uint64_t ticks = experiment_.training().epochs() * TicksPerEpoch(rank);
    if (experiment_.training().max_steps() > 0) {
      ticks = std::min<uint64_t>(ticks, experiment_.training().max_steps());
    }
    for (uint64_t tick = first_step; tick < ticks; ++tick) {
      auto found = counted.find({rank, tick});
      const double weight = found == counted.end() ? 0 : found->second;
      if (found != counted.end()) counted.erase(found);
      const uint64_t rows = Rows(rank, tick);
      if (TakeGradient(name, {rank, tick}, weight, &seen) || rows == 0) continue;
      left_out += rows;
      if (some_left_out) continue;
      violation_(absl::StrFormat("%d samples are left out of %s, those of tick %d of worker %d",
                                 rows, name, tick, rank));
    }
  }
  for (const auto& [mark, weight] : counted) {
    if (weight == 0) continue;
    violation_(absl::StrFormat("tick %d of worker %d is in %s, of which the epochs have none",
                               mark.second, mark.first, name));
  }
  for (const auto& [place, mark] : seen) {
    const auto& [epoch, sample] = place;
    if (epoch < experiment_.training().epochs() && sample < samples_) continue;
    violation_(absl::StrFormat("sample %d of epoch %d is in %s; there are %d in %d epochs", sample,
                               epoch, name, samples_, experiment_.training().epochs()));
  }
  covered_ += seen.size();
  return left_out;
}

// With backup workers, and where a worker's steps are given up when another takes its place.
bool SampleChecker::MayLeaveOut(const RunSummary& summary) const {
  if (experiment_.consistency().mode() == pb::Consistency::BSP &&
      experiment_.consistency().backup_workers() > 0) {
    return true;
  }
  if (summary.workers_replaced == 0) return false;
  if (experiment_.cluster().worker_loss() == pb::Cluster::SKIP) return true;
  // What REPLACE cannot do exactly is given up, too.
  const auto stateful = [](const pb::Compression& codecs) {
    return codecs.push() == "int8" || codecs.push() == "one_bit" || codecs.push() == "top_k";
  };
  const pb::Embedding& rows = experiment_.model().layer(0).embedding();
  return stateful(experiment_.compression()) || stateful(rows.compression()) || rows.has_eviction();
}

void SampleChecker::Finish(const HistoryChecker& history, const RunSummary& summary) {
  const bool some = MayLeaveOut(summary);
  uint64_t left_out = 0, partitions = 0;
  history.VisitFinal([&](const std::string& name, const std::vector<Update>& updates) {
    left_out += CheckPartition(name, updates, history.first_step(), some);
    ++partitions;
  });
  if (partitions == 0 || by_worker_) return;  // the summary does not say it
  const double mean = static_cast<double>(left_out) / static_cast<double>(partitions);
  if (summary.samples_left_out.has_value() &&
      std::abs(*summary.samples_left_out - mean) < 1e-6 * static_cast<double>(samples_)) {
    return;
  }
  violation_(absl::StrFormat(
      "the summary says that %s samples were left out of a partition, %g were",
      summary.samples_left_out.has_value() ? absl::StrFormat("%g", *summary.samples_left_out)
                                           : "it is not known how many",
      mean));
}

}  // namespace parley
