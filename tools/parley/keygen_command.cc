#include "tools/parley/keygen_command.h"

#include <cstdio>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "ps/net/security.h"
#include "tools/parley/commands.h"

namespace parley {
namespace {

constexpr char kAllRoles[] = "scheduler,server,worker";
constexpr char kName[] = "main";

}  // namespace

absl::StatusOr<std::vector<PeerRole>> ParseRoles(const std::string& list) {
  std::vector<PeerRole> roles;
  for (const std::string& name : std::vector<std::string>(absl::StrSplit(list, ','))) {
    const std::optional<PeerRole> role = ParseRole(name);
    if (!role) {
      return absl::InvalidArgumentError(absl::StrCat("keygen: --roles ", list, ": '", name,
                                                     "' is no role; allowed: ", kAllRoles,
                                                     ", or some of them with commas between"));
    }
    roles.push_back(*role);
  }
  return roles;
}

absl::Status MakeClusterKeys(const std::string& directory) {
  for (PeerRole role : {PeerRole::kScheduler, PeerRole::kServer, PeerRole::kWorker}) {
    if (absl::Status status = MakeKeys(directory, role, kName); !status.ok()) return status;
  }
  return absl::OkStatus();
}

int KeygenCommand(const CommandArgs& args) {
  std::string directory, roles = kAllRoles, name = kName;
  FlagSet flags("parley keygen",
                "Makes key pairs for --keys: with them every tcp connection is encrypted, and only "
                "who has a key in DIR/authorized is let in.");
  flags
      .Required("out", &directory, "DIR",
                "where to: secrets as ROLE.key, public keys below "
                "authorized/; made if need be")
      .Text("roles", &roles, "ROLES", "a pair for each: scheduler, server, worker")
      .Text("name", &name, "NAME", "tells public keys of one role apart");
  if (std::optional<int> over = ParseFlags(&flags, args)) return *over;
  absl::StatusOr<std::vector<PeerRole>> wanted = ParseRoles(roles);
  if (!wanted.ok()) return Complain(wanted.status(), kExitUsage);
  for (PeerRole role : *wanted) {
    absl::Status status = MakeKeys(directory, role, name);
    if (!status.ok()) {
      const bool usage = absl::IsInvalidArgument(status) || absl::IsAlreadyExists(status) ||
                         absl::IsPermissionDenied(status);
      return Complain(status, usage ? kExitUsage : kExitFailure);
    }
    const std::string text(RoleName(role));
    absl::PrintF("%s/%s.key and %s/authorized/%s-%s.pub\n", directory, text, directory, text, name);
  }
  return kExitOk;
}

}  // namespace parley
