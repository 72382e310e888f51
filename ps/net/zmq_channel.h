// One socket of a ZmqTransport, for its own files alone. Thread-safety: as ZmqSocket.
#ifndef PARLEY_PS_NET_ZMQ_CHANNEL_H_
#define PARLEY_PS_NET_ZMQ_CHANNEL_H_

#include <memory>
#include <string>

#include "ps/base/ids.h"
#include "ps/net/zmq_socket.h"
#include "ps/net/zmq_transport.h"
#include "ps/wire/frame.h"

namespace parley {

struct ZmqTransport::Channel : std::enable_shared_from_this<ZmqTransport::Channel> {
  ZmqSocket socket;
  bool router = false;
  NodeId peer = kNoNode;  // who is at the other end of a DEALER
  std::string endpoint;   // where
  bool touched = false;   // is in touched_

  // Where libzmq tells of this socket's connections; null: nobody asked.
  std::shared_ptr<Channel> monitor;
  bool is_monitor =
      false;  // then `peer` is the one of the socket it belongs to, kNoNode: a ROUTER's
  bool is_door = false;

  // Of a DEALER, whose other end has proven it before it is heard.
  PeerRole role = PeerRole::kUnproven;
  bool refused = false;  // a DEALER's keys did not fit; another one takes its place soon
};

}  // namespace parley

#endif  // PARLEY_PS_NET_ZMQ_CHANNEL_H_
