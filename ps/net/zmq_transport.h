// ZmqTransport: the Transport of real clusters, ZeroMQ over tcp and unix sockets.
//
// A node that listens has one ROUTER socket bound to its endpoint; every peer named by Connect has
// a DEALER of its own. A DEALER's routing id is 'P' and the eight bytes of its node's NodeId, so a
// ROUTER knows who is speaking before it reads a frame, and answers go back on the connection that
// the request came by: workers need not listen. A frame is one message part with the encoded header
// (codec.h) and one part for each payload buffer. Payload is copied in neither direction: a sent
// Buffer is referred to until its bytes are in the kernel, a received one owns the ZeroMQ message.
//
// What ZeroMQ does for us: connecting and reconnecting, framing, a bounded queue a peer. Frames of
// one peer arrive in order while its connection stands; those under way when it breaks are lost,
// those still queued are sent to whoever listens there next.
//
// Strangers: bytes that are no ZeroMQ, messages that are no frames, and frames whose sender is not
// the one that the connection belongs to reach nobody. A part over max_part_bytes ends its
// connection before memory is taken for it (and so cannot be counted).
//
// Keys: with Options::keys every tcp connection is encrypted, and both its ends prove that they own
// a key that the other has authorized; Frame::peer_role says whose. A server's endpoint carries its
// public key. Unix sockets are then this user's own. Without keys whoever can reach the port and
// knows a NodeId can speak for it, and can make this node hold a message of many parts: so only
// `insecure` lets it listen where other machines reach it.
//
// Thread-safety: as Transport, everything on the LoopEnv's thread. One I/O thread a ZmqContext.
#ifndef PARLEY_PS_NET_ZMQ_TRANSPORT_H_
#define PARLEY_PS_NET_ZMQ_TRANSPORT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "ps/base/loop_env.h"
#include "ps/net/address.h"
#include "ps/net/node_owners.h"
#include "ps/net/security.h"
#include "ps/net/transport.h"
#include "ps/net/zmq_bind.h"
#include "ps/net/zmq_gate.h"
#include "ps/net/zmq_socket.h"

namespace parley {

class ZmqTransport : public Transport, private Poller {
 public:
  struct Options {
    NodeId self = kNoNode;  // required

    // Where to listen: an endpoint, tcp or ipc, whose host is anything ResolveBindHost takes
    // ("tcp://eth0:0"), or several with commas between them. Empty: the node does not listen.
    std::string bind = "";

    // Frames waiting for one peer, in each direction; past it Send says kResourceExhausted, and the
    // peer's own queues fill. Departures are counted by the half queue, so that it may seem full
    // with half as many: allow for twice what is to be under way. With requests of 1 MiB the
    // default may hold 1 GiB for a peer that has stopped reading; with few of them in flight (rpc
    // deadlines) it never comes to that. 1..100000
    int queue_frames = 1000;

    // Largest part to receive or send, and most parts of one frame.
    size_t max_part_bytes = size_t{80} << 20;
    size_t max_parts = 16384;

    // Connections that others may have to this node, and how long one may take until it has said
    // who it is (zmq_gate.h). Too few keep members out: a cluster's nodes have one each, and one
    // that comes back may have two for a while. 1..1000000
    int max_connections = 4096;
    absl::Duration handshake = absl::Seconds(5);

    // How long the end of the transport may take to send what is queued. Zero drops it; too long
    // makes a process hang on a dead peer.
    absl::Duration linger = absl::Milliseconds(500);

    // Pause before connecting again, doubling from the first to the second.
    absl::Duration reconnect_min = absl::Milliseconds(100);
    absl::Duration reconnect_max = absl::Seconds(1);

    // Of the kernel, each way; 0 leaves it to the kernel, which adapts them to the link.
    int socket_buffer_bytes = 0;

    // Shared between the transports of a process; null: one of its own. Not used with keys: then
    // each has its own, whose thread also encrypts.
    std::shared_ptr<ZmqContext> context = nullptr;

    // Who this node is, and whom it lets in. Null: nobody is asked, nothing is encrypted.
    std::shared_ptr<const NodeKeys> keys = nullptr;
    // Without keys: may listen on other addresses than loopback. A warning is logged.
    bool insecure = false;

    // Gets lines for people: where it listens, what it refused (at most one a second). Null:
    // silent.
    absl::AnyInvocable<void(const std::string&)> log = nullptr;
  };

  // `env` must outlive the transport. A failed bind says where, why and what to do.
  static absl::StatusOr<std::unique_ptr<ZmqTransport>> Create(LoopEnv* env, Options options);

  // REQUIRES: on the loop, or nobody is in Run(); not from the receiver. Waits at most `linger`.
  ~ZmqTransport() override;
  ZmqTransport(const ZmqTransport&) = delete;
  ZmqTransport& operator=(const ZmqTransport&) = delete;

  NodeId self() const override { return options_.self; }
  std::string endpoint() const override { return endpoint_; }
  // Naming a peer again at the same endpoint does nothing, at another one replaces the connection
  // (what was queued for the old one is still sent there). Hostnames are looked up as IPv4.
  absl::Status Connect(NodeId peer, const std::string& endpoint) override;
  void Disconnect(NodeId peer) override;
  // Besides Transport's errors, kInvalidArgument: a payload buffer over max_part_bytes, or too many
  // of them.
  absl::Status Send(NodeId to, Frame frame) override;
  void SetReceiver(Receiver receiver) override { receiver_ = std::move(receiver); }
  void SetPeerGone(PeerGone gone) override;
  void NoteRefusal(std::string_view why) override { Refuse(why); }
  TransportCounters counters() const override { return counters_; }

 private:
  struct Channel;   // one socket
  struct Incoming;  // one received message

  ZmqTransport(LoopEnv* env, Options options);
  absl::Status Start();
  absl::Status Listen();
  absl::Status ListenOn(Channel* channel, const std::vector<BindTarget>& targets, bool tcp);
  absl::Status OpenAndWatchDoor();
  absl::StatusOr<std::shared_ptr<Channel>> OpenChannel(int type, bool ipv6, NodeId peer);
  absl::Status Watch(Channel* channel);
  absl::Status Monitor(Channel* channel);
  void CloseChannel(Channel* channel);
  void Touch(Channel* channel);

  absl::Status SendOn(Channel* channel, NodeId to, Frame frame);

  // Poller: sockets that were used, whose news the descriptor may have forgotten.
  bool Poll() override;
  bool PrepareToSleep() override { return touched_.empty(); }
  void Awake() override {}

  bool DrainEvents();
  bool DrainChannel(Channel* channel);
  bool DrainMonitor(Channel* monitor);
  bool DrainDoor(Channel* door);
  void SettleGate();
  void OnRefused(NodeId peer);
  bool ReceiveMessage(Channel* channel, Incoming* in);
  void Dispatch(Channel* channel, Incoming* in);
  void Refuse(std::string_view why);
  void Log(const std::string& line);

  // Constant after Start.
  LoopEnv* const env_;
  Options options_;
  std::string endpoint_;
  std::vector<std::string> bound_;  // the endpoints in it
  // One descriptor that stands for all sockets, so that a loop with many peers looks only at those
  // that have news.
  int epoll_fd_ = -1;

  // Owned by the loop.
  std::shared_ptr<Channel> router_;  // null if it does not listen
  std::shared_ptr<Channel> door_;    // where ZeroMQ asks about keys; null: listens without
  absl::flat_hash_map<NodeId, std::shared_ptr<Channel>> peers_;
  // Sockets to look at before the loop sleeps: their descriptor told of news, or they were used,
  // which may have swallowed the news.
  std::vector<std::shared_ptr<Channel>> touched_, draining_;
  Receiver receiver_;
  PeerGone peer_gone_;  // null: connections are not monitored
  TransportCounters counters_;
  absl::Duration last_refusal_log_ = -absl::InfiniteDuration();
  ZmqGate gate_;
  TimerId gate_timer_ = kNoTimer;
  absl::Duration last_gate_log_ = -absl::InfiniteDuration();
  NodeOwners owners_;  // with keys
};

}  // namespace parley

#endif  // PARLEY_PS_NET_ZMQ_TRANSPORT_H_
