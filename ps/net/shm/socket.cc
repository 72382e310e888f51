#include "ps/net/shm/socket.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "absl/strings/str_format.h"

namespace parley::shm {
namespace {

constexpr uint32_t kGreetingMagic = 0x4d485350;  // "PSHM"
constexpr uint32_t kArenaMagic = 0x4e455241;     // "AREN"
constexpr uint32_t kVersion = 2;                 // of the handshake, the segment and the ring
constexpr size_t kGreetingBytes = 32, kArenaNoticeBytes = 20;
constexpr int kBacklog = 128;

constexpr char kNamePrefix[] = "parley/";

struct Address {
  sockaddr_un un{};
  socklen_t size = 0;
};

Address AbstractAddress(const std::string& name) {
  Address address;
  address.un.sun_family = AF_UNIX;
  // The zero byte in front makes it abstract; the name ends with the length, not with a zero.
  const std::string path = std::string(1, '\0') + kNamePrefix + name;
  const size_t bytes = std::min(path.size(), sizeof(address.un.sun_path));
  std::memcpy(address.un.sun_path, path.data(), bytes);
  address.size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + bytes);
  return address;
}

absl::StatusOr<Fd> OpenSocket() {
  Fd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.ok()) return absl::ErrnoToStatus(errno, "shared memory: socket");
  return fd;
}

// FNV-1a (Fowler, Noll, Vo): names a machine, proves nothing.
uint64_t Digest(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : text) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  return hash;
}

template <typename T>
void Put(T value, std::string* out) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

template <typename T>
T Get(std::string_view bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof(value));
  return value;
}

}  // namespace

Fd::~Fd() {
  if (fd_ >= 0) close(fd_);
}

absl::StatusOr<std::string> ThisMachine() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string boot;
  if (!std::getline(file, boot) || boot.empty()) {
    return absl::UnavailableError("shared memory: the boot id cannot be read");
  }
  // Abstract names are a network namespace's own; so containers of one machine do not meet.
  struct stat space;
  if (stat("/proc/self/ns/net", &space) != 0) {
    return absl::ErrnoToStatus(errno, "shared memory: /proc/self/ns/net");
  }
  const std::string place = absl::StrFormat("%s %d %d", boot, space.st_dev, space.st_ino);
  return absl::StrFormat("%016x.%d", Digest(place), geteuid());
}

absl::StatusOr<Fd> ListenAt(const std::string& name) {
  absl::StatusOr<Fd> fd = OpenSocket();
  if (!fd.ok()) return fd;
  const Address address = AbstractAddress(name);
  if (bind(fd->get(), reinterpret_cast<const sockaddr*>(&address.un), address.size) != 0) {
    if (errno != EADDRINUSE) return absl::ErrnoToStatus(errno, "shared memory: bind");
    return absl::AlreadyExistsError(
        absl::StrFormat("shared memory: the name %s is in use on this machine", name));
  }
  if (listen(fd->get(), kBacklog) != 0) return absl::ErrnoToStatus(errno, "shared memory: listen");
  return fd;
}

absl::StatusOr<Fd> ConnectTo(const std::string& name) {
  absl::StatusOr<Fd> fd = OpenSocket();
  if (!fd.ok()) return fd;
  const Address address = AbstractAddress(name);
  if (connect(fd->get(), reinterpret_cast<const sockaddr*>(&address.un), address.size) != 0) {
    if (errno == EAGAIN) {
      return absl::ResourceExhaustedError(absl::StrFormat("too many wait at %s", name));
    }
    return absl::UnavailableError(
        absl::StrFormat("nobody listens at %s (%s)", name, std::strerror(errno)));
  }
  return fd;
}

absl::StatusOr<Fd> Accept(const Fd& listener) {
  Fd fd(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (fd.ok() || errno == EAGAIN || errno == ECONNABORTED || errno == EINTR) return fd;
  return absl::ResourceExhaustedError(
      absl::StrFormat("shared memory: accept (%s)", std::strerror(errno)));
}

absl::Status CheckSameUser(const Fd& socket) {
  ucred peer{};
  socklen_t size = sizeof(peer);
  if (getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return absl::ErrnoToStatus(errno, "shared memory: SO_PEERCRED");
  }
  if (peer.uid == geteuid()) return absl::OkStatus();
  return absl::PermissionDeniedError(
      absl::StrFormat("the peer runs as user %d, allowed is %d", peer.uid, geteuid()));
}

absl::Status SendMessage(const Fd& socket, std::string_view bytes, absl::Span<const int> fds) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxMessageFds * sizeof(int))> control{};
  iovec vec{const_cast<char*>(bytes.data()), bytes.size()};
  msghdr header{};
  header.msg_iov = &vec;
  header.msg_iovlen = 1;
  if (!fds.empty()) {
    header.msg_control = control.data();
    header.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
    cmsghdr* const rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    std::memcpy(CMSG_DATA(rights), fds.data(), fds.size() * sizeof(int));
  }
  while (sendmsg(socket.get(), &header, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
    if (errno != EINTR) return absl::ErrnoToStatus(errno, "shared memory: sendmsg");
  }
  return absl::OkStatus();
}

absl::StatusOr<Received> ReceiveMessage(const Fd& socket, Message* message) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxMessageFds * sizeof(int))> control{};
  std::array<char, kMaxMessageBytes> bytes;
  iovec vec{bytes.data(), bytes.size()};
  msghdr header{};
  header.msg_iov = &vec;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  ssize_t got = 0;
  do {
    got = recvmsg(socket.get(), &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got < 0 && errno == EAGAIN) return Received::kNothing;
  if (got < 0 && errno == ECONNRESET) return Received::kEnd;  // it left without hearing us out
  if (got < 0) return absl::ErrnoToStatus(errno, "shared memory: recvmsg");
  message->fds.clear();
  for (cmsghdr* part = CMSG_FIRSTHDR(&header); part != nullptr; part = CMSG_NXTHDR(&header, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(fd));
      message->fds.emplace_back(fd);  // ours to close, whatever the message is
    }
  }
  if (got == 0) return Received::kEnd;
  if ((header.msg_flags & MSG_CTRUNC) != 0 && message->fds.size() < kMaxMessageFds) {
    return absl::ResourceExhaustedError(
        "shared memory: out of descriptors for those that came (RLIMIT_NOFILE)");
  }
  if ((header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
    return absl::InvalidArgumentError("shared memory: a message too long, or with too many files");
  }
  message->bytes.assign(bytes.data(), static_cast<size_t>(got));
  return Received::kMessage;
}

std::string EncodeGreeting(const Greeting& greeting) {
  std::string bytes;
  Put(kGreetingMagic, &bytes);
  Put(kVersion, &bytes);
  Put(greeting.protocol, &bytes);
  Put(greeting.ring_bytes, &bytes);
  Put(Value(greeting.node), &bytes);
  Put(Value(greeting.to), &bytes);
  return bytes;
}

absl::StatusOr<Greeting> DecodeGreeting(std::string_view bytes) {
  if (bytes.size() != kGreetingBytes || Get<uint32_t>(bytes, 0) != kGreetingMagic) {
    return absl::InvalidArgumentError("what should be a greeting is none");
  }
  if (Get<uint32_t>(bytes, 4) != kVersion) {
    return absl::FailedPreconditionError(
        absl::StrFormat("the peer speaks version %d of the shared memory handshake, this node %d",
                        Get<uint32_t>(bytes, 4), kVersion));
  }
  return Greeting{Get<uint32_t>(bytes, 8), Get<uint32_t>(bytes, 12),
                  NodeId{Get<uint64_t>(bytes, 16)}, NodeId{Get<uint64_t>(bytes, 24)}};
}

std::string EncodeArenaNotice(const ArenaNotice& notice) {
  std::string bytes;
  Put(kArenaMagic, &bytes);
  Put(notice.arena, &bytes);
  Put(notice.size, &bytes);
  Put(static_cast<uint32_t>(notice.kind), &bytes);
  return bytes;
}

absl::StatusOr<ArenaNotice> DecodeArenaNotice(std::string_view bytes) {
  if (bytes.size() != kArenaNoticeBytes || Get<uint32_t>(bytes, 0) != kArenaMagic) {
    return absl::InvalidArgumentError("what should announce an arena does not");
  }
  const auto kind = Get<uint32_t>(bytes, 16);
  if (kind > static_cast<uint32_t>(ArenaKind::kDevice)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("an arena's kind is %d, allowed is 0..1", kind));
  }
  return ArenaNotice{Get<uint32_t>(bytes, 4), Get<uint64_t>(bytes, 8), ArenaKind{kind}};
}

absl::Status CheckEventFd(int fd) {
  // There is no better way to ask; the kernel has named them so since it has them.
  std::array<char, 64> target{};
  const std::string path = absl::StrFormat("/proc/self/fd/%d", fd);
  const ssize_t size = readlink(path.c_str(), target.data(), target.size());
  const std::string_view name(target.data(), size > 0 ? static_cast<size_t>(size) : 0);
  if (name != "anon_inode:[eventfd]") {
    return absl::InvalidArgumentError(
        absl::StrFormat("the peer's wake-up is %s, allowed is an eventfd", std::string(name)));
  }
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || (flags & O_NONBLOCK) == 0) {
    return absl::InvalidArgumentError("the peer's wake-up may block");
  }
  return absl::OkStatus();
}

}  // namespace parley::shm
