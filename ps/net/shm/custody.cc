#include "ps/net/shm/custody.h"

#include <sys/epoll.h>

#include <utility>

namespace parley::shm {
namespace {

constexpr int kMessagesPerTurn = 64;

}  // namespace

void Custody::Keep(uint64_t connection, Kept kept) {
  bytes_ += kept.bytes;
  kept_.emplace(connection, std::move(kept));
  while (kept_.size() > kMaxConnections || bytes_ > max_bytes_) LetGo(kept_.begin());
}

void Custody::OnSocket(uint64_t connection) {
  auto found = kept_.find(connection);
  if (found == kept_.end()) return;
  Message unwanted;
  for (int i = 0; i < kMessagesPerTurn; ++i) {
    const absl::StatusOr<Received> received = ReceiveMessage(*found->second.socket, &unwanted);
    if (!received.ok()) continue;  // no lie matters any more
    if (*received == Received::kNothing) return;
    if (*received == Received::kEnd) return LetGo(found);
  }
}

size_t Custody::BytesOf(NodeId peer) const {
  size_t bytes = 0;
  for (const auto& [connection, kept] : kept_) {
    if (kept.peer == peer) bytes += kept.bytes;
  }
  return bytes;
}

void Custody::LetGo(std::map<uint64_t, Kept>::iterator kept) {
  // What is borrowed from the peer may keep the socket open, and at its end for ever.
  epoll_ctl(epoll_, EPOLL_CTL_DEL, kept->second.socket->get(), nullptr);
  bytes_ -= kept->second.bytes;
  kept_.erase(kept);
}

}  // namespace parley::shm
