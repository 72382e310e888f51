// WorkerNode: joins the job, reads the data, and hosts the logical workers it is given: each trains
// on its part - pull, compute, push - until the experiment is done. A node that has none waits for
// work: a spare, or one whose work was moved elsewhere.
//
// All of them compute on the one thread of Env::Offload, in turn, each with a model of its own.
// What a push codec has not sent yet (error feedback) is the client's and goes with it: a
// generation that begins from a checkpoint begins with none, as does a rank that is moved.
//
// All decisions run on the Env's loop; computing and reading data run in Env::Offload. Sees the
// world through Env and Transport alone, so the same code runs in a process and in the simulated
// cluster.
#ifndef PARLEY_WORKER_WORKER_NODE_H_
#define PARLEY_WORKER_WORKER_NODE_H_

#include <memory>
#include <optional>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "ps/base/buffer.h"
#include "ps/base/env.h"
#include "ps/net/transport.h"
#include "worker/gpu_seat.h"
#include "worker/worker_probe.h"

namespace parley {

class WorkerNode {
 public:
  struct Options {
    std::string scheduler;                // endpoint
    std::string job;                      // empty: whatever runs there
    std::string node_name;                // for people: "host:pid"
    std::optional<uint32_t> wanted_rank;  // given if it is free
    bool spare = false;                   // wants no place of its own: waits until it is needed
    absl::Duration join_timeout = absl::Seconds(60);
    // Where gradients, weights and messages are made; null: a pool of its own. Memory that the
    // transport can share travels without a copy. Must outlive this.
    BufferPool* pool = nullptr;
    GpuSeat* gpu = nullptr;                            // null: one of its own. Must outlive this
    WorkerProbe* probe = nullptr;                      // may be null. Must outlive this
    absl::AnyInvocable<void(const std::string&)> log;  // one line for the log; empty = silent
  };

  // `env` and `transport` must outlive this. `done` is called once, on the loop: OK when the
  // scheduler ended the job well, else why this worker ends.
  WorkerNode(Env* env, Transport* transport, Options options,
             absl::AnyInvocable<void(absl::Status)> done);
  ~WorkerNode();

  void Start();

  // Ends this node with `status` (a signal): tells the scheduler and calls done.
  void Stop(const absl::Status& status);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace parley

#endif  // PARLEY_WORKER_WORKER_NODE_H_
