// What ZmqTransport sets on each of its sockets, and how it names nodes to them. Pure but for the
// socket; thread-safety as ZmqSocket.
#ifndef PARLEY_PS_NET_ZMQ_OPTIONS_H_
#define PARLEY_PS_NET_ZMQ_OPTIONS_H_

#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "ps/base/ids.h"
#include "ps/net/zmq_socket.h"
#include "ps/net/zmq_transport.h"

namespace parley {

// The name of a node's DEALERs, and the node of such a name.
std::string RoutingId(NodeId node);
std::optional<NodeId> ParseRoutingId(std::string_view id);

// Before the socket binds or connects. `type`: ZMQ_DEALER, ZMQ_ROUTER.
absl::Status SetOptions(const ZmqTransport::Options& options, int type, bool ipv6,
                        ZmqSocket* socket);

}  // namespace parley

#endif  // PARLEY_PS_NET_ZMQ_OPTIONS_H_
