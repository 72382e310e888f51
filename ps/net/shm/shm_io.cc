// ShmTransport's daily work: sending, polling, receiving. Who is connected is in shm_transport.cc.
#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "ps/net/frame_size.h"
#include "ps/net/shm/private_parts.h"
#include "ps/net/shm/shm_transport.h"
#include "ps/wire/codec.h"

namespace parley {
namespace {

constexpr int kFramesPerTurn = 64;  // of one peer, before the others, timers and tasks

constexpr absl::Duration kLogInterval = absl::Seconds(1);

// A peer that sleeps is not woken for releases alone, unless nothing else wakes it so long: mostly
// a frame follows.
constexpr absl::Duration kReleaseDelay = absl::Milliseconds(2);

}  // namespace

absl::Status ShmTransport::Send(NodeId to, Frame frame) {
  absl::Status status = CheckFrameSize(frame, options_.max_part_bytes, options_.max_parts,
                                       options_.device_arenas.get());
  if (!status.ok()) return status;
  const auto no_peer = [&] {
    return absl::UnavailableError(absl::StrFormat("no such peer: node %s", ToString(to)));
  };
  shm::SendQueue* queue = nullptr;
  std::shared_ptr<Connection> connection = Route(to, &queue);
  if (connection == nullptr && queue == nullptr) return no_peer();
  frame.header.set_sender(Value(self()));
  frame.header.set_protocol(kProtocolVersion);
  shm::Outgoing outgoing{EncodeHeader(frame.header), std::move(frame.payload)};
  size_t bytes = outgoing.header.size();
  for (const Buffer& buffer : outgoing.payload) bytes += buffer.size();
  if (connection != nullptr) {
    status = connection->Send(std::move(outgoing));
    if (connection->owes_wake_up()) ArmWakeUps();
  } else if (queue->size() >= static_cast<size_t>(options_.queue_frames)) {
    status = absl::ResourceExhaustedError(
        absl::StrFormat("%d frames already wait for node %s", queue->size(), ToString(to)));
  } else {
    queue->push_back(std::move(outgoing));
  }
  if (status.ok()) {
    ++counters_.frames_out;
    counters_.bytes_out += bytes;
    return status;
  }
  ++counters_.dropped;
  if (absl::IsResourceExhausted(status)) return status;
  Drop(connection, status);
  return no_peer();
}

std::shared_ptr<shm::Connection> ShmTransport::Route(NodeId to, shm::SendQueue** queue) const {
  auto known = peers_.find(to);
  if (known != peers_.end()) return RouteToPeer(*known->second, queue);
  auto accepted = accepted_.find(to);
  if (accepted == accepted_.end()) return nullptr;
  const std::shared_ptr<Connection>& connection = connections_.at(accepted->second);
  return connection->closing() ? nullptr : connection;
}

bool ShmTransport::Poll() {
  bool worked = TakeReturned();
  // By index: receivers connect and disconnect.
  for (size_t i = 0; i < polled_.size(); ++i) {
    if (polled_[i] == nullptr || !polled_[i]->HasNews()) continue;
    const std::shared_ptr<Connection> connection = polled_[i];
    worked |= Service(connection);
  }
  std::erase(polled_, nullptr);
  return worked;
}

bool ShmTransport::Service(const std::shared_ptr<Connection>& connection) {
  const auto sink = [&](shm::Incoming incoming) {
    Dispatch(connection->peer(), std::move(incoming));
  };
  const absl::StatusOr<bool> received = connection->Receive(kFramesPerTurn, sink);
  absl::Status status = received.status();
  if (status.ok()) status = connection->Flush();
  if (!status.ok()) {
    Drop(connection, status);
    return true;
  }
  if (connection->finished()) {
    Drop(connection, absl::OkStatus());
    return true;
  }
  if (connection->owes_wake_up()) ArmWakeUps();
  return *received;
}

bool ShmTransport::TakeReturned() {
  if (!shared_.inbox->Take(&returned_)) return false;
  std::vector<std::shared_ptr<Connection>> touched;
  for (const shm::Returned& loan : returned_) {
    auto found = connections_.find(loan.connection);
    if (found == connections_.end()) continue;  // its arenas' owner has been told by the socket
    found->second->Release(loan.token);
    if (touched.empty() || touched.back() != found->second) touched.push_back(found->second);
  }
  returned_.clear();
  for (const std::shared_ptr<Connection>& connection : touched) Service(connection);
  return true;
}

void ShmTransport::ArmWakeUps() {
  if (wake_ups_ != kNoTimer) return;
  wake_ups_ = env_->After(kReleaseDelay, [this] {
    wake_ups_ = kNoTimer;
    for (auto& [id, connection] : connections_) {
      if (connection->owes_wake_up()) connection->WakeUp();
    }
  });
}

bool ShmTransport::PrepareToSleep() {
  if (!shared_.inbox->PrepareToSleep()) return false;
  for (auto& [id, connection] : connections_) connection->PrepareToSleep();
  // From here on: either a peer sees that we sleep, or we see what it has written.
  for (auto& [id, connection] : connections_) {
    if (!connection->HasNews()) continue;
    Awake();
    return false;
  }
  return true;
}

void ShmTransport::Awake() {
  for (auto& [id, connection] : connections_) connection->Awake();
}

size_t ShmTransport::LentTo(NodeId peer) const {
  size_t bytes = custody_->BytesOf(peer);
  for (const auto& [id, connection] : connections_) {
    if (connection->peer() == peer) bytes += connection->lent_bytes();
  }
  return bytes;
}

void ShmTransport::Dispatch(NodeId from, shm::Incoming incoming) {
  size_t bytes = incoming.header.size();
  for (const Buffer& buffer : incoming.payload) bytes += buffer.size();
  absl::StatusOr<Frame> frame = DecodeFrame(incoming.header, std::move(incoming.payload));
  if (!frame.ok()) {
    return Refuse(absl::StrFormat("from node %s: %s", ToString(from), frame.status().message()));
  }
  if (frame->header.sender() != Value(from)) {
    return Refuse(absl::StrFormat("sender is %016x on the connection of node %s",
                                  frame->header.sender(), ToString(from)));
  }
  const absl::Status taken = shm::CopyDecidingParts(incoming.borrowed, received_.get(), &*frame);
  if (!taken.ok()) {
    return Refuse(absl::StrFormat("from node %s: %s", ToString(from), taken.message()));
  }
  ++counters_.frames_in;
  counters_.bytes_in += bytes;
  if (receiver_) receiver_(from, *std::move(frame));
}

void ShmTransport::Refuse(const std::string& why) {
  ++counters_.refused;
  const absl::Duration now = env_->Now();
  if (now - last_refusal_log_ < kLogInterval) return;
  last_refusal_log_ = now;
  Log(absl::StrFormat("refused %d messages so far in shared memory; the latest: %s",
                      counters_.refused, why));
}

void ShmTransport::Log(const std::string& line) {
  if (options_.log) options_.log(line);
}

}  // namespace parley
