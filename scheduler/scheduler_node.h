// SchedulerNode: admits nodes, gives them rank and incarnation, hands out the experiment, the
// partition map and the logical workers, watches heartbeats and connections, adds up what workers
// report, and ends the job.
//
// What a dead node had goes to others (decision 014): its partitions to their copies, its logical
// workers to other nodes; if a partition has no copy left, all begin again from a checkpoint. Nodes
// may come at any time. Sees the world through Env, Transport, StateStore, FileSystem and
// RunObserver alone.
#ifndef PARLEY_SCHEDULER_SCHEDULER_NODE_H_
#define PARLEY_SCHEDULER_SCHEDULER_NODE_H_

#include <memory>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/experiment.pb.h"
#include "ps/base/env.h"
#include "ps/base/file_system.h"
#include "ps/net/transport.h"
#include "scheduler/report/run_observer.h"
#include "scheduler/state_store.h"

namespace parley {

class SchedulerNode {
 public:
  struct Options {
    std::string job;            // name of this run; nodes that ask for another are refused
    pb::Experiment experiment;  // resolved and valid
    // Where the state is kept that a restarted scheduler goes on from; null: nowhere, and a
    // scheduler that dies ends the job. Outlives the node.
    StateStore* store = nullptr;
    FileSystem* files = nullptr;  // of checkpoints; null: FileSystem::Posix(). Outlives the node.
    // Directory of this job's checkpoints, seen by all servers; empty: none are written.
    std::string checkpoint_root;
    // A checkpoint, or a directory of them (the newest that is whole counts), from which the job
    // begins; empty: from the first weights. Of no account to a scheduler that goes on from a
    // state.
    std::string restore;
    absl::Duration progress_period = absl::Milliseconds(200);  // between two OnProgress
  };

  // All must outlive this. `done` is called once, on the loop, after the observer's OnFinish: OK
  // when training is done and every node was told, else what went wrong. A scheduler whose place
  // another has taken (`store`) ends without OnFinish, and tells nobody.
  SchedulerNode(Env* env, Transport* transport, Options options, RunObserver* observer,
                absl::AnyInvocable<void(absl::Status)> done);
  ~SchedulerNode();

  void Start();

  // Ends the job with `status` (a signal): everybody is told, then done.
  void Stop(const absl::Status& status);

  // Writes a checkpoint as soon as may be (a signal); an event says what became of it.
  void RequestCheckpoint();

  // Whether what the store holds is this job's to replace and remove. False: it is another job's,
  // or cannot be read, or has not been looked at.
  bool owns_state() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace parley

#endif  // PARLEY_SCHEDULER_SCHEDULER_NODE_H_
