// PathTransport: the Transport of real clusters - for each pair of nodes the best path there is.
//
// It owns a ZmqTransport (tcp and unix sockets) and a ShmTransport, and an endpoint is a list:
// "tcp://10.0.0.3:41234,ipc:///run/a.sock,shm://8a54c1.0/7f". Connect takes
//
//   shared memory  if the list has it, it is of this machine and user, and the greeting succeeds;
//   ipc            if the list has it, and its socket is there;
//   tcp            if the list has it.
//
// The choice is made once for each Connect, but for shared memory whose greeting fails later: then
// the next path is taken, with the frames that waited. A path that was in use and breaks is
// connected anew, not replaced. Answers go back on the path that the request came by. One line in
// the log says which path each pair uses.
//
// Thread-safety: as Transport, everything on the LoopEnv's thread.
#ifndef PARLEY_PS_NET_PATH_TRANSPORT_H_
#define PARLEY_PS_NET_PATH_TRANSPORT_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "ps/base/device_memory.h"
#include "ps/base/loop_env.h"
#include "ps/base/shared_arenas.h"
#include "ps/net/address.h"
#include "ps/net/shm/shm_transport.h"
#include "ps/net/transport.h"
#include "ps/net/zmq_transport.h"

namespace parley {

class PathTransport : public Transport {
 public:
  struct Options {
    NodeId self = kNoNode;  // required

    // Where to listen: a list of endpoints, at most one of them shm. Empty: the node does not
    // listen.
    std::string bind = "";

    // As in ZmqTransport::Options and ShmTransport::Options, for whom the path is.
    int queue_frames = 1000;
    size_t max_part_bytes = size_t{80} << 20;
    size_t max_parts = 16384;
    int max_connections = 4096;  // by tcp and unix sockets
    absl::Duration linger = absl::Milliseconds(500);
    absl::Duration reconnect_min = absl::Milliseconds(100);
    absl::Duration reconnect_max = absl::Seconds(1);
    std::shared_ptr<ZmqContext> context = nullptr;
    std::shared_ptr<const NodeKeys> keys = nullptr;  // for tcp; the others are this user's own
    bool insecure = false;
    std::shared_ptr<SharedArenas> arenas = nullptr;
    std::shared_ptr<const Arenas> device_arenas = nullptr;
    std::shared_ptr<DeviceMapper> device_mapper = nullptr;

    // Gets lines for people. Null: silent.
    absl::AnyInvocable<void(const std::string&)> log = nullptr;
  };

  // `env` must outlive the transport. A failed bind says where, why and what to do; where there can
  // be no shared memory at all, a list with other endpoints does without.
  static absl::StatusOr<std::unique_ptr<PathTransport>> Create(LoopEnv* env, Options options);

  // As of the two that it owns: waits at most `linger` for each.
  ~PathTransport() override = default;

  NodeId self() const override { return options_.self; }
  std::string endpoint() const override { return endpoint_; }
  // `endpoint` may be a list. kInvalidArgument: it cannot be parsed. kUnavailable: none of it can
  // be reached from here.
  absl::Status Connect(NodeId peer, const std::string& endpoint) override;
  void Disconnect(NodeId peer) override;
  absl::Status Send(NodeId to, Frame frame) override;
  void SetReceiver(Receiver receiver) override { receiver_ = std::move(receiver); }
  void SetPeerGone(PeerGone gone) override;
  void NoteRefusal(std::string_view why) override { zmq_->NoteRefusal(why); }
  TransportCounters counters() const override;

 private:
  struct Peer {
    std::string endpoint;       // the list as it was given
    std::string other;          // what to take if shared memory is not to be had; empty: nothing
    Transport* path = nullptr;  // one of the two
  };

  PathTransport(LoopEnv* env, Options options);
  absl::Status Start();
  absl::Status StartShm(const std::string& bind, bool needed);
  absl::Status StartZmq(const std::string& bind);
  absl::Status ConnectByZmq(NodeId peer, const std::string& endpoint, const std::string& why);
  void OnUnreachable(NodeId peer, const absl::Status& why, std::vector<Frame> frames);
  Receiver Hand();
  void Log(const std::string& line);

  LoopEnv* const env_;
  Options options_;
  std::string endpoint_;
  Receiver receiver_;
  PeerGone peer_gone_;
  absl::flat_hash_map<NodeId, Peer> peers_;
  std::unique_ptr<ZmqTransport> zmq_;
  std::unique_ptr<ShmTransport> shm_;  // null where there can be none
};

}  // namespace parley

#endif  // PARLEY_PS_NET_PATH_TRANSPORT_H_
