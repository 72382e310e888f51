#include "ps/net/node_owners.h"

#include "absl/strings/string_view.h"

namespace parley {

bool NodeOwners::MaySpeak(NodeId node, std::string_view key) {
  auto known = keys_.find(absl::string_view(key.data(), key.size()));
  if (known == keys_.end()) {
    known = keys_.emplace(key, static_cast<uint32_t>(nodes_of_.size())).first;
    nodes_of_.emplace_back();
  }
  const uint32_t index = known->second;
  const auto [owner, is_new] = owners_.try_emplace(node, index);
  if (!is_new) return owner->second == index;
  std::deque<NodeId>& nodes = nodes_of_[index];
  nodes.push_back(node);
  if (nodes.size() > nodes_per_key_) {
    owners_.erase(nodes.front());
    nodes.pop_front();
  }
  return true;
}

}  // namespace parley
