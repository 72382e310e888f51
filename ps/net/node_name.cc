#include "ps/net/node_name.h"

#include <unistd.h>

#include "absl/strings/str_cat.h"

namespace parley {

std::string HostAndPid() {
  char host[256] = "";
  if (gethostname(host, sizeof(host) - 1) != 0 || host[0] == 0) return absl::StrCat("?:", getpid());
  return absl::StrCat(host, ":", getpid());
}

}  // namespace parley
