// Keys: who a node is, and whom it lets in. A directory holds, for each role that runs on a
// machine, a secret (`server.key`, mode 0600) and, in `authorized/`, the public keys of everybody
// (`server-main.pub`), each with its role. What a key is good for goes by its role: CheckPeerRole
// in admission.h.
//
// Key pairs are Curve25519's, written in Z85 as libzmq does. Files are lines of a word and a value.
//
// Functions are thread-safe; they read and write files, so call them at start-up only.
#ifndef PARLEY_PS_NET_SECURITY_H_
#define PARLEY_PS_NET_SECURITY_H_

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ps/wire/frame.h"

namespace parley {

struct NodeKeys {
  PeerRole role = PeerRole::kUnproven;
  std::string public_key, secret_key;                     // 40 characters each
  absl::flat_hash_map<std::string, PeerRole> authorized;  // by public key

  // kUnproven: the key is nobody's.
  PeerRole RoleOf(std::string_view public_key) const;
  // The authorized key of `role`. kFailedPrecondition: there is none, or more than one.
  absl::StatusOr<std::string> TheKeyOf(PeerRole role) const;
};

// "scheduler", "server", "worker"; "unproven".
std::string_view RoleName(PeerRole role);
std::optional<PeerRole> ParseRole(std::string_view name);

// Writes a new key pair of `role` into `directory`, which is made if need be. `name` (letters,
// digits, '.', '-', '_') tells public keys of one role apart. kAlreadyExists: there is a key
// already; nothing is overwritten. kPermissionDenied: the directory is not guarded as LoadKeys
// wants.
absl::Status MakeKeys(const std::string& directory, PeerRole role, const std::string& name);

// The secret of `role` and all authorized keys of `directory`. kPermissionDenied: the secret can be
// read, or an authorized key, or what is in one of the two directories, be changed by others than
// this user and root. kInvalidArgument, kNotFound: which file, and what it should hold.
absl::StatusOr<NodeKeys> LoadKeys(const std::string& directory, PeerRole role);

// What a flag --keys asks for: nothing if it is empty, else LoadKeys into `keys`.
absl::Status UseKeys(const std::string& directory, PeerRole role,
                     std::shared_ptr<const NodeKeys>* keys);

}  // namespace parley

#endif  // PARLEY_PS_NET_SECURITY_H_
