// parley-server: one server process, with as many shards - event loops that own partitions - as
// --shards says.
#include <memory>
#include <optional>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/config/flags.h"
#include "ps/net/address.h"
#include "ps/net/node_name.h"
#include "ps/net/process.h"
#include "ps/net/zmq_transport.h"
#include "ps/server/server_node.h"

namespace parley {
namespace {

constexpr char kProgram[] = "parley-server";

struct Flags {
  std::string scheduler, job, log, bind = "tcp://127.0.0.1:0";
  uint32_t shards = 1, join_timeout = 60;
  std::optional<uint32_t> rank;
};

// Where shard `index` listens, from where the process was told to: ports and paths count up.
absl::StatusOr<std::string> BindOfShard(const std::string& bind, uint32_t index) {
  absl::StatusOr<Endpoint> endpoint = ParseEndpoint(bind);
  if (!endpoint.ok()) return endpoint.status();
  if (index == 0) return bind;
  if (endpoint->scheme == Endpoint::Scheme::kIpc) {
    absl::StrAppend(&endpoint->path, ".", index);
  } else if (endpoint->port != 0) {
    if (endpoint->port + index > 65535) {
      return absl::InvalidArgumentError(
          absl::StrFormat("--bind %s: shard %d would need port %d; allowed: up to 65535", bind,
                          index, endpoint->port + index));
    }
    endpoint->port += index;
  }
  return FormatEndpoint(*endpoint);
}

absl::Status AddShard(NodeProcess& process, const Flags& flags, uint32_t shard, uint64_t process_id,
                      const std::string& node_name, std::shared_ptr<ZmqContext> context) {
  absl::StatusOr<std::string> bind = BindOfShard(flags.bind, shard);
  if (!bind.ok()) return bind.status();
  return process.AddNode(
      {.offload_threads = 0},
      [&](LoopEnv* env) -> absl::StatusOr<std::unique_ptr<Transport>> {
        ZmqTransport::Options options;
        options.self = NodeId{env->Random()};
        options.bind = *bind;
        options.context = context;
        options.log = [&process](const std::string& line) { process.Log(line); };
        return ZmqTransport::Create(env, std::move(options));
      },
      [&](const NodeProcess::Seat& seat) {
        ServerNode::Options options;
        options.scheduler = flags.scheduler;
        options.job = flags.job;
        options.node_name = flags.shards > 1 ? absl::StrCat(node_name, "/", shard) : node_name;
        options.process = process_id;
        options.shard = shard;
        options.wanted_rank = flags.rank;
        options.join_timeout = absl::Seconds(flags.join_timeout);
        options.log = seat.log;
        return NodeProcess::Hold(
            std::make_shared<ServerNode>(seat.env, seat.transport, std::move(options), seat.done));
      });
}

int Main(int argc, char** argv) {
  Flags flags;
  FlagSet set(kProgram, "Holds a part of the weights and applies the optimizer.");
  set.Required("scheduler", &flags.scheduler, "ENDPOINT",
               "where the scheduler listens, tcp://host:port")
      .Text("job", &flags.job, "NAME", "join only a job of this name; else whatever runs there")
      .Text("bind", &flags.bind, "ENDPOINT",
            "where to listen: tcp://HOST:PORT with an address, hostname, interface or CIDR block "
            "and 0 for any free port, or ipc:///path; further shards count up from it")
      .Number("shards", &flags.shards, 1, 64, "event loops, each with its own partitions")
      .Number("join-timeout", &flags.join_timeout, 1, 86400, "seconds to look for the scheduler")
      .MaybeNumber("rank", &flags.rank, 0, 1023, "the rank to ask for; given if it is free")
      .Text("log", &flags.log, "FILE", "append the log here; else stderr");
  if (std::optional<int> code = set.ParseForMain(argc, argv)) return *code;
  absl::StatusOr<std::unique_ptr<NodeProcess>> process =
      NodeProcess::Create({.program = kProgram, .log_file = flags.log});
  if (!process.ok()) return NodeProcess::Complain(kProgram, process.status());
  absl::StatusOr<std::shared_ptr<ZmqContext>> context = ZmqContext::Create();
  if (!context.ok()) return NodeProcess::Complain(kProgram, context.status());
  std::random_device random;
  const uint64_t process_id = (uint64_t{random()} << 32 | random()) | 1;
  const std::string node_name = HostAndPid();
  for (uint32_t shard = 0; shard < flags.shards; ++shard) {
    absl::Status status = AddShard(**process, flags, shard, process_id, node_name, *context);
    if (!status.ok()) return NodeProcess::Complain(kProgram, status);
  }
  return (*process)->Run();
}

}  // namespace
}  // namespace parley

int main(int argc, char** argv) { return parley::Main(argc, argv); }
