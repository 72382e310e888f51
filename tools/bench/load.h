// Load: what a worker of `parley bench` does to the servers once it has joined.
//
// Each kind measures a few cases, one after the other. A case has rounds of a fixed length, which
// several workers begin together, so that they measure the same stretch of time; a first round that
// warms caches and connections is not counted. Thread-safety: as Env, everything on the loop.
#ifndef PARLEY_TOOLS_BENCH_LOAD_H_
#define PARLEY_TOOLS_BENCH_LOAD_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/functional/any_invocable.h"
#include "benchmarks/limits/series.h"
#include "ps/base/buffer.h"
#include "ps/base/env.h"
#include "tools/bench/bench_plan.h"
#include "worker/client/ps_client.h"

namespace parley {

// Borrowed by a load; all of it outlives it.
struct LoadContext {
  Env* env = nullptr;
  PsClient* client = nullptr;
  const BenchPlan* plan = nullptr;
  BufferPool* pool = nullptr;  // memory that the transport can share
  uint32_t rank = 0;
  // A case is done.
  std::function<void(const Series&)> record;
  // Calls back, by way of the loop, once every worker has come to this point, `name`, which is used
  // once only. One at a time.
  std::function<void(const std::string& name, absl::AnyInvocable<void()> go)> meet;
  std::function<void(const std::string&)> say;  // a line of progress
};

class Load {
 public:
  virtual ~Load() = default;

  // Of the plan's kind. REQUIRES: plan.Check() is OK.
  static std::unique_ptr<Load> Create(LoadContext context);

  // Runs all cases, then calls back; nothing is under way then, but pushes may be unacknowledged.
  virtual void Start(absl::AnyInvocable<void()> done) = 0;

  // Ticks that it has pushed: 0 .. ticks() - 1 of any table.
  virtual uint64_t ticks() const = 0;
};

// One for each kind.
std::unique_ptr<Load> MakeDenseLoad(LoadContext context);   // dense, latency
std::unique_ptr<Load> MakeSparseLoad(LoadContext context);  // sparse, rate

}  // namespace parley

#endif  // PARLEY_TOOLS_BENCH_LOAD_H_
