#include "ps/net/zmq_options.h"

#include <algorithm>
#include <vector>

#include "absl/time/time.h"
#include "ps/net/zmq_curve.h"

namespace parley {
namespace {

constexpr char kRoutingTag = 'P';
constexpr size_t kRoutingIdBytes = 1 + sizeof(uint64_t);

// A host that vanished without a word is noticed after about a minute, or 30 s with bytes to send.
constexpr int kKeepaliveIdleSeconds = 30;
constexpr int kKeepaliveIntervalSeconds = 10;
constexpr int kKeepaliveProbes = 3;
constexpr int kUnackedMs = 30000;

int Milliseconds(absl::Duration duration) {
  return static_cast<int>(std::clamp<int64_t>(absl::ToInt64Milliseconds(duration), 0, 1 << 30));
}

}  // namespace

std::string RoutingId(NodeId node) {
  std::string id(kRoutingIdBytes, kRoutingTag);
  for (size_t i = 0; i < sizeof(uint64_t); ++i) {
    id[1 + i] = static_cast<char>(Value(node) >> (8 * i) & 0xff);
  }
  return id;
}

std::optional<NodeId> ParseRoutingId(std::string_view id) {
  if (id.size() != kRoutingIdBytes || id[0] != kRoutingTag) return std::nullopt;
  uint64_t value = 0;
  for (size_t i = sizeof(uint64_t); i > 0; --i) value = value << 8 | static_cast<uint8_t>(id[i]);
  return NodeId{value};
}

absl::Status SetOptions(const ZmqTransport::Options& options, int type, bool ipv6,
                        ZmqSocket* socket) {
  struct Setting {
    int option, value;
  };
  std::vector<Setting> settings = {
      {ZMQ_SNDHWM, options.queue_frames},
      {ZMQ_RCVHWM, options.queue_frames},
      {ZMQ_LINGER, Milliseconds(options.linger)},
      {ZMQ_HANDSHAKE_IVL, std::max(1, Milliseconds(options.handshake))},
      {ZMQ_IMMEDIATE, 0},
      {ZMQ_RECONNECT_IVL, std::max(1, Milliseconds(options.reconnect_min))},
      {ZMQ_RECONNECT_IVL_MAX, Milliseconds(options.reconnect_max)},
      {ZMQ_TCP_KEEPALIVE, 1},
      {ZMQ_TCP_KEEPALIVE_IDLE, kKeepaliveIdleSeconds},
      {ZMQ_TCP_KEEPALIVE_INTVL, kKeepaliveIntervalSeconds},
      {ZMQ_TCP_KEEPALIVE_CNT, kKeepaliveProbes},
      {ZMQ_TCP_MAXRT, kUnackedMs},
      {ZMQ_IPV6, ipv6 ? 1 : 0},
  };
  if (options.socket_buffer_bytes > 0) {
    settings.push_back({ZMQ_SNDBUF, options.socket_buffer_bytes});
    settings.push_back({ZMQ_RCVBUF, options.socket_buffer_bytes});
  }
  if (type == ZMQ_ROUTER) {
    settings.push_back({ZMQ_ROUTER_MANDATORY, 1});  // an unknown peer is an error, not silence
    settings.push_back({ZMQ_ROUTER_HANDOVER, 1});   // a peer may come back before its old
  }                                                 // connection is known to be dead
  for (const Setting& setting : settings) {
    absl::Status status = socket->SetInt(setting.option, setting.value);
    if (!status.ok()) return status;
  }
  const size_t overhead = options.keys != nullptr ? kCurveOverheadBytes : 0;
  absl::Status status =
      socket->SetInt64(ZMQ_MAXMSGSIZE, static_cast<int64_t>(options.max_part_bytes + overhead));
  if (status.ok() && type == ZMQ_DEALER) {
    status = socket->SetBytes(ZMQ_ROUTING_ID, RoutingId(options.self));
  }
  return status;
}

}  // namespace parley
