// What libzmq tells and asks of a ZmqTransport's connections: who came, who went, who shall be let
// in.
#include <cstdint>
#include <string_view>
#include <utility>

#include "absl/strings/str_format.h"
#include "ps/net/zmq_channel.h"
#include "ps/net/zmq_curve.h"
#include "ps/net/zmq_transport.h"

namespace parley {
namespace {

// With keys: somebody could not prove who it is, and tries no more; or just went.
constexpr int kRefusedEvents =
    ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;
constexpr int kHandshakeEvents = kRefusedEvents | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL;

// How often a node that is short of descriptors looks for some, and says that it is closed.
constexpr absl::Duration kGateInterval = absl::Seconds(1), kGateLogInterval = absl::Seconds(1);

// Of a monitor's event, little-endian as this machine is.
uint32_t Number(std::string_view bytes) {
  uint32_t number = 0;
  for (size_t i = bytes.size(); i > 0; --i)
    number = number << 8 | static_cast<uint8_t>(bytes[i - 1]);
  return number;
}

}  // namespace

absl::Status ZmqTransport::OpenAndWatchDoor() {
  absl::StatusOr<ZmqSocket> socket = OpenDoor(*options_.context);
  if (!socket.ok()) return socket.status();
  door_ = std::make_shared<Channel>();
  door_->socket = *std::move(socket);
  door_->is_door = true;
  return Watch(door_.get());
}

// ZeroMQ says that a connection of the socket ended, not whose: a DEALER has but one. A ROUTER's
// are counted.
absl::Status ZmqTransport::Monitor(Channel* channel) {
  const bool secure = options_.keys != nullptr;
  if ((!peer_gone_ && !secure && !channel->router) || channel->monitor != nullptr)
    return absl::OkStatus();
  const std::string name =
      absl::StrFormat("inproc://monitor-%p", static_cast<void*>(channel->socket.handle()));
  const int events = ZMQ_EVENT_DISCONNECTED | (secure ? kHandshakeEvents : 0) |
                     (channel->router ? ZMQ_EVENT_LISTENING | ZMQ_EVENT_ACCEPTED : 0);
  if (zmq_socket_monitor(channel->socket.handle(), name.c_str(), events) != 0) {
    return ZmqError(zmq_errno(), "transport: zmq_socket_monitor");
  }
  absl::StatusOr<ZmqSocket> socket = ZmqSocket::Open(*options_.context, ZMQ_PAIR);
  if (!socket.ok()) return socket.status();
  absl::Status status = socket->SetInt(ZMQ_LINGER, 0);
  // Without a bound: a thread of ZeroMQ's that has news waits for room holding a lock that closing
  // the socket needs. There is no more of it than connections that came and went in a turn.
  if (status.ok()) status = socket->SetInt(ZMQ_RCVHWM, 0);
  if (!status.ok()) return status;
  if (zmq_connect(socket->handle(), name.c_str()) != 0) {
    return ZmqError(zmq_errno(), "transport: connecting to a monitor");
  }
  channel->monitor = std::make_shared<Channel>();
  channel->monitor->socket = *std::move(socket);
  channel->monitor->peer = channel->peer;
  channel->monitor->is_monitor = true;
  return Watch(channel->monitor.get());
}

void ZmqTransport::SetPeerGone(PeerGone gone) {
  peer_gone_ = std::move(gone);
  absl::Status status = router_ != nullptr ? Monitor(router_.get()) : absl::OkStatus();
  for (auto& [peer, channel] : peers_) status.Update(Monitor(channel.get()));
  // Heartbeats tell as well, only later.
  if (!status.ok()) Log(std::string(status.message()));
}

bool ZmqTransport::DrainMonitor(Channel* monitor) {
  int told = 0;
  for (ZmqMessage part; monitor->socket.is_open() && monitor->socket.Receive(&part);) {
    // An event is a part with its number and a value, and one with the endpoint.
    if (!part.more() || part.size() < sizeof(uint16_t) + sizeof(uint32_t)) continue;
    const auto event = static_cast<int>(Number(part.view().substr(0, sizeof(uint16_t))));
    const auto value = static_cast<int>(Number(part.view().substr(sizeof(uint16_t))));
    told |= event;
    if (monitor->peer != kNoNode) continue;
    if (event == ZMQ_EVENT_LISTENING) gate_.OnListening(value);
    if (event == ZMQ_EVENT_ACCEPTED) gate_.OnAccepted(value);
    if (event == ZMQ_EVENT_DISCONNECTED) gate_.OnEnded();
  }
  const bool listens = monitor->peer == kNoNode;
  if (listens && told != 0) SettleGate();
  // Who finds out first that it is in the wrong place hangs up, and the other learns no more.
  if (listens && (told & ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL) != 0) {
    Refuse("a connection that ended before it had proven a key");
  }
  if ((told & ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL) != 0) {
    Refuse(listens ? "a connection that knows no key of this node, or has none of its own"
                   : absl::StrFormat("node %s proves no key, or takes this node for another",
                                     ToString(monitor->peer)));
  }
  if ((told & ZMQ_EVENT_HANDSHAKE_FAILED_AUTH) != 0 && !listens) {
    Refuse(absl::StrFormat("node %s does not let this node's key in", ToString(monitor->peer)));
  }
  if ((told & kRefusedEvents) != 0 && !listens) OnRefused(monitor->peer);
  if ((told & ZMQ_EVENT_DISCONNECTED) != 0 && peer_gone_) peer_gone_(monitor->peer);
  return told != 0;
}

void ZmqTransport::SettleGate() {
  const std::string line = gate_.Settle();
  const absl::Duration now = env_->Now();
  if (!line.empty() && now - last_gate_log_ >= kGateLogInterval) {
    last_gate_log_ = now;
    Log(line);
  }
  if (!gate_.must_look_again() || gate_timer_ != kNoTimer) return;
  gate_timer_ = env_->After(kGateInterval, [this] {
    gate_timer_ = kNoTimer;
    SettleGate();
  });
}

// ZeroMQ never tries again then; but somebody else may have been there for a while, or the key may
// be let in by the next process.
void ZmqTransport::OnRefused(NodeId peer) {
  auto known = peers_.find(peer);
  if (known == peers_.end() || std::exchange(known->second->refused, true)) return;
  std::weak_ptr<Channel> refused = known->second;
  env_->After(options_.reconnect_max, [this, peer, refused] {
    const std::shared_ptr<Channel> channel = refused.lock();
    if (channel == nullptr || !channel->socket.is_open()) return;
    const std::string endpoint = channel->endpoint;
    Disconnect(peer);
    absl::Status status = Connect(peer, endpoint);
    if (!status.ok()) Log(std::string(status.message()));
  });
}

bool ZmqTransport::DrainDoor(Channel* door) {
  bool worked = false;
  while (AnswerDoor(&door->socket, *options_.keys, [this](std::string_view why) { Refuse(why); })) {
    worked = true;
  }
  return worked;
}

}  // namespace parley
