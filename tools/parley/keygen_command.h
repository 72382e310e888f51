// Keys for a run on this machine, and the roles in a list. The commands are in commands.h.
#ifndef PARLEY_TOOLS_PARLEY_KEYGEN_COMMAND_H_
#define PARLEY_TOOLS_PARLEY_KEYGEN_COMMAND_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ps/wire/frame.h"

namespace parley {

// "scheduler,server": kInvalidArgument says what is allowed.
absl::StatusOr<std::vector<PeerRole>> ParseRoles(const std::string& list);

// A key pair of every role in `directory`, for a cluster that shares it. kAlreadyExists: there are
// some.
absl::Status MakeClusterKeys(const std::string& directory);

}  // namespace parley

#endif  // PARLEY_TOOLS_PARLEY_KEYGEN_COMMAND_H_
