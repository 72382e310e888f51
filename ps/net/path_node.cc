#include "ps/net/path_node.h"

#include <string>
#include <utility>

namespace parley {

absl::Status AddPathNode(NodeProcess& process, LoopEnvOptions loop, LentMemory& memory,
                         PathTransport::Options transport, NodeProcess::MakeNode make_node) {
  return process.AddNode(
      std::move(loop),
      [&](LoopEnv* env) -> absl::StatusOr<std::unique_ptr<Transport>> {
        transport.self = NodeId{env->Random()};
        transport.arenas = memory.arenas();
        transport.device_arenas = memory.device_arenas();
        transport.device_mapper = memory.device_mapper();
        transport.log = [&process](const std::string& line) { process.Log(line); };
        return PathTransport::Create(env, std::move(transport));
      },
      std::move(make_node));
}

}  // namespace parley
