#include "worker/logical_worker.h"

#include <algorithm>
#include <new>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace parley {

LogicalWorker::LogicalWorker(Env* env, JobMember* member, const JobMember::Hosted& hosted,
                             BufferPool* pool, WorkerProbe* probe)
    : env_(env), member_(member), hosted_(hosted), pool_(pool), probe_(probe) {}

void LogicalWorker::Train(std::shared_ptr<Workload> workload) {
  Trainer::Options options{.experiment = member_->welcome().experiment(),
                           .rank = hosted_.rank,
                           .data_part = hosted_.rank,
                           .data_parts = hosted_.workers,
                           .first_tick = hosted_.first_tick,
                           .start_tick = hosted_.start_tick,
                           .skip_below = hosted_.skip_below,
                           .pool = pool_,
                           .probe = probe_};
  Trainer::Handlers handlers;
  handlers.on_report = [this](pb::Report report) { SendReport(std::move(report)); };
  handlers.on_finished = [this](pb::Finished finished) {
    finished_ = std::move(finished);
    MaybeFinish();
  };
  handlers.on_error = [this](const absl::Status& status) { member_->Fail(status); };
  std::string line = absl::StrFormat("training part %d of %d with %d shards", hosted_.rank,
                                     hosted_.workers, hosted_.shards);
  if (hosted_.start_tick > 0) absl::StrAppend(&line, ", from step ", hosted_.start_tick);
  if (hosted_.skip_below > hosted_.start_tick) {
    absl::StrAppend(&line, ", nothing for the steps below ", hosted_.skip_below);
  }
  member_->Log(line);
  try {
    trainer_ = std::make_unique<Trainer>(env_, hosted_.client, std::move(workload),
                                         std::move(options), std::move(handlers));
  } catch (const std::bad_alloc&) {
    member_->Fail(absl::ResourceExhaustedError("no memory for the weights of the dense table"));
    return;
  }
  trainer_->Start();
}

void LogicalWorker::SendReport(pb::Report report) {
  report.set_generation(hosted_.generation);
  member_->Log(
      absl::StrFormat("part %d, epoch %d: %d samples in %.2f s (computing %.2f s, waiting %.2f s)",
                      hosted_.rank, report.data_epoch() + 1, report.train_samples(),
                      report.train_seconds(), report.compute_seconds(), report.wait_seconds()));
  ++reports_open_;
  member_->AskFor(
      hosted_.rank, pb::REPORT, report.SerializeAsString(), AskTimeout(),
      absl::StrFormat("report of worker %d, epoch %d", hosted_.rank, report.data_epoch() + 1),
      [this] {
        --reports_open_;
        MaybeFinish();
      });
}

// FINISHED comes after every REPORT, though the network keeps no order.
void LogicalWorker::MaybeFinish() {
  if (!finished_.has_value() || reports_open_ > 0 || std::exchange(finish_sent_, true)) return;
  member_->Log(
      absl::StrFormat("part %d finished after %d steps", hosted_.rank, finished_->steps()));
  member_->Finish(hosted_.rank, *finished_, AskTimeout());
}

// A scheduler that is away for as long as that is borne, and may answer only then.
absl::Duration LogicalWorker::AskTimeout() const {
  const pb::Cluster& cluster = member_->welcome().experiment().cluster();
  return absl::Milliseconds(
      std::max(uint64_t{cluster.progress_timeout_ms()},
               uint64_t{cluster.scheduler_timeout_ms()} + cluster.node_timeout_ms()));
}

pb::Heartbeat LogicalWorker::Progress() const {
  pb::Heartbeat heartbeat;
  if (trainer_ != nullptr) {
    heartbeat = trainer_->Progress();
    if (finish_sent_) heartbeat.set_waiting_for("the end of the job");
  } else {
    heartbeat.set_rank(hosted_.rank);
    heartbeat.set_tick(hosted_.start_tick);
    heartbeat.set_waiting_for("its model");
  }
  return heartbeat;
}

}  // namespace parley
