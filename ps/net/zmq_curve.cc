#include "ps/net/zmq_curve.h"

#include <unistd.h>

#include <array>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace parley {
namespace {

constexpr char kDoor[] = "inproc://zeromq.zap.01";
constexpr std::string_view kDomain = "parley";
constexpr size_t kKeyBytes = 32;

// The parts of a question.
enum Part { kVersion, kRequest, kDomainName, kAddress, kIdentity, kMechanism, kCredential, kParts };

absl::Status SetKey(ZmqSocket* socket, int option, const std::string& text) {
  std::array<uint8_t, kKeyBytes> bytes{};
  if (text.size() != 40 || zmq_z85_decode(bytes.data(), text.c_str()) == nullptr) {
    return absl::InvalidArgumentError("a key is no Z85 of 40 characters");
  }
  return socket->SetBytes(option, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

absl::Status SetPair(ZmqSocket* socket, const NodeKeys& keys) {
  absl::Status status = SetKey(socket, ZMQ_CURVE_PUBLICKEY, keys.public_key);
  return status.ok() ? SetKey(socket, ZMQ_CURVE_SECRETKEY, keys.secret_key) : status;
}

std::string KeyText(const std::string& bytes) {
  std::array<char, 41> text{};
  if (bytes.size() != kKeyBytes ||
      zmq_z85_encode(text.data(), reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()) ==
          nullptr) {
    return "";
  }
  return text.data();
}

}  // namespace

absl::StatusOr<ZmqSocket> OpenDoor(const ZmqContext& context) {
  absl::StatusOr<ZmqSocket> door = ZmqSocket::Open(context, ZMQ_REP);
  if (!door.ok()) return door.status();
  absl::Status status = door->SetInt(ZMQ_LINGER, 0);
  if (!status.ok()) return status;
  if (zmq_bind(door->handle(), kDoor) != 0) {
    return ZmqError(zmq_errno(), "transport: cannot answer for keys");
  }
  return door;
}

bool AnswerDoor(ZmqSocket* door, const NodeKeys& keys,
                absl::FunctionRef<void(std::string_view why)> refused) {
  std::vector<std::string> parts;
  for (bool more = true; more;) {
    ZmqMessage part;
    if (!door->Receive(&part)) return false;  // only before the first: questions arrive whole
    more = part.more();
    parts.emplace_back(part.view());
  }
  PeerRole role = PeerRole::kUnproven;
  if (parts.size() == kParts && parts[kMechanism] == "CURVE" && parts[kDomainName] == kDomain) {
    role = keys.RoleOf(KeyText(parts[kCredential]));
    if (role == PeerRole::kUnproven) {
      refused(absl::StrFormat("%s has the key %s, which is nobody's in authorized/",
                              parts[kAddress], KeyText(parts[kCredential])));
    }
  } else {
    refused("a connection that proves no key");
  }
  const bool known = role != PeerRole::kUnproven;
  parts.resize(kParts);
  // Who it is goes with every message of the connection.
  const std::string user =
      known ? std::string(RoleName(role)) + " " + KeyText(parts[kCredential]) : "";
  const std::array<std::string_view, 6> answer = {
      "1.0", parts[kRequest], known ? "200" : "400", known ? "OK" : "unknown key", user, ""};
  for (size_t i = 0; i < answer.size(); ++i) {
    // An answer that cannot be given is a connection that is not let in.
    if (door->SendCopy(answer[i], i + 1 < answer.size() ? ZMQ_SNDMORE : 0) != 0) break;
  }
  return true;
}

absl::Status AdmitOnlyThisUser(ZmqSocket* socket) {
  const uid_t user = getuid();
  return socket->SetBytes(ZMQ_IPC_FILTER_UID, {reinterpret_cast<const char*>(&user), sizeof(user)});
}

absl::Status ListenWithCurve(ZmqSocket* socket, const NodeKeys& keys) {
  absl::Status status = socket->SetInt(ZMQ_CURVE_SERVER, 1);
  if (status.ok()) status = SetPair(socket, keys);
  return status.ok() ? socket->SetBytes(ZMQ_ZAP_DOMAIN, kDomain) : status;
}

absl::StatusOr<std::string> ExpectedKey(const NodeKeys* keys, NodeId peer, const Endpoint& at) {
  if (keys == nullptr) {
    if (at.key.empty()) return "";
    return absl::FailedPreconditionError(absl::StrFormat(
        "node %s at %s speaks to those with a key alone, and this node has none: give it --keys",
        ToString(peer), FormatEndpoint(at)));
  }
  const PeerRole role = peer == kSchedulerNode ? PeerRole::kScheduler : PeerRole::kServer;
  if (at.key.empty() && role == PeerRole::kScheduler) return keys->TheKeyOf(role);
  if (at.key.empty()) {
    return absl::FailedPreconditionError(
        absl::StrFormat("node %s at %s has no key, and this node speaks to those with a key alone: "
                        "give it --keys, too",
                        ToString(peer), FormatEndpoint(at)));
  }
  if (keys->RoleOf(at.key) == role) return at.key;
  return absl::FailedPreconditionError(absl::StrFormat(
      "node %s at %s: its key is no %s's in authorized/; allowed: one of those that are there",
      ToString(peer), FormatEndpoint(at), std::string(RoleName(role))));
}

absl::Status ConnectWithCurve(ZmqSocket* socket, const NodeKeys& keys,
                              const std::string& server_key) {
  absl::Status status = SetPair(socket, keys);
  return status.ok() ? SetKey(socket, ZMQ_CURVE_SERVERKEY, server_key) : status;
}

ProvenSender SenderOf(ZmqMessage* message) {
  const char* user = zmq_msg_gets(message->get(), "User-Id");
  if (user == nullptr) return {};
  const std::string_view text = user;
  const size_t space = text.find(' ');
  const std::optional<PeerRole> role = ParseRole(text.substr(0, space));
  if (!role.has_value() || space == text.npos) return {};
  return {.role = *role, .key = text.substr(space + 1)};
}

}  // namespace parley
