// parley-worker: one worker process.
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "ps/config/flags.h"
#include "ps/net/node_name.h"
#include "ps/net/path_node.h"
#include "ps/net/process.h"
#include "ps/net/security.h"
#include "worker/gpu_seat.h"
#include "worker/worker_node.h"

namespace parley {
namespace {

constexpr char kProgram[] = "parley-worker";

struct Flags {
  std::string scheduler, job, log, keys;
  uint32_t join_timeout = 60, spin_us = 0;
  std::optional<uint32_t> rank, gpu;
  bool spare = false;
};

absl::Status AddWorker(NodeProcess& process, const Flags& flags, LentMemory& memory, GpuSeat& gpu) {
  PathTransport::Options transport;
  absl::Status loaded = UseKeys(flags.keys, PeerRole::kWorker, &transport.keys);
  if (!loaded.ok()) return loaded;
  return AddPathNode(process,
                     // One thread computes; a second would only find the first's caches cold.
                     {.offload_threads = 1, .spin = absl::Microseconds(flags.spin_us)},
                     // Workers do not listen: answers come back on the connections they make.
                     memory, std::move(transport), [&](const NodeProcess::Seat& seat) {
                       WorkerNode::Options options;
                       options.scheduler = flags.scheduler;
                       options.job = flags.job;
                       options.node_name = HostAndPid();
                       options.wanted_rank = flags.rank;
                       options.spare = flags.spare;
                       options.join_timeout = absl::Seconds(flags.join_timeout);
                       options.pool = memory.pool();
                       options.gpu = &gpu;
                       options.log = seat.log;
                       return NodeProcess::Hold(std::make_shared<WorkerNode>(
                           seat.env, seat.transport, std::move(options), seat.done));
                     });
}

int Main(int argc, char** argv) {
  Flags flags;
  FlagSet set(kProgram, "Reads its part of the data and trains on it.");
  set.Required("scheduler", &flags.scheduler, "ENDPOINT",
               "where the scheduler listens, tcp://host:port; or, with commas between them, where "
               "each of those does of which one leads")
      .Text("job", &flags.job, "NAME", "join only a job of this name; else whatever runs there")
      .Number("join-timeout", &flags.join_timeout, 1, 86400, "seconds to look for the scheduler")
      .MaybeNumber("rank", &flags.rank, 0, 1023, "the rank to ask for; given if it is free")
      .MaybeNumber("gpu", &flags.gpu, 0, 1023,
                   "the GPU to compute on, among those that CUDA_VISIBLE_DEVICES leaves; else the "
                   "one with the fewest workers of this host")
      .Switch("spare", &flags.spare, "ask for no place: wait until one is to be taken")
      .Number("spin-us", &flags.spin_us, 0, 1000000,
              "microseconds to look for work before sleeping; only with cores to spare")
      .Text("keys", &flags.keys, "DIR",
            "encrypt, and speak only to keys that DIR/authorized has (parley keygen); else neither")
      .Text("log", &flags.log, "FILE", "append the log here; else stderr");
  if (std::optional<int> code = set.ParseForMain(argc, argv)) return *code;
  LentMemory memory;
  GpuMemory gpu_memory;
  memory.LendDevice(gpu_memory.arenas(), gpu_memory.arenas());
  GpuSeat gpu({.index = flags.gpu, .arenas = memory.arenas(), .memory = &gpu_memory});
  absl::StatusOr<std::unique_ptr<NodeProcess>> process =
      NodeProcess::Create({.program = kProgram, .log_file = flags.log});
  if (!process.ok()) return NodeProcess::Complain(kProgram, process.status());
  absl::Status status = AddWorker(**process, flags, memory, gpu);
  if (!status.ok()) return NodeProcess::Complain(kProgram, status);
  return (*process)->Run();
}

}  // namespace
}  // namespace parley

int main(int argc, char** argv) { return parley::Main(argc, argv); }
