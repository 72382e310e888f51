#include <linux/futex.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <new>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "benchmarks/limits/limits.h"
#include "benchmarks/limits/stopwatch.h"
#include "benchmarks/limits/two_processes.h"

namespace parley {
namespace {

// Two words that two processes take turns at, each on a line of its own.
struct Court {
  alignas(64) std::atomic<uint32_t> ping{0};
  alignas(64) std::atomic<uint32_t> pong{0};
};
constexpr uint32_t kOver = ~uint32_t{0};

uint32_t* WordOf(std::atomic<uint32_t>& word) { return reinterpret_cast<uint32_t*>(&word); }

void Hit(std::atomic<uint32_t>& word, uint32_t value) {
  word.store(value, std::memory_order_release);
  syscall(SYS_futex, WordOf(word), FUTEX_WAKE, 1, nullptr, nullptr, 0);
}

// Sleeps until the word is no longer `old`; returns what it is then.
uint32_t Await(std::atomic<uint32_t>& word, uint32_t old) {
  for (;;) {
    const uint32_t value = word.load(std::memory_order_acquire);
    if (value != old) return value;
    syscall(SYS_futex, WordOf(word), FUTEX_WAIT, old, nullptr, nullptr, 0);
  }
}

absl::Status ServePong(Court& court) {
  for (uint32_t seen = 0; (seen = Await(court.ping, seen)) != kOver;) Hit(court.pong, seen);
  return absl::OkStatus();
}

double MedianTrip(Court& court, uint32_t* number, double seconds) {
  std::vector<double> trips;
  const Stopwatch round;
  while (round.Seconds() < seconds) {
    const Stopwatch trip;
    const uint32_t before = *number;
    Hit(court.ping, ++*number);
    Await(court.pong, before);
    trips.push_back(trip.Seconds() * 1e6);
  }
  std::nth_element(trips.begin(), trips.begin() + trips.size() / 2, trips.end());
  return trips[trips.size() / 2];
}

class Socket {
 public:
  explicit Socket(int fd) : fd_(fd) {}
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int fd() const { return fd_; }

 private:
  const int fd_;
};

absl::Status SystemError(const char* call) { return absl::ErrnoToStatus(errno, call); }

sockaddr_in Loopback(uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

// Takes all that comes; a byte back for each round, when `expected` has come.
absl::Status ServeTcp(Announce announce, size_t bytes) {
  const Socket listener(socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address = Loopback(0);
  socklen_t size = sizeof(address);
  if (listener.fd() < 0 || bind(listener.fd(), reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      listen(listener.fd(), 1) != 0 ||
      getsockname(listener.fd(), reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    return SystemError("listening on loopback");
  }
  announce(absl::StrCat(ntohs(address.sin_port)));
  const Socket peer(accept(listener.fd(), nullptr, nullptr));
  if (peer.fd() < 0) return SystemError("accept");
  // Reads of a quarter mebibyte into memory that stays in cache are the fastest there are.
  std::vector<char> buffer(size_t{256} << 10);
  uint64_t in_message = 0;
  for (;;) {
    const ssize_t got = recv(peer.fd(), buffer.data(), buffer.size(), 0);
    if (got < 0) return SystemError("recv");
    if (got == 0) return absl::OkStatus();
    in_message += static_cast<uint64_t>(got);
    for (; in_message >= bytes; in_message -= bytes) {
      if (send(peer.fd(), "", 1, MSG_NOSIGNAL) != 1) return SystemError("send");
    }
  }
}

absl::Status SendAll(int fd, const std::vector<char>& message) {
  for (size_t sent = 0; sent < message.size();) {
    const ssize_t n = send(fd, message.data() + sent, message.size() - sent, MSG_NOSIGNAL);
    if (n < 0) return SystemError("send");
    sent += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Series> MeasureFutexPingPong(const std::string& name, LimitOptions options) {
  void* memory =
      mmap(nullptr, sizeof(Court), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return SystemError("mmap");
  auto* court = new (memory) Court;
  Series series{name, "us", {}};
  const absl::Status status = WithSecondProcess(
      [&](Announce announce) {
        announce("ready");
        return ServePong(*court);
      },
      [&](const std::string&) {
        uint32_t number = 0;
        for (uint32_t round = 0; round < options.rounds; ++round) {
          series.values.push_back(MedianTrip(*court, &number, options.seconds));
        }
        Hit(court->ping, kOver);
        return absl::OkStatus();
      });
  munmap(memory, sizeof(Court));
  if (!status.ok()) return status;
  return series;
}

absl::StatusOr<Series> MeasureTcpStream(const std::string& name, size_t bytes,
                                        LimitOptions options) {
  Series series{name, "GB/s", {}};
  const absl::Status status = WithSecondProcess(
      [&](Announce announce) { return ServeTcp(announce, bytes); },
      [&](const std::string& line) -> absl::Status {
        uint32_t port = 0;
        if (!absl::SimpleAtoi(line, &port)) return absl::InternalError("no port was announced");
        const Socket peer(socket(AF_INET, SOCK_STREAM, 0));
        const sockaddr_in address = Loopback(static_cast<uint16_t>(port));
        if (connect(peer.fd(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
          return SystemError("connect");
        }
        const std::vector<char> message(bytes, 'x');
        std::vector<char> answers(4096);
        for (uint32_t round = 0; round < options.rounds; ++round) {
          const Stopwatch watch;
          uint64_t sent = 0, arrived = 0;
          // What is on its way is bounded by the kernel's buffers; answers are taken as they come.
          while (watch.Seconds() < options.seconds || arrived < sent) {
            const bool over = watch.Seconds() >= options.seconds;
            if (!over) {
              if (absl::Status s = SendAll(peer.fd(), message); !s.ok()) return s;
              ++sent;
            }
            const ssize_t got =
                recv(peer.fd(), answers.data(), answers.size(), over ? 0 : MSG_DONTWAIT);
            if (got > 0) arrived += static_cast<uint64_t>(got);
            if (got == 0) return absl::InternalError("the receiver closed the connection");
          }
          series.values.push_back(static_cast<double>(sent * bytes) / watch.Seconds() * 1e-9);
        }
        return absl::OkStatus();
      });
  if (!status.ok()) return status;
  return series;
}

}  // namespace parley
