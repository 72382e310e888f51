// SchedulerNode: admits nodes, gives them rank and incarnation, hands out the experiment, the
// partition map and the data parts, watches heartbeats, adds up what workers report, and ends the
// job.
//
// In this version the death of a node ends the job: everybody is told which node it was and what
// was awaited. Sees the world through Env, Transport and RunObserver alone.
#ifndef PARLEY_SCHEDULER_SCHEDULER_NODE_H_
#define PARLEY_SCHEDULER_SCHEDULER_NODE_H_

#include <memory>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "proto/experiment.pb.h"
#include "ps/base/env.h"
#include "ps/net/transport.h"
#include "scheduler/report/run_observer.h"

namespace parley {

class SchedulerNode {
 public:
  struct Options {
    std::string job;            // name of this run; nodes that ask for another are refused
    pb::Experiment experiment;  // resolved and valid
  };

  // All must outlive this. `done` is called once, on the loop, after the observer's OnFinish: OK
  // when training is done and every node was told, else what went wrong.
  SchedulerNode(Env* env, Transport* transport, Options options, RunObserver* observer,
                absl::AnyInvocable<void(absl::Status)> done);
  ~SchedulerNode();

  void Start();

  // Ends the job with `status` (a signal): everybody is told, then done.
  void Stop(const absl::Status& status);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace parley

#endif  // PARLEY_SCHEDULER_SCHEDULER_NODE_H_
