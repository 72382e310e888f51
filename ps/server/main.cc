// parley-server: one server process, with as many shards - event loops that own partitions - as
// --shards says.
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "ps/config/flags.h"
#include "ps/gpu/device_arenas.h"
#include "ps/net/address.h"
#include "ps/net/node_name.h"
#include "ps/net/path_node.h"
#include "ps/net/process.h"
#include "ps/net/security.h"
#include "ps/server/server_node.h"

namespace parley {
namespace {

constexpr char kProgram[] = "parley-server";

struct Flags {
  std::string scheduler, job, log, bind, keys;
  std::string transport = "auto";
  uint32_t shards = 1, join_timeout = 60, spin_us = 0;
  std::optional<uint32_t> rank;
  bool spare = false, insecure = false;
  uint32_t max_connections = 4096;
};

// Where shard `index` listens, from where the process was told to: ports, paths and names count up.
absl::StatusOr<std::string> EndpointOfShard(Endpoint endpoint, uint32_t index) {
  if (index == 0) return FormatEndpoint(endpoint);
  if (endpoint.scheme != Endpoint::Scheme::kTcp) {
    if (!endpoint.path.empty()) absl::StrAppend(&endpoint.path, ".", index);
  } else if (endpoint.port != 0) {
    if (endpoint.port + index > 65535) {
      return absl::InvalidArgumentError(
          absl::StrFormat("--bind %s: shard %d would need port %d; allowed: up to 65535",
                          FormatEndpoint(endpoint), index, endpoint.port + index));
    }
    endpoint.port += index;
  }
  return FormatEndpoint(endpoint);
}

// The list of endpoints of shard `index`: those of --bind, as far as --transport wants them.
absl::StatusOr<std::string> BindOfShard(const Flags& flags, uint32_t index) {
  if (flags.transport == "shm" && flags.bind.empty()) return "shm://";
  const std::string bind = flags.bind.empty() ? "tcp://127.0.0.1:0" : flags.bind;
  absl::StatusOr<std::vector<Endpoint>> endpoints = ParseEndpointList(bind);
  if (!endpoints.ok()) return endpoints.status();
  std::vector<std::string> list;
  bool shm = false;
  for (const Endpoint& endpoint : *endpoints) {
    const std::string scheme = FormatEndpoint(endpoint).substr(0, 3);
    if (flags.transport != "auto" && flags.transport != scheme) {
      return absl::InvalidArgumentError(
          absl::StrFormat("--bind %s: allowed with --transport %s: %s endpoints", bind,
                          flags.transport, flags.transport));
    }
    absl::StatusOr<std::string> text = EndpointOfShard(endpoint, index);
    if (!text.ok()) return text.status();
    list.push_back(*std::move(text));
    shm |= endpoint.scheme == Endpoint::Scheme::kShm;
  }
  // Beside whatever others use: who runs on this machine need not go through the network.
  if (flags.transport == "auto" && !shm) list.push_back("shm://");
  return absl::StrJoin(list, ",");
}

// What the shards of a process share.
struct Common {
  uint64_t process_id = 0;
  std::string node_name;
  std::shared_ptr<ZmqContext> context;
  std::shared_ptr<const NodeKeys> keys;  // null: without
};

absl::Status AddShard(NodeProcess& process, const Flags& flags, uint32_t shard,
                      const Common& common, GpuMemory& gpu, LentMemory& memory) {
  absl::StatusOr<std::string> bind = BindOfShard(flags, shard);
  if (!bind.ok()) return bind.status();
  PathTransport::Options transport;
  transport.bind = *std::move(bind);
  transport.context = common.context;
  transport.keys = common.keys;
  transport.insecure = flags.insecure;
  transport.max_connections = static_cast<int>(flags.max_connections);
  return AddPathNode(process, {.offload_threads = 1, .spin = absl::Microseconds(flags.spin_us)},
                     memory, std::move(transport), [&](const NodeProcess::Seat& seat) {
                       ServerNode::Options options;
                       options.scheduler = flags.scheduler;
                       options.job = flags.job;
                       options.node_name = flags.shards > 1
                                               ? absl::StrCat(common.node_name, "/", shard)
                                               : common.node_name;
                       options.process = common.process_id;
                       options.shard = shard;
                       options.wanted_rank = flags.rank;
                       options.spare = flags.spare;
                       options.join_timeout = absl::Seconds(flags.join_timeout);
                       options.pool = memory.pool();
                       options.make_gpu_place = [&gpu](pb::Compute::Device device) {
                         return MakeGpuPlace(&gpu, device);
                       };
                       options.log = seat.log;
                       return NodeProcess::Hold(std::make_shared<ServerNode>(
                           seat.env, seat.transport, std::move(options), seat.done));
                     });
}

int Main(int argc, char** argv) {
  Flags flags;
  FlagSet set(kProgram, "Holds a part of the weights and applies the optimizer.");
  set.Required("scheduler", &flags.scheduler, "ENDPOINT",
               "where the scheduler listens, tcp://host:port; or, with commas between them, where "
               "each of those does of which one leads")
      .Text("job", &flags.job, "NAME", "join only a job of this name; else whatever runs there")
      .Text("bind", &flags.bind, "ENDPOINT",
            "where to listen: tcp://HOST:PORT with an address, hostname, interface or CIDR block "
            "and 0 for any free port, or ipc:///path, or several with commas between them; further "
            "shards count up from it; else tcp://127.0.0.1:0")
      .Choice("transport", &flags.transport, {"auto", "tcp", "ipc", "shm"},
              "auto: also shared memory, beside --bind; others: that alone")
      .Number("shards", &flags.shards, 1, 64, "event loops, each with its own partitions")
      .Number("join-timeout", &flags.join_timeout, 1, 86400, "seconds to look for the scheduler")
      .MaybeNumber("rank", &flags.rank, 0, 1023, "the rank to ask for; given if it is free")
      .Switch("spare", &flags.spare, "ask for no place: wait until one is to be taken")
      .Number("spin-us", &flags.spin_us, 0, 1000000,
              "microseconds to look for work before sleeping; only with cores to spare")
      .Text("keys", &flags.keys, "DIR",
            "encrypt, and speak only to keys that DIR/authorized has (parley keygen); else neither")
      .Switch("insecure", &flags.insecure, "listen where other machines reach it, without keys")
      .Number("max-connections", &flags.max_connections, 1, 1000000,
              "connections that others may have to each shard")
      .Text("log", &flags.log, "FILE", "append the log here; else stderr");
  if (std::optional<int> code = set.ParseForMain(argc, argv)) return *code;
  GpuMemory gpu;
  LentMemory memory;
  memory.LendDevice(gpu.arenas(), gpu.arenas());
  absl::StatusOr<std::unique_ptr<NodeProcess>> process =
      NodeProcess::Create({.program = kProgram, .log_file = flags.log});
  if (!process.ok()) return NodeProcess::Complain(kProgram, process.status());
  absl::StatusOr<std::shared_ptr<ZmqContext>> context = ZmqContext::Create();
  if (!context.ok()) return NodeProcess::Complain(kProgram, context.status());
  std::shared_ptr<const NodeKeys> keys;
  if (absl::Status status = UseKeys(flags.keys, PeerRole::kServer, &keys); !status.ok()) {
    return NodeProcess::Complain(kProgram, status);
  }
  std::random_device random;
  const Common common{.process_id = (uint64_t{random()} << 32 | random()) | 1,
                      .node_name = HostAndPid(),
                      .context = *context,
                      .keys = std::move(keys)};
  for (uint32_t shard = 0; shard < flags.shards; ++shard) {
    absl::Status status = AddShard(**process, flags, shard, common, gpu, memory);
    if (!status.ok()) return NodeProcess::Complain(kProgram, status);
  }
  return (*process)->Run();
}

}  // namespace
}  // namespace parley

int main(int argc, char** argv) { return parley::Main(argc, argv); }
