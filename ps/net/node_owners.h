// NodeOwners: which key each node speaks with - the first that did. A key proves a role; this keeps
// its holder from speaking for nodes that others have spoken for with another key.
//
// Thread-safety: none, of one loop.
#ifndef PARLEY_PS_NET_NODE_OWNERS_H_
#define PARLEY_PS_NET_NODE_OWNERS_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "ps/base/ids.h"

namespace parley {

class NodeOwners {
 public:
  // Of each key that many nodes are known, the latest: one that invents nodes without end pushes
  // out its own alone.
  static constexpr size_t kNodesPerKey = 4096;

  explicit NodeOwners(size_t nodes_per_key = kNodesPerKey) : nodes_per_key_(nodes_per_key) {}

  // Whether `node` may be spoken for with `key`; from now on with no other if nobody has yet. Keys
  // are remembered for good, so they have to be authorized ones.
  bool MaySpeak(NodeId node, std::string_view key);

 private:
  const size_t nodes_per_key_;
  absl::flat_hash_map<std::string, uint32_t> keys_;  // index into nodes_of_
  std::vector<std::deque<NodeId>> nodes_of_;         // oldest first
  absl::flat_hash_map<NodeId, uint32_t> owners_;
};

}  // namespace parley

#endif  // PARLEY_PS_NET_NODE_OWNERS_H_
