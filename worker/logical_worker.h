// LogicalWorker: one rank that this node hosts. It trains by a Trainer on a workload of its own,
// and tells the scheduler what comes of it: REPORT for each epoch, and then FINISHED.
//
// May be destroyed at any time, when the rank is moved or begins anew; its client goes after it.
// Thread-safety: as Env, everything on the loop.
#ifndef PARLEY_WORKER_LOGICAL_WORKER_H_
#define PARLEY_WORKER_LOGICAL_WORKER_H_

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/time/time.h"
#include "proto/cluster.pb.h"
#include "proto/experiment.pb.h"
#include "ps/base/buffer.h"
#include "ps/base/env.h"
#include "worker/client/job_member.h"
#include "worker/trainer.h"
#include "worker/workload.h"

namespace parley {

class LogicalWorker {
 public:
  // `env` and `member` must outlive this, and so must the client of `hosted`. `pool` and `probe` as
  // the trainer's.
  LogicalWorker(Env* env, JobMember* member, const JobMember::Hosted& hosted, BufferPool* pool,
                WorkerProbe* probe);

  // Begins to train. Once. REQUIRES: the client's tables are those of the workload, which nobody
  // else computes with.
  void Train(std::shared_ptr<Workload> workload);

  // For the node's next heartbeat.
  pb::Heartbeat Progress() const;

  uint32_t rank() const { return hosted_.rank; }

 private:
  void SendReport(pb::Report report);
  void MaybeFinish();
  absl::Duration AskTimeout() const;

  Env* const env_;
  JobMember* const member_;
  const JobMember::Hosted hosted_;
  BufferPool* const pool_;
  WorkerProbe* const probe_;
  std::unique_ptr<Trainer> trainer_;  // null until its model is built
  std::optional<pb::Finished> finished_;
  uint64_t reports_open_ = 0;
  bool finish_sent_ = false;
};

}  // namespace parley

#endif  // PARLEY_WORKER_LOGICAL_WORKER_H_
