// Binding a ZeroMQ socket so that a user whose endpoint is no good learns why and what to do.
#ifndef PARLEY_PS_NET_ZMQ_BIND_H_
#define PARLEY_PS_NET_ZMQ_BIND_H_

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "ps/net/address.h"
#include "ps/net/zmq_socket.h"

namespace parley {

// What a listening socket binds, and what others are told.
struct BindTarget {
  Endpoint endpoint;            // host resolved to an address
  std::string advertised_host;  // tcp: differs from endpoint.host for wildcards only
  std::string interfaces;       // of this machine, for error lines
  bool exposed = false;         // tcp: other machines may reach it
  bool local = true;            // tcp: an interface here has the address, or it is a wildcard
};

// Resolves the host of `bind`; a key in it is not looked at. Errors are one line each, for the
// user.
absl::StatusOr<BindTarget> ResolveBind(const std::string& bind);

// Binds and returns the endpoint for others, with the real port. An ipc path where a living process
// listens is refused with kAlreadyExists, though ZeroMQ would take it over; one that a dead process
// left behind is replaced. May connect to an ipc path to tell them apart.
absl::StatusOr<std::string> Bind(ZmqSocket* socket, const BindTarget& target);

// Why nobody listens at an exposed target without keys, and what to do.
absl::Status ExposureError(const BindTarget& target);

// Removes the socket file of an endpoint that Bind gave, which ZeroMQ leaves lying. Call it while
// the socket is still open: later somebody else may have the path.
void RemoveSocketFile(const std::string& endpoint);

}  // namespace parley

#endif  // PARLEY_PS_NET_ZMQ_BIND_H_
