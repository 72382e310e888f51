// Names of things that cross the wire. Plain values; no thread-safety needed.
#ifndef PARLEY_PS_BASE_IDS_H_
#define PARLEY_PS_BASE_IDS_H_

#include <cstdint>
#include <string>

#include "absl/strings/str_format.h"

namespace parley {

// A node's address in the Transport: drawn anew at every start of a process or shard, so that a
// restarted process is never mistaken for its former self. The scheduler alone has a fixed one,
// since it is known by its endpoint.
enum class NodeId : uint64_t {};

inline constexpr NodeId kNoNode = NodeId{0};
inline constexpr NodeId kSchedulerNode = NodeId{1};

inline constexpr uint64_t Value(NodeId id) { return static_cast<uint64_t>(id); }
inline std::string ToString(NodeId id) {
  return id == kSchedulerNode ? "scheduler" : absl::StrFormat("%016x", Value(id));
}

// Bumped whenever a frame of one version would be misread by the other. Checked in the handshake.
inline constexpr uint32_t kProtocolVersion = 1;

}  // namespace parley

#endif  // PARLEY_PS_BASE_IDS_H_
