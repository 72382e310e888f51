#include "ps/net/zmq_gate.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <climits>

#include "absl/strings/str_format.h"

namespace parley {
namespace {

// The first descriptor that connections shall leave to others.
int ReservedFrom() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur > INT_MAX) return INT_MAX;
  return static_cast<int>(limit.rlim_cur / 4 * 3);
}

// Descriptors are given out lowest first: what the next connection would have.
int LowestFree(int any_fd) {
  const int fd = fcntl(any_fd, F_DUPFD_CLOEXEC, 0);
  if (fd < 0) return INT_MAX;
  close(fd);
  return fd;
}

}  // namespace

void ZmqGate::OnListening(int fd) {
  int domain = 0;
  socklen_t size = sizeof(domain);
  if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) != 0) return;
  if (domain == AF_INET || domain == AF_INET6) listening_.push_back(fd);
}

void ZmqGate::OnAccepted(int fd) {
  ++open_;
  past_fd_ = std::max(past_fd_, fd);
}

std::string ZmqGate::Settle() {
  if (listening_.empty()) return "";
  const int reserved = ReservedFrom();
  const bool came_high = past_fd_ >= reserved;
  past_fd_ = -1;
  short_of_files_ = came_high || (short_of_files_ && LowestFree(listening_[0]) >= reserved);
  const bool crowded = open_ >= max_connections_;
  const bool close_it = crowded || short_of_files_;
  if (close_it == closed_) return "";
  closed_ = close_it;
  Filter(closed_);
  if (!closed_) return "";
  const std::string why =
      crowded ? absl::StrFormat("allowed are %d (--max-connections)", max_connections_)
              : absl::StrFormat("files from %d on are kept for others (ulimit -n)", reserved);
  return absl::StrFormat(
      "%d connections are open, %s: nobody else is let in before one of them ends", open_, why);
}

void ZmqGate::Filter(bool drop) {
  // A program of one instruction for the kernel: of each packet keep nothing.
  sock_filter nothing[] = {BPF_STMT(BPF_RET | BPF_K, 0)};
  const sock_fprog program = {.len = 1, .filter = nothing};
  const int unused = 0;
  for (const int fd : listening_) {
    // A kernel that cannot leaves the socket open, as it was; the count goes on.
    if (drop) {
      setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program));
    } else {
      setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &unused, sizeof(unused));
    }
  }
}

}  // namespace parley
