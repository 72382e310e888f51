// BenchNode: a worker that measures instead of training. It joins the job as any worker does,
// registers the plan's tables, drives its load, and finishes.
//
// Workers that measure together wait for each other by files in a directory that they share: the
// scheduler's protocol has no such point, and should not have one for this. Thread-safety: as Env,
// everything on the loop.
#ifndef PARLEY_TOOLS_BENCH_BENCH_NODE_H_
#define PARLEY_TOOLS_BENCH_BENCH_NODE_H_

#include <memory>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "ps/base/buffer.h"
#include "ps/base/env.h"
#include "ps/net/transport.h"
#include "tools/bench/bench_plan.h"

namespace parley {

class BenchNode {
 public:
  struct Options {
    std::string scheduler, job, node_name;
    uint32_t rank = 0;
    BenchPlan plan;
    std::string directory;       // of results ("worker-RANK.tsv") and meeting points; exists
    BufferPool* pool = nullptr;  // memory that the transport can share. Must outlive this
    absl::AnyInvocable<void(const std::string&)> log;
  };

  // As WorkerNode's.
  BenchNode(Env* env, Transport* transport, Options options,
            absl::AnyInvocable<void(absl::Status)> done);
  ~BenchNode();

  void Start();
  void Stop(const absl::Status& status);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

// Where worker `rank` leaves its results.
std::string WorkerResults(const std::string& directory, uint32_t rank);

}  // namespace parley

#endif  // PARLEY_TOOLS_BENCH_BENCH_NODE_H_
