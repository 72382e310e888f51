#include "ps/net/zmq_socket.h"

#include <array>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_format.h"
#include "ps/base/payload_copy.h"

namespace parley {
namespace {

// One process may be connected to a thousand others; ZeroMQ's own limit is 1023.
constexpr int kMaxSockets = 16384;

// Up to here a copy costs less than the allocation that a reference needs.
constexpr size_t kCopyBytes = 512;

// Runs on an I/O thread once the bytes are sent, or the message is given up.
void ReleaseBuffer(void* /*data*/, void* hint) { delete static_cast<Buffer*>(hint); }

int Send(void* socket, zmq_msg_t* message, int flags) {
  while (zmq_msg_send(message, socket, flags | ZMQ_DONTWAIT) < 0) {
    const int error = zmq_errno();
    if (error == EINTR) continue;
    zmq_msg_close(message);
    return error;
  }
  return 0;
}

}  // namespace

absl::Status ZmqError(int error, std::string_view doing) {
  return absl::Status(absl::ErrnoToStatusCode(error),
                      absl::StrFormat("%s: %s", doing, zmq_strerror(error)));
}

absl::StatusOr<std::shared_ptr<ZmqContext>> ZmqContext::Create(int io_threads) {
  if (io_threads < 1 || io_threads > 64) {
    return absl::InvalidArgumentError(
        absl::StrFormat("io_threads is %d, allowed is 1..64", io_threads));
  }
  void* handle = zmq_ctx_new();
  if (handle == nullptr) return ZmqError(zmq_errno(), "cannot make a ZeroMQ context");
  zmq_ctx_set(handle, ZMQ_IO_THREADS, io_threads);
  zmq_ctx_set(handle, ZMQ_MAX_SOCKETS, kMaxSockets);
  return std::shared_ptr<ZmqContext>(new ZmqContext(handle));
}

ZmqContext::~ZmqContext() {
  while (zmq_ctx_term(handle_) != 0 && zmq_errno() == EINTR) {
  }
}

absl::StatusOr<ZmqSocket> ZmqSocket::Open(const ZmqContext& context, int type) {
  ZmqSocket socket;
  socket.handle_ = zmq_socket(context.handle(), type);
  if (socket.handle_ == nullptr) return ZmqError(zmq_errno(), "cannot open a ZeroMQ socket");
  return socket;
}

void ZmqSocket::Close() {
  if (handle_ != nullptr) zmq_close(std::exchange(handle_, nullptr));
}

absl::Status ZmqSocket::SetInt(int option, int value) {
  if (zmq_setsockopt(handle_, option, &value, sizeof(value)) == 0) return absl::OkStatus();
  return ZmqError(zmq_errno(), absl::StrFormat("ZeroMQ option %d = %d", option, value));
}

absl::Status ZmqSocket::SetInt64(int option, int64_t value) {
  if (zmq_setsockopt(handle_, option, &value, sizeof(value)) == 0) return absl::OkStatus();
  return ZmqError(zmq_errno(), absl::StrFormat("ZeroMQ option %d = %d", option, value));
}

absl::Status ZmqSocket::SetBytes(int option, std::string_view value) {
  if (zmq_setsockopt(handle_, option, value.data(), value.size()) == 0) return absl::OkStatus();
  return ZmqError(zmq_errno(), absl::StrFormat("ZeroMQ option %d", option));
}

int ZmqSocket::fd() const {
  int fd = -1;
  size_t size = sizeof(fd);
  zmq_getsockopt(handle_, ZMQ_FD, &fd, &size);
  return fd;
}

std::string ZmqSocket::last_endpoint() const {
  std::array<char, 512> text{};
  size_t size = text.size();
  zmq_getsockopt(handle_, ZMQ_LAST_ENDPOINT, text.data(), &size);
  return text.data();
}

bool ZmqSocket::Receive(ZmqMessage* part) {
  while (zmq_msg_recv(part->get(), handle_, ZMQ_DONTWAIT) < 0) {
    if (zmq_errno() != EINTR) return false;
  }
  return true;
}

int ZmqSocket::SendCopy(std::string_view bytes, int flags) {
  zmq_msg_t message;
  if (zmq_msg_init_size(&message, bytes.size()) != 0) return zmq_errno();
  if (!bytes.empty()) std::memcpy(zmq_msg_data(&message), bytes.data(), bytes.size());
  return Send(handle_, &message, flags);
}

int ZmqSocket::SendBuffer(Buffer buffer, int flags) {
  zmq_msg_t message;
  if (buffer.size() <= kCopyBytes) {
    if (zmq_msg_init_size(&message, buffer.size()) != 0) return zmq_errno();
    CopyPayload(zmq_msg_data(&message), buffer.data(), buffer.size());
    return Send(handle_, &message, flags);
  }
  auto* held = new Buffer(std::move(buffer));
  if (zmq_msg_init_data(&message, held->mutable_data(), held->size(), &ReleaseBuffer, held) != 0) {
    delete held;
    return zmq_errno();
  }
  return Send(handle_, &message, flags);
}

}  // namespace parley
