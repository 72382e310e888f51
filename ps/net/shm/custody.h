// What this node has lent over connections that it has given up.
//
// A connection may break for reasons of this side - no more descriptors, no more memory - or
// because the peer lied, while the peer still reads what it was lent. Memory that is written again
// then would be torn under its eyes. So the Buffers, and this side of the socket, are kept until
// the peer's end of the socket says that it has let go (loans.h).
//
// Bounds, since a peer may never hang up: so many connections, and so many bytes over all of them.
// Past either, what is kept longest is let go.
//
// Thread-safety: none, everything on the loop.
#ifndef PARLEY_PS_NET_SHM_CUSTODY_H_
#define PARLEY_PS_NET_SHM_CUSTODY_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "ps/base/buffer.h"
#include "ps/base/ids.h"
#include "ps/net/shm/socket.h"

namespace parley::shm {

// Of one connection.
struct Kept {
  std::shared_ptr<Fd> socket;  // null: nothing is kept
  NodeId peer = kNoNode;
  std::vector<Buffer> buffers;
  size_t bytes = 0;
};

class Custody {
 public:
  static constexpr size_t kMaxConnections = 64;

  // `epoll` watches the sockets, and outlives this object.
  Custody(int epoll, size_t max_bytes) : epoll_(epoll), max_bytes_(max_bytes) {}

  // `connection` is higher than any before. Its socket is in the epoll, and leaves it in the end.
  void Keep(uint64_t connection, Kept kept);

  // Its socket has news; those not kept are ignored.
  void OnSocket(uint64_t connection);

  size_t BytesOf(NodeId peer) const;

 private:
  void LetGo(std::map<uint64_t, Kept>::iterator kept);

  const int epoll_;
  const size_t max_bytes_;
  std::map<uint64_t, Kept> kept_;  // by connection, and so by age
  size_t bytes_ = 0;
};

}  // namespace parley::shm

#endif  // PARLEY_PS_NET_SHM_CUSTODY_H_
