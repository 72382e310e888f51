// ZmqGate: how many connections a listening node has, and no more of them than it may.
//
// libzmq accepts whoever comes, on a thread of its own, and tells of it afterwards. So the gate
// counts what it is told, and while there are enough it has the kernel drop whatever arrives for
// the listening tcp sockets themselves: who connects then gets no answer, tries again by TCP's own
// timers, and is in when there is room. Connections that stand are no business of those sockets.
// What libzmq accepts before the gate has heard of the connection that was one too many comes on
// top: what arrives in one turn of the loop.
//
// Descriptors run out for the whole process, whose checkpoints need some as well: a connection
// whose descriptor is past three quarters of the limit (`ulimit -n`) is one too many, too. Unix
// sockets are counted and never closed: who can open them is of this user, or was let in by it.
//
// Thread-safety: none, of one loop.
#ifndef PARLEY_PS_NET_ZMQ_GATE_H_
#define PARLEY_PS_NET_ZMQ_GATE_H_

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace parley {

class ZmqGate {
 public:
  explicit ZmqGate(int max_connections) : max_connections_(max_connections) {}

  // What libzmq tells: a socket listens, a connection came by, or one went. The descriptors are
  // borrowed; those that listen have to live as long as the gate is asked to Settle.
  void OnListening(int fd);
  void OnAccepted(int fd);
  void OnEnded() { --open_; }

  // Opens or closes after what was told. Returns a line for the log if it closed, else nothing.
  std::string Settle();
  // Closed for want of descriptors, which others may have given back: Settle again soon.
  bool must_look_again() const { return closed_ && short_of_files_; }
  bool closed() const { return closed_; }

 private:
  void Filter(bool drop);

  const int max_connections_;
  std::vector<int> listening_;
  int open_ = 0;
  bool closed_ = false;
  bool short_of_files_ = false;
  int past_fd_ = -1;  // the highest descriptor of those that came since the last Settle
};

}  // namespace parley

#endif  // PARLEY_PS_NET_ZMQ_GATE_H_
