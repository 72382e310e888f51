// The unix sockets behind shared memory: how two processes of one machine and one user meet, and
// hand each other descriptors. No payload travels here.
//
// Names are abstract (unix(7)): they belong to the machine's network namespace and vanish with the
// process that listens. Messages keep their boundaries (SOCK_SEQPACKET). Nothing here blocks.
//
// Thread-safety: functions from any thread, also on one Fd; to assign to it is one thread's
// business.
#ifndef PARLEY_PS_NET_SHM_SOCKET_H_
#define PARLEY_PS_NET_SHM_SOCKET_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "ps/base/ids.h"

namespace parley::shm {

// An open descriptor, closed with this object.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd();
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }
  bool ok() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

// What all processes have in common that can meet here: a digest of the boot id and the network
// namespace, and the user, "8a54c1.0". Part of shm endpoints.
absl::StatusOr<std::string> ThisMachine();

absl::StatusOr<Fd> ListenAt(const std::string& name);
// kUnavailable: nobody listens there. kResourceExhausted: somebody does, with so many waiting that
// one has to come again.
absl::StatusOr<Fd> ConnectTo(const std::string& name);
// An Fd that is not ok(): nobody waits. kResourceExhausted: somebody does, but this process or
// system is out of descriptors or memory.
absl::StatusOr<Fd> Accept(const Fd& listener);

// kPermissionDenied: another user is at the other end.
absl::Status CheckSameUser(const Fd& socket);

// Of at most kMaxMessageBytes, with at most kMaxMessageFds descriptors.
inline constexpr size_t kMaxMessageBytes = 64;
inline constexpr size_t kMaxMessageFds = 2;
absl::Status SendMessage(const Fd& socket, std::string_view bytes, absl::Span<const int> fds);

struct Message {
  std::string bytes;
  std::vector<Fd> fds;
};
enum class Received { kMessage, kNothing, kEnd };
// kEnd: the peer has closed, or died, or said its last word (shutdown(2)). kInvalidArgument: a
// message that is too long, or has too many descriptors. kResourceExhausted: this process cannot
// have the descriptors that came; they are lost.
absl::StatusOr<Received> ReceiveMessage(const Fd& socket, Message* message);

// A connection begins with one of these each way, with the sender's segment and the eventfd that
// wakes it. All numbers little-endian.
struct Greeting {
  uint32_t protocol = 0;    // of the frames: kProtocolVersion
  uint32_t ring_bytes = 0;  // of the ring in the sender's segment
  NodeId node = kNoNode;    // the sender
  NodeId to = kNoNode;      // whom it means; kNoNode in the answer
};
std::string EncodeGreeting(const Greeting& greeting);
// kInvalidArgument, kFailedPrecondition (another version of this handshake) name what is wrong.
absl::StatusOr<Greeting> DecodeGreeting(std::string_view bytes);

// Goes with the descriptor of an arena, before the first reference into it.
enum class ArenaKind : uint32_t { kHost = 0, kDevice = 1 };
struct ArenaNotice {
  uint32_t arena = 0;  // its number: below 256 host memory, from there to 511 a GPU's
  uint64_t size = 0;
  ArenaKind kind = ArenaKind::kHost;
};
std::string EncodeArenaNotice(const ArenaNotice& notice);
absl::StatusOr<ArenaNotice> DecodeArenaNotice(std::string_view bytes);

// kInvalidArgument: a peer's descriptor is no eventfd, or writing to it could block.
absl::Status CheckEventFd(int fd);

}  // namespace parley::shm

#endif  // PARLEY_PS_NET_SHM_SOCKET_H_
