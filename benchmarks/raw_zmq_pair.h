// What ZmqTransport is measured against: libzmq in the hands of two plain threads.
#ifndef PARLEY_BENCHMARKS_RAW_ZMQ_PAIR_H_
#define PARLEY_BENCHMARKS_RAW_ZMQ_PAIR_H_

#include <zmq.h>

#include <cstddef>

#include "ps/base/buffer.h"

namespace parley {

// A DEALER and a ROUTER, each with an I/O thread of its own as two processes would have.
class RawPair {
 public:
  static constexpr size_t kHeaderBytes = 64;  // about what a frame's header has

  explicit RawPair(int window) {
    for (void* socket : {dealer_, router_}) {
      zmq_setsockopt(socket, ZMQ_SNDHWM, &window, sizeof(window));
      zmq_setsockopt(socket, ZMQ_RCVHWM, &window, sizeof(window));
      const int linger_ms = 0;
      zmq_setsockopt(socket, ZMQ_LINGER, &linger_ms, sizeof(linger_ms));
    }
    zmq_setsockopt(dealer_, ZMQ_ROUTING_ID, "client", 6);
    zmq_bind(router_, "tcp://127.0.0.1:*");
    char endpoint[256];
    size_t size = sizeof(endpoint);
    zmq_getsockopt(router_, ZMQ_LAST_ENDPOINT, endpoint, &size);
    zmq_connect(dealer_, endpoint);
  }
  ~RawPair() {
    zmq_close(dealer_);
    zmq_close(router_);
    zmq_ctx_term(client_);
    zmq_ctx_term(server_);
  }

  static void Send(void* socket, const Buffer& payload) {
    const char header[kHeaderBytes] = {};
    zmq_send(socket, header, sizeof(header), ZMQ_SNDMORE);
    auto* held = new Buffer(payload);
    zmq_msg_t message;
    zmq_msg_init_data(
        &message, held->mutable_data(), held->size(),
        [](void*, void* hint) { delete static_cast<Buffer*>(hint); }, held);
    zmq_msg_send(&message, socket, 0);
  }
  // Bytes of the last part.
  static size_t Receive(void* socket) {
    size_t last = 0;
    for (bool more = true; more;) {
      zmq_msg_t part;
      zmq_msg_init(&part);
      zmq_msg_recv(&part, socket, 0);
      last = zmq_msg_size(&part);
      more = zmq_msg_more(&part) != 0;
      zmq_msg_close(&part);
    }
    return last;
  }
  static void SendEmpty(void* router) {
    zmq_send(router, "client", 6, ZMQ_SNDMORE);
    zmq_send(router, "", 0, 0);
  }

  void* dealer() { return dealer_; }
  void* router() { return router_; }

 private:
  void* const client_ = zmq_ctx_new();
  void* const server_ = zmq_ctx_new();
  void* const dealer_ = zmq_socket(client_, ZMQ_DEALER);
  void* const router_ = zmq_socket(server_, ZMQ_ROUTER);
};

}  // namespace parley

#endif  // PARLEY_BENCHMARKS_RAW_ZMQ_PAIR_H_
