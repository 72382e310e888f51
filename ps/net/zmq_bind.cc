#include "ps/net/zmq_bind.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"

namespace parley {
namespace {

// The error for people; `doing` is "cannot listen on tcp://...".
absl::Status BindError(int error, const BindTarget& target) {
  const Endpoint& at = target.endpoint;
  const std::string doing = absl::StrFormat("cannot listen on %s", FormatEndpoint(at));
  const bool tcp = at.scheme == Endpoint::Scheme::kTcp;
  std::string advice;
  switch (error) {
    case EADDRINUSE:
      advice = tcp ? absl::StrFormat(
                         "port %d on %s is in use; choose another with --bind, or port "
                         "0 for any free one",
                         at.port, at.host)
                   : absl::StrFormat("%s is in use; choose another path with --bind", at.path);
      return absl::AlreadyExistsError(absl::StrFormat("%s: %s", doing, advice));
    case EADDRNOTAVAIL:
    case ENODEV:
      advice = absl::StrFormat("%s is no address of this machine; interfaces here: %s", at.host,
                               target.interfaces);
      return absl::NotFoundError(absl::StrFormat("%s: %s", doing, advice));
    case EACCES:
    case EPERM:
      advice = tcp ? absl::StrFormat(
                         "port %d is reserved for the administrator; choose one from "
                         "1024 up with --bind, or port 0 for any free one",
                         at.port)
                   : "no permission to make a socket there; choose a directory of your own";
      return absl::PermissionDeniedError(absl::StrFormat("%s: %s", doing, advice));
    case ENOENT:
    case ENOTDIR:
      advice = "there is no such directory; make it first, or choose another path with --bind";
      return absl::NotFoundError(absl::StrFormat("%s: %s", doing, advice));
    default:
      return ZmqError(error, doing);
  }
}

// 0 if the path is free or a dead process left it, else the errno that bind should have given.
int ProbeIpcPath(const std::string& path) {
  struct stat status;
  if (lstat(path.c_str(), &status) != 0) return 0;  // bind finds the rest
  if (!S_ISSOCK(status.st_mode)) return EEXIST;     // ZeroMQ would delete this file
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) return ENAMETOOLONG;
  std::memcpy(address.sun_path, path.data(), path.size());
  // Without blocking: a living process with a full backlog must not hold us up.
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return errno;
  const int rc = connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address));
  const int error = rc == 0 ? 0 : errno;
  close(fd);
  switch (error) {
    case ECONNREFUSED:  // nobody listens any more
    case ENOENT:
      return 0;
    case EACCES:
    case EPERM:
      return error;
    default:  // connected, or somebody too busy to accept
      return EADDRINUSE;
  }
}

}  // namespace

absl::StatusOr<BindTarget> ResolveBind(const std::string& bind) {
  absl::StatusOr<Endpoint> endpoint = ParseEndpoint(bind);
  if (!endpoint.ok()) return endpoint.status();
  if (endpoint->scheme == Endpoint::Scheme::kShm) {
    return absl::InvalidArgumentError(
        absl::StrFormat("cannot listen on %s: it is of shared memory, allowed here are tcp:// and "
                        "ipc://",
                        bind));
  }
  endpoint->key.clear();  // as it was told to others
  BindTarget target{.endpoint = *std::move(endpoint), .advertised_host = "", .interfaces = ""};
  if (target.endpoint.scheme == Endpoint::Scheme::kIpc) return target;
  absl::StatusOr<std::vector<LocalAddress>> local = LocalAddresses();
  if (!local.ok()) return local.status();
  target.interfaces = DescribeAddresses(*local);
  absl::StatusOr<std::string> host = ResolveBindHost(target.endpoint.host, *local);
  if (!host.ok()) {
    return absl::Status(host.status().code(),
                        absl::StrFormat("cannot listen on %s: %s", bind, host.status().message()));
  }
  target.endpoint.host = *std::move(host);
  target.advertised_host = IsWildcard(target.endpoint.host)
                               ? AdvertisedHost(target.endpoint.host, *local)
                               : target.endpoint.host;
  target.exposed = !IsLoopback(target.endpoint.host);
  target.local = IsWildcard(target.endpoint.host) ||
                 std::any_of(local->begin(), local->end(), [&](const LocalAddress& address) {
                   return address.address == target.endpoint.host;
                 });
  return target;
}

absl::StatusOr<std::string> Bind(ZmqSocket* socket, const BindTarget& target) {
  const bool ipc = target.endpoint.scheme == Endpoint::Scheme::kIpc;
  if (ipc) {
    const int error = ProbeIpcPath(target.endpoint.path);
    if (error == EEXIST) {
      return absl::AlreadyExistsError(absl::StrFormat(
          "cannot listen on %s: a file that is no socket is there; remove it, or choose another "
          "path with --bind",
          FormatEndpoint(target.endpoint)));
    }
    if (error != 0) return BindError(error, target);
  }
  if (zmq_bind(socket->handle(), FormatEndpoint(target.endpoint).c_str()) != 0) {
    return BindError(zmq_errno(), target);
  }
  if (ipc) return FormatEndpoint(target.endpoint);
  absl::StatusOr<Endpoint> bound = ParseEndpoint(socket->last_endpoint());
  if (!bound.ok()) return bound.status();
  bound->host = target.advertised_host;
  return FormatEndpoint(*bound);
}

absl::Status ExposureError(const BindTarget& target) {
  return absl::FailedPreconditionError(absl::StrFormat(
      "cannot listen on %s: other machines may reach it, and without keys whoever does can join, "
      "read and disturb the job; give --keys DIR (made by parley keygen), or, where the network "
      "is trusted, --insecure",
      FormatEndpoint(target.endpoint)));
}

void RemoveSocketFile(const std::string& endpoint) {
  const absl::StatusOr<Endpoint> at = ParseEndpoint(endpoint);
  if (at.ok() && at->scheme == Endpoint::Scheme::kIpc) unlink(at->path.c_str());
}

}  // namespace parley
