// What do the transports cost on top of what they stand on?
//
// One way over tcp loopback, messages of 64 KiB and 1 MiB, and the round trip of 64 bytes, each for
// ZmqTransport on two event loops and for a DEALER and a ROUTER driven by two plain threads with
// the same zero-copy messages and the same number of them under way. The two take turns and the
// best of three counts, since the machine's noise only adds. "ratio" is ZmqTransport's to libzmq's:
// above 1 is better for throughput, below 1 for the round trip.
//
// ShmTransport likewise, between two loops: one way with the receiver copying the bytes out,
// against the same std::memcpy by one thread; the round trip of 64 bytes and of 4 KiB, asleep and
// spinning, against a ping-pong of two threads over futexes. Prints one JSON object; about ten
// seconds.
//
// --keys: tcp with encryption beside tcp without, and nothing else.
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <zmq.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "benchmarks/raw_zmq_pair.h"
#include "ps/base/shared_arenas.h"
#include "ps/net/shm/shm_transport.h"
#include "ps/net/zmq_transport.h"

namespace parley {
namespace {

constexpr int kRounds = 3;
constexpr double kSecondsPerRound = 0.25;
constexpr size_t kPingBytes = 64;
constexpr NodeId kClient{2}, kServer{3};

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The same bytes under way for every size, few enough to be fair to caches and large enough to
// keep both sides busy.
int Window(size_t bytes) {
  return static_cast<int>(std::max<size_t>(8, (size_t{16} << 20) / bytes));
}

struct RoundTrip {
  double p50_us = 1e9, p99_us = 1e9;
  void TakeBest(std::vector<double> seconds) {
    std::sort(seconds.begin(), seconds.end());
    p50_us = std::min(p50_us, seconds[seconds.size() / 2] * 1e6);
    p99_us = std::min(p99_us, seconds[seconds.size() * 99 / 100] * 1e6);
  }
};

void Must(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "transport_bench: %s\n", status.ToString().c_str());
  std::exit(1);
}

// A client that connects to a server, each with a loop and a thread.
class Pair {
 public:
  // Over tcp, or with arenas through shared memory.
  explicit Pair(absl::Duration spin, std::shared_ptr<SharedArenas> arenas = nullptr,
                std::shared_ptr<const NodeKeys> keys = nullptr)
      : client_env_({.offload_threads = 0, .spin = spin}),
        server_env_({.offload_threads = 0, .spin = spin}) {
    if (arenas == nullptr) {
      // The windows below are the limit, not the queues.
      server_ = Take(ZmqTransport::Create(
          &server_env_,
          {.self = kServer, .bind = "tcp://127.0.0.1:0", .queue_frames = 10000, .keys = keys}));
      client_ = Take(ZmqTransport::Create(
          &client_env_, {.self = kClient, .queue_frames = 10000, .keys = std::move(keys)}));
    } else {
      server_ = Take(ShmTransport::Create(
          &server_env_, {.self = kServer, .bind = "shm://", .queue_frames = 10000}));
      client_ = Take(ShmTransport::Create(
          &client_env_, {.self = kClient, .queue_frames = 10000, .arenas = std::move(arenas)}));
    }
    Must(client_->Connect(kServer, server_->endpoint()));
  }

  // `on_client` runs on the client's loop first, and ends the measurement by Stop.
  void Run(std::function<void()> on_client) {
    std::thread thread([this] { server_env_.Run(); });
    client_env_.Post([&] { on_client(); });
    client_env_.Run();
    server_env_.Stop();
    thread.join();
  }
  void Stop() { client_env_.Stop(); }
  Transport* client() { return client_.get(); }
  Transport* server() { return server_.get(); }

 private:
  template <typename T>
  static std::unique_ptr<Transport> Take(absl::StatusOr<std::unique_ptr<T>> transport) {
    Must(transport.status());
    return *std::move(transport);
  }

  LoopEnv client_env_, server_env_;
  std::unique_ptr<Transport> server_, client_;
};

Frame MakeFrame(uint64_t number, const Buffer& payload) {
  Frame frame;
  frame.header.set_kind(pb::PUSH);
  frame.header.set_job(1);
  frame.header.set_tick(number);
  frame.header.set_request_id(number);
  if (payload.empty()) return frame;
  pb::Part* part = frame.header.add_part();
  part->set_count(payload.num_floats());
  part->set_sequence(number);
  frame.payload.push_back(payload);
  return frame;
}

// Payload bytes per second, of the pieces in turn. Two windows are under way, since libzmq's limit
// holds on each side; the server confirms every eighth of them. `take` is what it does with each.
double TransportOneWay(Pair& pair, const std::vector<Buffer>& pieces,
                       std::function<void(uint64_t, const Buffer&)> take) {
  const uint64_t window = 2 * Window(pieces[0].size()), stride = window / 8;
  uint64_t received = 0;  // on the server's loop
  pair.server()->SetReceiver([&](NodeId from, Frame frame) {
    take(received, frame.payload[0]);
    if (++received % stride == 0) Must(pair.server()->Send(from, MakeFrame(received, {})));
  });
  uint64_t sent = 0;  // the rest on the client's
  double start = 0, seconds = 0;
  const auto fill = [&](uint64_t confirmed) {
    const bool over = Now() - start > kSecondsPerRound;
    if (over && confirmed == sent) {
      seconds = Now() - start;
      return pair.Stop();
    }
    // Whole strides, so that the last one is confirmed, too.
    while (!over && sent < confirmed + window) {
      for (uint64_t i = 0; i < stride; ++i, ++sent) {
        Must(pair.client()->Send(kServer, MakeFrame(sent + 1, pieces[sent % pieces.size()])));
      }
    }
  };
  pair.client()->SetReceiver([&](NodeId, Frame frame) { fill(frame.header.tick()); });
  pair.Run([&] {
    start = Now();
    fill(0);
  });
  return static_cast<double>(sent * pieces[0].size()) / seconds;
}

double TcpOneWay(const Buffer& payload, std::shared_ptr<const NodeKeys> keys = nullptr) {
  Pair pair(absl::ZeroDuration(), nullptr, std::move(keys));
  return TransportOneWay(pair, {payload}, [](uint64_t, const Buffer&) {});
}

std::vector<double> RoundTrips(Pair& pair, const Buffer& payload) {
  pair.server()->SetReceiver(
      [&](NodeId from, Frame frame) { Must(pair.server()->Send(from, std::move(frame))); });
  std::vector<double> trips;
  double begin = 0, at = 0;
  const auto ping = [&] {
    at = Now();
    Must(pair.client()->Send(kServer, MakeFrame(trips.size(), payload)));
  };
  pair.client()->SetReceiver([&](NodeId, Frame) {
    trips.push_back(Now() - at);
    if (Now() - begin > kSecondsPerRound) return pair.Stop();
    ping();
  });
  pair.Run([&] {
    begin = Now();
    ping();
  });
  return trips;
}

std::vector<double> TcpRoundTrips(absl::Duration spin,
                                  std::shared_ptr<const NodeKeys> keys = nullptr) {
  Pair pair(spin, nullptr, std::move(keys));
  return RoundTrips(pair, Buffer::Copy(std::string(kPingBytes, 'x')));
}

// What goes through shared memory: `count` pieces of `bytes`, copied out into as many.
struct ShmLoad {
  ShmLoad(size_t bytes, size_t count) {
    for (size_t i = 0; i < count; ++i) {
      from.push_back(pool.Allocate(bytes));
      std::memset(from.back().mutable_data(), 1, bytes);
      to.push_back(Buffer::Allocate(bytes));
      std::memset(to.back().mutable_data(), 2, bytes);
    }
  }
  double OneWay() {
    Pair pair(absl::Microseconds(50), arenas);
    return TransportOneWay(pair, from, [&](uint64_t number, const Buffer& piece) {
      std::memcpy(to[number % to.size()].mutable_data(), piece.data(), piece.size());
    });
  }
  double Memcpy() {
    const double start = Now();
    uint64_t copied = 0;
    for (; Now() - start < kSecondsPerRound; ++copied) {
      const size_t at = copied % from.size();
      std::memcpy(to[at].mutable_data(), from[at].data(), from[at].size());
    }
    return static_cast<double>(copied * from[0].size()) / (Now() - start);
  }

  std::shared_ptr<SharedArenas> arenas = std::make_shared<SharedArenas>();
  BufferPool pool{size_t{256} << 20, arenas};
  std::vector<Buffer> from, to;
};

std::vector<double> ShmRoundTrips(absl::Duration spin, size_t bytes) {
  const auto arenas = std::make_shared<SharedArenas>();
  BufferPool pool(size_t{256} << 20, arenas);
  Buffer payload = pool.Allocate(bytes);
  std::memset(payload.mutable_data(), 1, bytes);
  Pair pair(spin, arenas);
  return RoundTrips(pair, payload);
}

// Two threads that wake each other.
std::vector<double> FutexRoundTrips() {
  std::atomic<uint32_t> ping{0}, pong{0};
  const auto await = [](std::atomic<uint32_t>& word, uint32_t old) {
    while (word.load() == old) syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, old, nullptr);
  };
  const auto tell = [](std::atomic<uint32_t>& word, uint32_t value) {
    word.store(value);
    syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1);
  };
  constexpr uint32_t kOver = ~uint32_t{0};
  std::thread other([&] {
    for (uint32_t i = 1;; ++i) {
      await(ping, i - 1);
      if (ping.load() == kOver) return;
      tell(pong, i);
    }
  });
  std::vector<double> trips;
  const double begin = Now();
  for (uint32_t i = 1; Now() - begin < kSecondsPerRound; ++i) {
    const double at = Now();
    tell(ping, i);
    await(pong, i - 1);
    trips.push_back(Now() - at);
  }
  tell(ping, kOver);
  other.join();
  return trips;
}

double RawOneWay(const Buffer& payload) {
  RawPair pair(Window(payload.size()));
  std::thread server([&] {
    while (RawPair::Receive(pair.router()) != 0) {
    }
    RawPair::SendEmpty(pair.router());  // all has arrived
  });
  const double start = Now();
  uint64_t sent = 0;
  for (; Now() - start < kSecondsPerRound; ++sent) RawPair::Send(pair.dealer(), payload);
  zmq_send(pair.dealer(), "", 0, 0);
  RawPair::Receive(pair.dealer());
  const double seconds = Now() - start;
  server.join();
  return static_cast<double>(sent * payload.size()) / seconds;
}

std::vector<double> RawRoundTrips() {
  RawPair pair(1000);
  const Buffer payload = Buffer::Copy(std::string(kPingBytes, 'x'));
  std::thread server([&] {
    while (RawPair::Receive(pair.router()) != 0) {
      zmq_send(pair.router(), "client", 6, ZMQ_SNDMORE);
      RawPair::Send(pair.router(), payload);
    }
  });
  std::vector<double> trips;
  const double begin = Now();
  while (Now() - begin < kSecondsPerRound) {
    const double at = Now();
    RawPair::Send(pair.dealer(), payload);
    RawPair::Receive(pair.dealer());
    trips.push_back(Now() - at);
  }
  zmq_send(pair.dealer(), "", 0, 0);
  server.join();
  return trips;
}

std::string CpuModel() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

void TcpOneWays() {
  std::printf("  \"one_way\": [");
  for (const size_t bytes : {size_t{64} << 10, size_t{1} << 20}) {
    const Buffer payload = Buffer::Copy(std::string(bytes, 'x'));
    double raw = 0, ours = 0;
    for (int i = 0; i < kRounds; ++i) {
      raw = std::max(raw, RawOneWay(payload));
      ours = std::max(ours, TcpOneWay(payload));
    }
    std::printf(
        "%s\n    {\"bytes\": %zu, \"gb_per_s\": %.2f, \"libzmq_gb_per_s\": %.2f, \"ratio\": %.2f}",
        bytes == size_t{64} << 10 ? "" : ",", bytes, ours * 1e-9, raw * 1e-9, ours / raw);
  }
  std::printf("\n  ],\n");
}

void TcpRoundTrip() {
  RoundTrip raw, ours, spinning;
  for (int i = 0; i < kRounds; ++i) {
    raw.TakeBest(RawRoundTrips());
    ours.TakeBest(TcpRoundTrips(absl::ZeroDuration()));
    spinning.TakeBest(TcpRoundTrips(absl::Microseconds(50)));
  }
  std::printf(
      "  \"round_trip_64_bytes\": {\"p50_us\": %.1f, \"p99_us\": %.1f, \"libzmq_p50_us\": %.1f, "
      "\"libzmq_p99_us\": %.1f, \"ratio_p50\": %.2f, \"spin_50_us_p50_us\": %.1f},\n",
      ours.p50_us, ours.p99_us, raw.p50_us, raw.p99_us, ours.p50_us / raw.p50_us, spinning.p50_us);
}

void ShmOneWays() {
  constexpr size_t kMiB = size_t{1} << 20;
  struct Case {
    size_t bytes, count;
  };
  std::printf("  \"shm_one_way\": [");
  const char* comma = "";
  for (const auto [bytes, count] :
       {Case{size_t{4} << 10, 1}, Case{size_t{64} << 10, 1}, Case{kMiB, 1}, Case{kMiB, 64}}) {
    ShmLoad load(bytes, count);
    double copy = 0, ours = 0;
    for (int i = 0; i < kRounds; ++i) {
      copy = std::max(copy, load.Memcpy());
      ours = std::max(ours, load.OneWay());
    }
    std::printf(
        "%s\n    {\"bytes\": %zu, \"pieces\": %zu, \"gb_per_s\": %.2f, \"memcpy_gb_per_s\": %.2f, "
        "\"ratio\": %.2f}",
        std::exchange(comma, ","), bytes, count, ours * 1e-9, copy * 1e-9, ours / copy);
  }
  std::printf("\n  ],\n");
}

void ShmRoundTrip() {
  std::printf("  \"shm_round_trip\": [");
  const char* comma = "";
  for (const size_t bytes : {kPingBytes, size_t{4} << 10, size_t{64} << 10}) {
    RoundTrip futex, ours, spinning;
    for (int i = 0; i < kRounds; ++i) {
      futex.TakeBest(FutexRoundTrips());
      ours.TakeBest(ShmRoundTrips(absl::ZeroDuration(), bytes));
      spinning.TakeBest(ShmRoundTrips(absl::Microseconds(50), bytes));
    }
    std::printf(
        "%s\n    {\"bytes\": %zu, \"p50_us\": %.1f, \"p99_us\": %.1f, \"futex_p50_us\": %.1f, "
        "\"ratio_p50\": %.2f, \"spin_50_us_p50_us\": %.2f}",
        std::exchange(comma, ","), bytes, ours.p50_us, ours.p99_us, futex.p50_us,
        ours.p50_us / futex.p50_us, spinning.p50_us);
  }
  std::printf("\n  ]\n}\n");
}

// Both ends may be the same.
std::shared_ptr<const NodeKeys> MakeBenchKeys() {
  char public_key[41], secret_key[41];
  if (zmq_curve_keypair(public_key, secret_key) != 0) {
    Must(absl::UnimplementedError("this libzmq has no CURVE"));
  }
  auto keys = std::make_shared<NodeKeys>();
  keys->role = PeerRole::kServer;
  keys->public_key = public_key;
  keys->secret_key = secret_key;
  keys->authorized[public_key] = keys->role;
  return keys;
}

// What encryption costs: tcp with and without, in turn.
void Curve() {
  const std::shared_ptr<const NodeKeys> keys = MakeBenchKeys();
  std::printf("  \"one_way\": [");
  const char* comma = "";
  for (const size_t bytes : {size_t{64} << 10, size_t{1} << 20}) {
    const Buffer payload = Buffer::Copy(std::string(bytes, 'x'));
    double plain = 0, secure = 0;
    for (int i = 0; i < kRounds; ++i) {
      plain = std::max(plain, TcpOneWay(payload));
      secure = std::max(secure, TcpOneWay(payload, keys));
    }
    std::printf(
        "%s\n    {\"bytes\": %zu, \"gb_per_s\": %.3f, \"plain_gb_per_s\": %.3f, \"ratio\": %.3f}",
        std::exchange(comma, ","), bytes, secure * 1e-9, plain * 1e-9, secure / plain);
  }
  RoundTrip plain, secure;
  for (int i = 0; i < kRounds; ++i) {
    plain.TakeBest(TcpRoundTrips(absl::ZeroDuration()));
    secure.TakeBest(TcpRoundTrips(absl::ZeroDuration(), keys));
  }
  std::printf(
      "\n  ],\n  \"round_trip_64_bytes\": {\"p50_us\": %.1f, \"p99_us\": %.1f, \"plain_p50_us\": "
      "%.1f, \"plain_p99_us\": %.1f, \"ratio_p50\": %.2f}\n}\n",
      secure.p50_us, secure.p99_us, plain.p50_us, plain.p99_us, secure.p50_us / plain.p50_us);
}

void Conditions(const char* benchmark, const char* transport) {
  int major, minor, patch;
  zmq_version(&major, &minor, &patch);
  std::printf(
      "{\n  \"benchmark\": \"%s\",\n  \"conditions\": {\"transport\": \"%s\", \"cores\": %u, "
      "\"cpu\": \"%s\", \"libzmq\": \"%d.%d.%d\", \"io_threads\": 2},\n",
      benchmark, transport, std::thread::hardware_concurrency(), CpuModel().c_str(), major, minor,
      patch);
}

int Main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--keys") == 0) {
    Conditions("curve", "tcp loopback, with and without keys");
    Curve();
    return 0;
  }
  if (argc != 1) {
    std::fprintf(stderr, "transport_bench: argument '%s'; allowed: --keys, or none\n", argv[1]);
    return 2;
  }
  Conditions("transport", "tcp loopback, shared memory");
  TcpOneWays();
  TcpRoundTrip();
  ShmOneWays();
  ShmRoundTrip();
  return 0;
}

}  // namespace
}  // namespace parley

int main(int argc, char** argv) { return parley::Main(argc, argv); }
