// parley-bench-worker: a worker of `parley bench`, which starts it.
#include <memory>
#include <optional>
#include <string>

#include "ps/base/buffer.h"
#include "ps/base/shared_arenas.h"
#include "ps/config/flags.h"
#include "ps/net/node_name.h"
#include "ps/net/path_transport.h"
#include "ps/net/process.h"
#include "tools/bench/bench_node.h"

namespace parley {
namespace {

constexpr char kProgram[] = "parley-bench-worker";

// As parley-worker's.
constexpr size_t kPoolCacheBytes = size_t{256} << 20;

struct Flags {
  std::string scheduler, job, directory, log;
  uint32_t rank = 0;
  BenchPlan plan;
};

absl::Status AddBenchNode(NodeProcess& process, const Flags& flags,
                          std::shared_ptr<SharedArenas> arenas, BufferPool* pool) {
  return process.AddNode(
      {.offload_threads = 0, .spin = absl::Microseconds(flags.plan.spin_us)},
      [&](LoopEnv* env) -> absl::StatusOr<std::unique_ptr<Transport>> {
        PathTransport::Options options;
        options.self = NodeId{env->Random()};
        options.arenas = arenas;
        options.log = [&process](const std::string& line) { process.Log(line); };
        return PathTransport::Create(env, std::move(options));
      },
      [&](const NodeProcess::Seat& seat) {
        BenchNode::Options options;
        options.scheduler = flags.scheduler;
        options.job = flags.job;
        options.node_name = HostAndPid();
        options.rank = flags.rank;
        options.plan = flags.plan;
        options.directory = flags.directory;
        options.pool = pool;
        options.log = seat.log;
        return NodeProcess::Hold(
            std::make_shared<BenchNode>(seat.env, seat.transport, std::move(options), seat.done));
      });
}

int Main(int argc, char** argv) {
  Flags flags;
  FlagSet set(kProgram, "Measures servers; started by parley bench.");
  set.Required("scheduler", &flags.scheduler, "ENDPOINT", "where the scheduler listens")
      .Text("job", &flags.job, "NAME", "join only a job of this name")
      .Required("directory", &flags.directory, "DIR", "for results and meeting points")
      .Required("load", &flags.plan.load, "NAME", "dense, latency, rate or sparse")
      .Number("rank", &flags.rank, 0, 63, "the rank to ask for")
      .Text("log", &flags.log, "FILE", "append the log here; else stderr");
  flags.plan.AddFlags(&set);
  if (std::optional<int> code = set.ParseForMain(argc, argv)) return *code;
  // Memory that servers on this machine can read without a copy; it outlives the node.
  const auto arenas = std::make_shared<SharedArenas>();
  BufferPool pool(kPoolCacheBytes, arenas);
  absl::StatusOr<std::unique_ptr<NodeProcess>> process =
      NodeProcess::Create({.program = kProgram, .log_file = flags.log});
  if (!process.ok()) return NodeProcess::Complain(kProgram, process.status());
  absl::Status status = flags.plan.Check();
  if (status.ok()) status = AddBenchNode(**process, flags, arenas, &pool);
  if (!status.ok()) return NodeProcess::Complain(kProgram, status);
  return (*process)->Run();
}

}  // namespace
}  // namespace parley

int main(int argc, char** argv) { return parley::Main(argc, argv); }
