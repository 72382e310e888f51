// CURVE on ZeroMQ's sockets: who may connect is asked of this process (ZAP, ZeroMQ's RFC 27), and
// answered from its keys. Used by ZmqTransport alone.
//
// The options apply to what a socket binds or connects to afterwards: one ROUTER has unix sockets
// without and tcp ports with CURVE.
//
// Thread-safety: as ZmqSocket, of one loop.
#ifndef PARLEY_PS_NET_ZMQ_CURVE_H_
#define PARLEY_PS_NET_ZMQ_CURVE_H_

#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ps/base/ids.h"
#include "ps/net/address.h"
#include "ps/net/security.h"
#include "ps/net/zmq_socket.h"

namespace parley {

// What a CURVE message is longer than what is in it, and some.
inline constexpr size_t kCurveOverheadBytes = 64;

// Where a context asks for admission. Open it before any socket of `context` listens: who connects
// to a listening socket while nobody can be asked would be let in. One a context.
absl::StatusOr<ZmqSocket> OpenDoor(const ZmqContext& context);

// Answers one question, if there is one. `refused` is called with why somebody was not let in.
bool AnswerDoor(ZmqSocket* door, const NodeKeys& keys,
                absl::FunctionRef<void(std::string_view why)> refused);

// Unix sockets that this socket binds from now on are for processes of this user.
absl::Status AdmitOnlyThisUser(ZmqSocket* socket);

// Tcp ports that this socket binds from now on are for those that the door lets in.
absl::Status ListenWithCurve(ZmqSocket* socket, const NodeKeys& keys);

// The key that whoever listens at `at`, a tcp endpoint, has to prove: the one in it, or the only
// one of a scheduler. Empty: no keys are in use. kFailedPrecondition: it has none, or none that is
// authorized for the role of `peer`.
absl::StatusOr<std::string> ExpectedKey(const NodeKeys* keys, NodeId peer, const Endpoint& at);

// What this socket connects to from now on has to prove `server_key`.
absl::Status ConnectWithCurve(ZmqSocket* socket, const NodeKeys& keys,
                              const std::string& server_key);

// What the door told of the connection a message came by. `key` lives as long as the message.
struct ProvenSender {
  PeerRole role = PeerRole::kUnproven;  // no door was asked
  std::string_view key;
};
ProvenSender SenderOf(ZmqMessage* message);

}  // namespace parley

#endif  // PARLEY_PS_NET_ZMQ_CURVE_H_
