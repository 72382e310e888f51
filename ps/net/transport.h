// Transport: moves Frames between nodes and promises nothing about them.
//
// A frame may be dropped, duplicated, delayed or overtaken; one that arrives is whole and
// well-formed (codec.h), but its content is a stranger's until the receiver has checked it.
// Deadlines and retries are rpc.h's business alone; membership is the scheduler's. Bytes that are
// no frame are counted and reach nobody.
//
// Thread-safety: as Env - all calls on the node's loop, the receiver runs on the loop.
#ifndef PARLEY_PS_NET_TRANSPORT_H_
#define PARLEY_PS_NET_TRANSPORT_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "ps/base/ids.h"
#include "ps/wire/frame.h"

namespace parley {

// Counted since the start of the node.
struct TransportCounters {
  uint64_t frames_in = 0, frames_out = 0;
  uint64_t bytes_in = 0,
           bytes_out = 0;  // header and payload as sent, without the lower layers' own
  uint64_t refused = 0;    // messages that were no valid frame
  uint64_t dropped = 0;    // frames not sent because the peer's queue was full
};

class Transport {
 public:
  using Receiver = absl::AnyInvocable<void(NodeId from, Frame frame)>;

  virtual ~Transport() = default;

  // This node's own address; the sender field of every frame it sends.
  virtual NodeId self() const = 0;

  // Where others reach this node, with the real port; empty if it does not listen.
  virtual std::string endpoint() const = 0;

  // Makes `peer` reachable at `endpoint` ("tcp://host:port", "ipc:///path"). Returns before any
  // connection stands; a peer that is not there shows as silence. kInvalidArgument: the endpoint
  // cannot be parsed or is of another transport.
  virtual absl::Status Connect(NodeId peer, const std::string& endpoint) = 0;

  // Forgets a peer made known by Connect; unknown peers are ignored.
  virtual void Disconnect(NodeId peer) = 0;

  // Queues a frame. Never blocks; OK means queued, not delivered. `to` is a peer that Connect
  // named, or one that this node has heard from. Fills in header.sender and header.protocol.
  // kUnavailable: no such peer. kResourceExhausted: the peer's queue is full; the frame is dropped
  // and counted.
  virtual absl::Status Send(NodeId to, Frame frame) = 0;

  // Called once per arriving frame. Set it before the loop runs.
  virtual void SetReceiver(Receiver receiver) = 0;

  // Called when the connection to a peer breaks, as far as the transport can tell: the peer may
  // have died, or be back at once. A hint, never a verdict; may come twice, or not at all. kNoNode:
  // one of those that have connected to this node, it cannot be told which. Set it before the loop
  // runs.
  using PeerGone = absl::AnyInvocable<void(NodeId peer)>;
  virtual void SetPeerGone(PeerGone gone) { static_cast<void>(gone); }

  // Whoever received a frame refuses it for what its connection's key allows: counted and logged
  // with the transport's own refusals.
  virtual void NoteRefusal(std::string_view why) { static_cast<void>(why); }

  virtual TransportCounters counters() const = 0;
};

}  // namespace parley

#endif  // PARLEY_PS_NET_TRANSPORT_H_
