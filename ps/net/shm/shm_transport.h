// ShmTransport: the Transport between nodes of one machine and one user, through shared memory.
//
// Two nodes meet over a unix socket, hand each other a sealed memfd with a ring and an eventfd, and
// from then on exchange frames without system calls while both are awake (connection.h has the
// states, ring.h the bytes). Payload that lies in the node's SharedArenas is not copied: the
// receiver reads it where it is, and the sender's Buffer is held until the last reference at the
// receiver is gone - longer than other transports hold it, so a sender that wants to write there
// again looks at Buffer::unique().
//
// A node that listens has a name, "shm://machine/name", which vanishes with its process; answers go
// back on the connection that the request came by. Who connects tries again with back-off when the
// connection breaks, and what waited is sent then.
//
// Strangers: only processes of the same user get as far as a greeting. Whatever a peer says is
// checked (connection.h); one that lies is refused: counted, logged at most once a second, its
// connection closed. What cannot be checked once and for all are the bytes of a borrowed payload,
// which the peer can change while they are read. So parts whose bytes decide where something is
// read or written - keys, values that are encoded - are copied before anybody sees them, and
// only plain values are read in place: with those a peer can do no more than send other values.
// Processes of one user can harm each other by other means than this one, and are not protected
// from being read: whoever is lent a block can read its whole arena.
//
// Payload may also lie in a GPU's memory (Buffer::on_device). It is lent, whatever its size, or not
// sent at all: kInvalidArgument. Whoever receives frames where there is a device_mapper may be
// handed such Buffers for plain values by any peer, and looks before reading. Keys and encoded
// values there are refused.
//
// Thread-safety: as Transport, everything on the LoopEnv's thread.
#ifndef PARLEY_PS_NET_SHM_SHM_TRANSPORT_H_
#define PARLEY_PS_NET_SHM_SHM_TRANSPORT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "ps/base/device_memory.h"
#include "ps/base/loop_env.h"
#include "ps/base/shared_arenas.h"
#include "ps/net/shm/connection.h"
#include "ps/net/shm/custody.h"
#include "ps/net/transport.h"

namespace parley {

class ShmTransport : public Transport, private Poller {
 public:
  struct Options {
    NodeId self = kNoNode;  // required

    // Where to listen: "shm://" for a name of its own, or an endpoint of this machine. Empty: the
    // node does not listen.
    std::string bind = "";

    // Frames that may wait for one peer beside those in the ring; past it Send says
    // kResourceExhausted. 1..100000
    int queue_frames = 1000;

    // Largest part to receive or send, and most parts of one frame.
    size_t max_part_bytes = size_t{80} << 20;
    size_t max_parts = 16384;

    // The ring of each direction of each connection. Larger rings take bursts, smaller ones stay in
    // the caches. A power of two, 4 KiB..64 MiB.
    size_t ring_bytes = size_t{1} << 20;

    // A payload buffer of at least so many bytes is lent, a smaller one copied twice. Lending costs
    // a release and an allocation, about the copies of some KiB. At least 1.
    size_t lend_bytes = size_t{8} << 10;

    // What one peer may hold of this node's memory; what is more is copied through the ring. It is
    // memory that the sender has in any case; the bound says how much of it a receiver that is slow
    // can keep from being reused. As much again may be held by peers whose connections broke
    // (custody.h).
    size_t max_lent_bytes = size_t{2} << 30;

    // How long the end of the transport may take to write what is queued.
    absl::Duration linger = absl::Milliseconds(500);

    // Pause before connecting again, doubling from the first to the second.
    absl::Duration reconnect_min = absl::Milliseconds(100);
    absl::Duration reconnect_max = absl::Seconds(1);

    // Where the process's payloads are made, shared by its nodes. Null: one of its own, so that all
    // payload is copied once.
    std::shared_ptr<SharedArenas> arenas = nullptr;

    // The same in a GPU's memory. Null: such payload is not sent.
    std::shared_ptr<const Arenas> device_arenas = nullptr;
    // Maps that of peers. Null: it is not received; a peer that lends such an arena is refused.
    std::shared_ptr<DeviceMapper> device_mapper = nullptr;

    // Called, on the loop, when a peer that Connect took cannot be greeted the first time; the peer
    // is forgotten, and `frames` are those that waited for it. Then Connect itself may also say
    // kUnavailable. Null: it is tried again for ever.
    absl::AnyInvocable<void(NodeId peer, const absl::Status& why, std::vector<Frame> frames)>
        on_unreachable = nullptr;

    // Gets lines for people: where it listens, whom it has met, what it refused (at most one a
    // second). Null: silent.
    absl::AnyInvocable<void(const std::string&)> log = nullptr;
  };

  // `env` must outlive the transport. kUnavailable: this system has no shared memory for us.
  static absl::StatusOr<std::unique_ptr<ShmTransport>> Create(LoopEnv* env, Options options);

  // REQUIRES: on the loop, or nobody is in Run(); not from the receiver. Waits at most `linger`.
  // Received Buffers may live on; what is lent is not waited for, so the arenas must not be
  // written again while peers may hold it (a process that ends does not).
  ~ShmTransport() override;
  ShmTransport(const ShmTransport&) = delete;
  ShmTransport& operator=(const ShmTransport&) = delete;

  NodeId self() const override { return options_.self; }
  std::string endpoint() const override { return endpoint_; }
  // Naming a peer again at the same endpoint does nothing, at another one replaces the connection.
  // kFailedPrecondition: the endpoint is another machine's or user's.
  absl::Status Connect(NodeId peer, const std::string& endpoint) override;
  void Disconnect(NodeId peer) override;
  // Besides Transport's errors, kInvalidArgument: a payload buffer over max_part_bytes, or too many
  // of them.
  absl::Status Send(NodeId to, Frame frame) override;
  void SetPeerGone(PeerGone gone) override { peer_gone_ = std::move(gone); }
  void SetReceiver(Receiver receiver) override { receiver_ = std::move(receiver); }
  TransportCounters counters() const override { return counters_; }

  // Whether Send has somewhere to send to: named by Connect, or connected to us.
  bool Knows(NodeId peer) const { return peers_.contains(peer) || accepted_.contains(peer); }
  // Bytes that this peer keeps from being reused.
  size_t LentTo(NodeId peer) const;

 private:
  using Connection = shm::Connection;
  struct Peer;  // named by Connect

  ShmTransport(LoopEnv* env, Options options);
  absl::Status Start();
  absl::Status Listen();

  // Poller.
  bool Poll() override;
  bool PrepareToSleep() override;
  void Awake() override;

  bool DrainSockets();
  void AcceptAll();
  absl::Status WatchListener();
  absl::StatusOr<std::shared_ptr<Connection>> Adopt(shm::Fd socket, NodeId peer,
                                                    std::shared_ptr<shm::SendQueue> queue);
  absl::Status TryConnect(Peer* peer);
  void TryAgainLater(Peer* peer);
  void OnTryFailed(Peer* peer, const absl::Status& why);
  void CloseConnection(const std::shared_ptr<Connection>& connection);
  void GiveUp(NodeId peer, const absl::Status& why);
  void EndGreeting(uint64_t connection);
  void OnSocket(const std::shared_ptr<Connection>& connection);
  void OnGreeted(const std::shared_ptr<Connection>& connection);
  bool Service(const std::shared_ptr<Connection>& connection);
  bool TakeReturned();
  void ArmWakeUps();
  void Drop(const std::shared_ptr<Connection>& connection, const absl::Status& why);
  void Linger();

  // How to reach a peer: a connection, or the queue of one that is yet to be; neither: not at all.
  std::shared_ptr<Connection> Route(NodeId to, shm::SendQueue** queue) const;
  static std::shared_ptr<Connection> RouteToPeer(const Peer& peer, shm::SendQueue** queue);
  void Dispatch(NodeId from, shm::Incoming incoming);
  void Refuse(const std::string& why);
  void Log(const std::string& line);

  // Constant after Start.
  LoopEnv* const env_;
  Options options_;
  std::string endpoint_, machine_;
  shm::Fd epoll_, listener_;
  std::unique_ptr<BufferPool> staging_, received_;
  shm::Shared shared_;

  // Owned by the loop.
  Receiver receiver_;
  PeerGone peer_gone_;
  uint64_t next_connection_ = 1;  // 0 is the listener
  absl::flat_hash_map<uint64_t, std::shared_ptr<Connection>> connections_;
  std::vector<std::shared_ptr<Connection>> polled_;  // the same; null: dropped
  absl::flat_hash_map<NodeId, std::unique_ptr<Peer>> peers_;
  absl::flat_hash_map<NodeId, uint64_t> accepted_;  // the latest connection that each made to us
  std::unique_ptr<shm::Custody> custody_;
  std::vector<shm::Returned> returned_;
  TimerId wake_ups_ = kNoTimer, accept_again_ = kNoTimer;
  absl::flat_hash_map<uint64_t, TimerId> greeting_timers_;  // by connection
  TransportCounters counters_;
  absl::Duration last_refusal_log_ = -absl::InfiniteDuration();
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // for late tasks
};

}  // namespace parley

#endif  // PARLEY_PS_NET_SHM_SHM_TRANSPORT_H_
