// What the mains of servers and workers share: nodes whose transport takes the best path to each
// peer, and memory that peers on this machine read without a copy.
//
// Thread-safety: as NodeProcess.
#ifndef PARLEY_PS_NET_PATH_NODE_H_
#define PARLEY_PS_NET_PATH_NODE_H_

#include <cstddef>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "ps/base/buffer.h"
#include "ps/base/device_memory.h"
#include "ps/base/shared_arenas.h"
#include "ps/net/path_transport.h"
#include "ps/net/process.h"

namespace parley {

// Where a process makes its gradients, weights and messages. Must outlive its nodes.
class LentMemory {
 public:
  BufferPool* pool() { return &pool_; }
  const std::shared_ptr<SharedArenas>& arenas() const { return arenas_; }

  // A GPU's memory beside it, for nodes that are added from now on.
  void LendDevice(std::shared_ptr<const Arenas> arenas, std::shared_ptr<DeviceMapper> mapper) {
    device_arenas_ = std::move(arenas);
    device_mapper_ = std::move(mapper);
  }
  const std::shared_ptr<const Arenas>& device_arenas() const { return device_arenas_; }
  const std::shared_ptr<DeviceMapper>& device_mapper() const { return device_mapper_; }

 private:
  // Freed blocks kept at hand. What goes past it returns to the arenas, and stays there.
  static constexpr size_t kCacheBytes = size_t{256} << 20;

  std::shared_ptr<SharedArenas> arenas_ = std::make_shared<SharedArenas>();
  BufferPool pool_{kCacheBytes, arenas_};
  std::shared_ptr<const Arenas> device_arenas_;
  std::shared_ptr<DeviceMapper> device_mapper_;
};

// NodeProcess::AddNode with a PathTransport of a random id that lends from `memory` and logs to the
// process. `transport` says the rest.
absl::Status AddPathNode(NodeProcess& process, LoopEnvOptions loop, LentMemory& memory,
                         PathTransport::Options transport, NodeProcess::MakeNode make_node);

}  // namespace parley

#endif  // PARLEY_PS_NET_PATH_NODE_H_
