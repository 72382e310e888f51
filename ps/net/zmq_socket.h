// ZeroMQ's contexts, sockets and messages as C++ values, with errors as Status.
//
// Thread-safety: ZmqContext as ZeroMQ's own, from any thread. A ZmqSocket belongs to one thread. A
// ZmqMessage may be read and destroyed on any thread.
#ifndef PARLEY_PS_NET_ZMQ_SOCKET_H_
#define PARLEY_PS_NET_ZMQ_SOCKET_H_

#include <zmq.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "ps/base/buffer.h"

namespace parley {

// The threads that do a process's socket input and output. Transports of one process may share one;
// the destructor waits until all that its sockets had to send is sent, or their linger has passed.
class ZmqContext {
 public:
  // One I/O thread moves some GB/s. kInvalidArgument, or the system's error.
  static absl::StatusOr<std::shared_ptr<ZmqContext>> Create(int io_threads = 1);
  ~ZmqContext();
  ZmqContext(const ZmqContext&) = delete;
  ZmqContext& operator=(const ZmqContext&) = delete;

  void* handle() const { return handle_; }

 private:
  explicit ZmqContext(void* handle) : handle_(handle) {}
  void* const handle_;
};

// One part of a received message.
class ZmqMessage {
 public:
  ZmqMessage() { zmq_msg_init(&message_); }
  ~ZmqMessage() { zmq_msg_close(&message_); }
  ZmqMessage(const ZmqMessage&) = delete;
  ZmqMessage& operator=(const ZmqMessage&) = delete;

  char* data() { return static_cast<char*>(zmq_msg_data(&message_)); }
  size_t size() const { return zmq_msg_size(&message_); }
  std::string_view view() { return {data(), size()}; }
  bool more() const { return zmq_msg_more(&message_) != 0; }
  zmq_msg_t* get() { return &message_; }

 private:
  zmq_msg_t message_;
};

class ZmqSocket {
 public:
  ZmqSocket() = default;
  ZmqSocket(ZmqSocket&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  ZmqSocket& operator=(ZmqSocket&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~ZmqSocket() { Close(); }

  // `type`: ZMQ_DEALER, ZMQ_ROUTER.
  static absl::StatusOr<ZmqSocket> Open(const ZmqContext& context, int type);

  // Hands what is queued to the context, which has the linger's time to send it.
  void Close();
  bool is_open() const { return handle_ != nullptr; }
  void* handle() const { return handle_; }

  absl::Status SetInt(int option, int value);
  absl::Status SetInt64(int option, int64_t value);
  absl::Status SetBytes(int option, std::string_view value);

  // Readable when something has happened to the socket, once for each news (ZMQ_FD).
  int fd() const;
  std::string last_endpoint() const;

  // The next part of a message, if there is one; never blocks.
  bool Receive(ZmqMessage* part);

  // Each queues one part and never blocks; 0 or errno (EAGAIN: the queue is full; EHOSTUNREACH: a
  // ROUTER knows no such peer). `flags`: 0 or ZMQ_SNDMORE.
  int SendCopy(std::string_view bytes, int flags);
  // Keeps a reference to the bytes until they are sent; small ones are copied, which is cheaper.
  int SendBuffer(Buffer buffer, int flags);

 private:
  void* handle_ = nullptr;
};

// `doing` and ZeroMQ's or the system's reason for `error`, as a Status.
absl::Status ZmqError(int error, std::string_view doing);

}  // namespace parley

#endif  // PARLEY_PS_NET_ZMQ_SOCKET_H_
