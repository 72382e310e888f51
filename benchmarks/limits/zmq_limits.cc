#include <zmq.h>

#include <functional>
#include <string>

#include "absl/strings/str_cat.h"
#include "benchmarks/limits/limits.h"
#include "benchmarks/limits/stopwatch.h"
#include "benchmarks/limits/two_processes.h"

namespace parley {
namespace {

constexpr size_t kHeaderBytes = 64;  // about what a frame's header has
constexpr size_t kPayloads = 8;      // that take turns, as vectors in flight do

absl::Status ZmqFailure(const char* call) {
  return absl::InternalError(absl::StrCat(call, ": ", zmq_strerror(zmq_errno())));
}

// A socket with a context, and so an I/O thread, of its own.
class OwnSocket {
 public:
  OwnSocket(int type, int high_water) : socket_(zmq_socket(context_, type)) {
    const int linger_ms = 1000;  // for the last word
    zmq_setsockopt(socket_, ZMQ_SNDHWM, &high_water, sizeof(high_water));
    zmq_setsockopt(socket_, ZMQ_RCVHWM, &high_water, sizeof(high_water));
    zmq_setsockopt(socket_, ZMQ_LINGER, &linger_ms, sizeof(linger_ms));
  }
  ~OwnSocket() {
    zmq_close(socket_);
    zmq_ctx_term(context_);
  }
  OwnSocket(const OwnSocket&) = delete;
  OwnSocket& operator=(const OwnSocket&) = delete;
  void* get() { return socket_; }

 private:
  void* const context_ = zmq_ctx_new();
  void* const socket_;
};

// Bytes of the last part; SIZE_MAX on failure.
size_t Receive(void* socket) {
  for (;;) {
    zmq_msg_t part;
    zmq_msg_init(&part);
    if (zmq_msg_recv(&part, socket, 0) < 0) return SIZE_MAX;
    const size_t size = zmq_msg_size(&part);
    const bool more = zmq_msg_more(&part) != 0;
    zmq_msg_close(&part);
    if (!more) return size;
  }
}

// Takes messages; an empty one asks whether all before it have come, "end" ends.
absl::Status ServeSink(Announce announce, int high_water) {
  OwnSocket router(ZMQ_ROUTER, high_water);
  if (zmq_bind(router.get(), "tcp://127.0.0.1:*") != 0) return ZmqFailure("zmq_bind");
  char endpoint[256];
  size_t size = sizeof(endpoint);
  if (zmq_getsockopt(router.get(), ZMQ_LAST_ENDPOINT, endpoint, &size) != 0) {
    return ZmqFailure("zmq_getsockopt");
  }
  announce(endpoint);
  for (;;) {
    const size_t last = Receive(router.get());
    if (last == SIZE_MAX) return ZmqFailure("zmq_msg_recv");
    if (last == 3) return absl::OkStatus();
    if (last != 0) continue;
    if (zmq_send(router.get(), "client", 6, ZMQ_SNDMORE) < 0 ||
        zmq_send(router.get(), "", 0, 0) < 0) {
      return ZmqFailure("zmq_send");
    }
  }
}

// Rounds of send(dealer), as many as go into the time; adds messages a second times `scale`.
absl::Status MeasureSends(Series* series, double scale, int high_water, LimitOptions options,
                          const std::function<bool(void* dealer)>& send) {
  return WithSecondProcess(
      [&](Announce announce) { return ServeSink(announce, high_water); },
      [&](const std::string& endpoint) -> absl::Status {
        OwnSocket dealer(ZMQ_DEALER, high_water);
        zmq_setsockopt(dealer.get(), ZMQ_ROUTING_ID, "client", 6);
        if (zmq_connect(dealer.get(), endpoint.c_str()) != 0) return ZmqFailure("zmq_connect");
        const auto settle = [&] {
          return zmq_send(dealer.get(), "", 0, 0) >= 0 && Receive(dealer.get()) == 0;
        };
        // The connection stands, and its buffers have grown, before time is taken.
        for (int i = 0; i < 100; ++i) {
          if (!send(dealer.get())) return ZmqFailure("zmq_msg_send");
        }
        if (!settle()) return ZmqFailure("zmq_send");
        for (uint32_t round = 0; round < options.rounds; ++round) {
          const Stopwatch watch;
          uint64_t sent = 0;
          while (sent % 16 != 0 || watch.Seconds() < options.seconds) {
            if (!send(dealer.get())) return ZmqFailure("zmq_msg_send");
            ++sent;
          }
          if (!settle()) return ZmqFailure("zmq_send");
          series->values.push_back(static_cast<double>(sent) / watch.Seconds() * scale);
        }
        return zmq_send(dealer.get(), "end", 3, 0) == 3 ? absl::OkStatus() : ZmqFailure("zmq_send");
      });
}

}  // namespace

absl::StatusOr<Series> MeasureZmqStream(const std::string& name, size_t bytes,
                                        LimitOptions options) {
  Series series{name, "GB/s", {}};
  std::vector<std::string> payloads(kPayloads, std::string(bytes, 'x'));
  size_t turn = 0;
  const auto send = [&](void* dealer) {
    const char header[kHeaderBytes] = {};
    if (zmq_send(dealer, header, sizeof(header), ZMQ_SNDMORE) < 0) return false;
    std::string& payload = payloads[turn++ % kPayloads];
    zmq_msg_t message;
    zmq_msg_init_data(
        &message, payload.data(), payload.size(), [](void*, void*) {}, nullptr);
    return zmq_msg_send(&message, dealer, 0) >= 0;
  };
  // Sixteen mebibytes on their way at 1 MiB: enough to keep both sides busy.
  const int window = static_cast<int>(std::max<size_t>(8, (size_t{16} << 20) / bytes));
  const absl::Status status =
      MeasureSends(&series, static_cast<double>(bytes) * 1e-9, window, options, send);
  if (!status.ok()) return status;
  return series;
}

absl::StatusOr<Series> MeasureZmqRate(const std::string& name, size_t bytes, LimitOptions options) {
  Series series{name, "M/s", {}};
  const std::string payload(bytes, 'x');
  const auto send = [&](void* dealer) {
    return zmq_send(dealer, payload.data(), payload.size(), 0) >= 0;
  };
  const absl::Status status = MeasureSends(&series, 1e-6, 100'000, options, send);
  if (!status.ok()) return status;
  return series;
}

}  // namespace parley
