#include "ps/gpu/gpu_claim.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>

#include "absl/strings/str_format.h"

namespace parley {
namespace {

// 0, or why not: EADDRINUSE if somebody has the name.
int Bind(int fd, const std::string& name) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  // The first byte stays 0: the name is in no file system.
  const size_t length = std::min(name.size(), sizeof(address.sun_path) - 1);
  name.copy(address.sun_path + 1, length);
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + length);
  return bind(fd, reinterpret_cast<const sockaddr*>(&address), size) == 0 ? 0 : errno;
}

}  // namespace

GpuClaim::GpuClaim(absl::Span<const std::string> uuids) {
  constexpr int kMostOnOne = 256;
  fd_ = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd_ < 0) return;
  for (others_ = 0; others_ < kMostOnOne; ++others_) {
    for (index_ = 0; index_ < uuids.size(); ++index_) {
      const int error = Bind(fd_, absl::StrFormat("parley-gpu-%s-%d", uuids[index_], others_));
      if (error == 0) return;
      if (error == EADDRINUSE) continue;
      index_ = 0;  // no such sockets here
      others_ = 0;
      return;
    }
  }
  index_ = 0;
}

GpuClaim::~GpuClaim() {
  if (fd_ >= 0) close(fd_);
}

}  // namespace parley
