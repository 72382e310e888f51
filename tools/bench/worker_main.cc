// parley-bench-worker: a worker of `parley bench`, which starts it.
#include <memory>
#include <optional>
#include <string>

#include "ps/config/flags.h"
#include "ps/net/node_name.h"
#include "ps/net/path_node.h"
#include "ps/net/process.h"
#include "tools/bench/bench_node.h"

namespace parley {
namespace {

constexpr char kProgram[] = "parley-bench-worker";

struct Flags {
  std::string scheduler, job, directory, log;
  uint32_t rank = 0;
  BenchPlan plan;
};

absl::Status AddBenchNode(NodeProcess& process, const Flags& flags, LentMemory& memory) {
  return AddPathNode(process,
                     {.offload_threads = 0, .spin = absl::Microseconds(flags.plan.spin_us)}, memory,
                     PathTransport::Options(), [&](const NodeProcess::Seat& seat) {
                       BenchNode::Options options;
                       options.scheduler = flags.scheduler;
                       options.job = flags.job;
                       options.node_name = HostAndPid();
                       options.rank = flags.rank;
                       options.plan = flags.plan;
                       options.directory = flags.directory;
                       options.pool = memory.pool();
                       options.log = seat.log;
                       return NodeProcess::Hold(std::make_shared<BenchNode>(
                           seat.env, seat.transport, std::move(options), seat.done));
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
  LentMemory memory;
  absl::StatusOr<std::unique_ptr<NodeProcess>> process =
      NodeProcess::Create({.program = kProgram, .log_file = flags.log});
  if (!process.ok()) return NodeProcess::Complain(kProgram, process.status());
  absl::Status status = flags.plan.Check();
  if (status.ok()) status = AddBenchNode(**process, flags, memory);
  if (!status.ok()) return NodeProcess::Complain(kProgram, status);
  return (*process)->Run();
}

}  // namespace
}  // namespace parley

int main(int argc, char** argv) { return parley::Main(argc, argv); }
