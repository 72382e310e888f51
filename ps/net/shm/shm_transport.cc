#include "ps/net/shm/shm_transport.h"

#include <poll.h>
#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "absl/strings/str_format.h"
#include "ps/net/address.h"
#include "ps/wire/codec.h"

namespace parley {
namespace {

using shm::SendQueue;

constexpr absl::Duration kGreetingTimeout = absl::Seconds(5);
constexpr size_t kMaxStrangers = 64;
constexpr size_t kMaxConnections = 4096;
// Before accepting again when there are no more descriptors; those who wait stay in the backlog.
constexpr absl::Duration kAcceptPause = absl::Milliseconds(500);
// To connect to somebody who listens but has too many waiting: a start of hundreds of nodes at
// once.
constexpr int kMaxTries = 10;
constexpr int kLingerFrames = 64;  // to read, and throw away, in one go

constexpr size_t kStagingCacheBytes = size_t{64} << 20;

absl::Status CheckOptions(const ShmTransport::Options& options) {
  if (options.self == kNoNode) return absl::InvalidArgumentError("transport: self is 0");
  if (options.queue_frames < 1 || options.queue_frames > 100000) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "transport: queue_frames is %d, allowed is 1..100000", options.queue_frames));
  }
  if (!shm::IsRingSize(options.ring_bytes)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("transport: ring_bytes is %d, allowed is a power of two, %d..%d",
                        options.ring_bytes, shm::kMinRingBytes, shm::kMaxRingBytes));
  }
  if (options.lend_bytes < 1) {
    return absl::InvalidArgumentError("transport: lend_bytes is 0, allowed is 1 and more");
  }
  return absl::OkStatus();
}

}  // namespace

struct ShmTransport::Peer {
  NodeId id;
  std::string endpoint, name;
  std::shared_ptr<SendQueue> queue = std::make_shared<SendQueue>();
  std::shared_ptr<Connection> connection;  // null between two
  bool was_greeted = false;
  int tries = 0;                                // that found the other's backlog full
  absl::Duration pause = absl::ZeroDuration();  // before the next try
  TimerId retry = kNoTimer;
};

absl::StatusOr<std::unique_ptr<ShmTransport>> ShmTransport::Create(LoopEnv* env, Options options) {
  absl::Status status = CheckOptions(options);
  if (!status.ok()) return status;
  std::unique_ptr<ShmTransport> transport(new ShmTransport(env, std::move(options)));
  status = transport->Start();
  if (!status.ok()) return status;
  return transport;
}

ShmTransport::ShmTransport(LoopEnv* env, Options options)
    : env_(env), options_(std::move(options)) {}

absl::Status ShmTransport::Start() {
  absl::StatusOr<std::string> machine = shm::ThisMachine();
  if (!machine.ok()) return machine.status();
  machine_ = *std::move(machine);
  epoll_ = shm::Fd(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_.ok()) return absl::ErrnoToStatus(errno, "shared memory: epoll");
  if (options_.arenas == nullptr) options_.arenas = std::make_shared<SharedArenas>();
  staging_ = std::make_unique<BufferPool>(kStagingCacheBytes, options_.arenas);
  received_ = std::make_unique<BufferPool>(kStagingCacheBytes);
  shared_ = {.self = options_.self,
             .limits = {.ring_bytes = options_.ring_bytes,
                        .queue_frames = options_.queue_frames,
                        .max_part_bytes = options_.max_part_bytes,
                        .max_parts = options_.max_parts,
                        .max_lent_bytes = options_.max_lent_bytes,
                        .lend_bytes = options_.lend_bytes},
             .arenas = options_.arenas,
             .device_arenas = options_.device_arenas,
             .mapper = options_.device_mapper,
             .staging = staging_.get(),
             .received = received_.get(),
             .inbox = std::make_shared<shm::ReturnInbox>(env_)};
  custody_ = std::make_unique<shm::Custody>(epoll_.get(), options_.max_lent_bytes);
  absl::Status status = env_->AddSource(
      epoll_.get(), [this] { return DrainSockets(); }, LoopEnv::News::kUntilTaken);
  env_->AddPoller(this);
  if (status.ok() && !options_.bind.empty()) status = Listen();
  return status;
}

absl::Status ShmTransport::Listen() {
  absl::StatusOr<Endpoint> at = ParseEndpoint(options_.bind);
  if (!at.ok()) return at.status();
  if (at->scheme != Endpoint::Scheme::kShm || (!at->host.empty() && at->host != machine_)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("cannot listen on %s: allowed is shm:// or a name on this machine, "
                        "shm://%s/NAME",
                        options_.bind, machine_));
  }
  at->host = machine_;
  if (at->path.empty()) at->path = absl::StrFormat("%016x%016x", env_->Random(), env_->Random());
  absl::StatusOr<shm::Fd> listener = shm::ListenAt(at->path);
  if (!listener.ok()) return listener.status();
  listener_ = *std::move(listener);
  absl::Status status = WatchListener();
  if (!status.ok()) return status;
  endpoint_ = FormatEndpoint(*at);
  Log(absl::StrFormat("node %s listens on %s", ToString(self()), endpoint_));
  return absl::OkStatus();
}

absl::Status ShmTransport::WatchListener() {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = 0;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, listener_.get(), &event) != 0) {
    return absl::ErrnoToStatus(errno, "shared memory: epoll_ctl");
  }
  return absl::OkStatus();
}

ShmTransport::~ShmTransport() {
  if (shared_.inbox == nullptr) return;  // Start failed before anything was
  Linger();
  for (auto& [id, peer] : peers_) env_->Cancel(peer->retry);
  for (const auto& [id, timer] : greeting_timers_) env_->Cancel(timer);
  env_->Cancel(wake_ups_);
  env_->Cancel(accept_again_);
  env_->RemovePoller(this);
  env_->RemoveSource(epoll_.get());
  for (const auto& [id, connection] : connections_) env_->RemoveSource(connection->wake_fd());
  shared_.inbox->Close();
}

void ShmTransport::Linger() {
  // Says goodbye to all, and writes what they have room for, as long as they make some.
  std::vector<std::shared_ptr<Connection>> open;
  for (auto& [id, connection] : connections_) {
    connection->Close();
    open.push_back(connection);
  }
  const absl::Duration until = env_->Now() + options_.linger;
  const auto done = [](const std::shared_ptr<Connection>& connection) {
    return !connection->greeted() || !connection->OnSocket().ok() ||
           !connection->Receive(kLingerFrames, [](auto) {}).ok() || !connection->Flush().ok() ||
           connection->said_all();
  };
  while (true) {
    std::erase_if(open, done);
    if (open.empty() || env_->Now() >= until) return;
    pollfd none{-1, 0, 0};
    poll(&none, 1, 1);
  }
}

absl::Status ShmTransport::Connect(NodeId peer, const std::string& endpoint) {
  if (peer == kNoNode || peer == self()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("cannot connect to node %s at %s: allowed is any other node than this one",
                        ToString(peer), endpoint));
  }
  absl::StatusOr<Endpoint> at = ParseRemoteEndpoint(endpoint);
  if (!at.ok()) return at.status();
  if (at->scheme != Endpoint::Scheme::kShm) {
    return absl::InvalidArgumentError(
        absl::StrFormat("endpoint \"%s\" is not in shared memory, allowed is shm://", endpoint));
  }
  if (at->host != machine_) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "%s is on another machine, network namespace or user; this is %s", endpoint, machine_));
  }
  const std::string canonical = FormatEndpoint(*at);
  auto known = peers_.find(peer);
  if (known != peers_.end() && known->second->endpoint == canonical) return absl::OkStatus();
  Disconnect(peer);
  auto entry = std::make_unique<Peer>();
  entry->id = peer;
  entry->endpoint = canonical;
  entry->name = at->path;
  absl::Status status = TryConnect(entry.get());
  if (!status.ok()) {
    if (options_.on_unreachable && !absl::IsResourceExhausted(status)) return status;
    TryAgainLater(entry.get());
  }
  peers_.emplace(peer, std::move(entry));
  return absl::OkStatus();
}

void ShmTransport::Disconnect(NodeId peer) {
  auto known = peers_.find(peer);
  if (known == peers_.end()) return;
  std::unique_ptr<Peer> gone = std::move(known->second);
  peers_.erase(known);
  env_->Cancel(gone->retry);
  if (!gone->connection) return;
  if (!gone->connection->greeted()) return Drop(gone->connection, absl::OkStatus());
  CloseConnection(gone->connection);
}

void ShmTransport::CloseConnection(const std::shared_ptr<Connection>& connection) {
  // It lives on until both sides have given back what they were lent. Nothing is received here: a
  // receiver of this very connection may have asked for it.
  connection->Close();
  absl::Status status = connection->Flush();
  if (!status.ok() || connection->finished()) Drop(connection, status);
}

absl::Status ShmTransport::TryConnect(Peer* peer) {
  absl::StatusOr<shm::Fd> socket = shm::ConnectTo(peer->name);
  if (!socket.ok()) return socket.status();
  // A frame that was cut off is told again from its beginning.
  for (shm::Outgoing& frame : *peer->queue) frame.parts_done = frame.bytes_done = 0;
  absl::StatusOr<std::shared_ptr<Connection>> connection =
      Adopt(*std::move(socket), peer->id, peer->queue);
  if (!connection.ok()) return connection.status();
  peer->connection = *std::move(connection);
  return absl::OkStatus();
}

void ShmTransport::TryAgainLater(Peer* peer) {
  peer->pause = std::clamp(2 * peer->pause, options_.reconnect_min, options_.reconnect_max);
  env_->Cancel(peer->retry);
  peer->retry = env_->After(peer->pause, [this, peer] {
    peer->retry = kNoTimer;
    absl::Status status = TryConnect(peer);
    if (!status.ok()) OnTryFailed(peer, status);
  });
}

void ShmTransport::OnTryFailed(Peer* peer, const absl::Status& why) {
  const bool may_give_up = options_.on_unreachable && !peer->was_greeted;
  const bool worth_another = absl::IsResourceExhausted(why) && ++peer->tries < kMaxTries;
  if (may_give_up && !worth_another) return GiveUp(peer->id, why);
  TryAgainLater(peer);
}

std::shared_ptr<shm::Connection> ShmTransport::RouteToPeer(const Peer& peer, SendQueue** queue) {
  *queue = peer.queue.get();
  return peer.connection;
}

void ShmTransport::GiveUp(NodeId id, const absl::Status& why) {
  auto node = peers_.extract(id);
  env_->Cancel(node.mapped()->retry);
  std::vector<Frame> frames;
  for (shm::Outgoing& waiting : *node.mapped()->queue) {
    absl::StatusOr<Frame> frame = DecodeFrame(waiting.header, std::move(waiting.payload));
    if (frame.ok()) frames.push_back(*std::move(frame));
  }
  options_.on_unreachable(id, why, std::move(frames));
}

absl::StatusOr<std::shared_ptr<shm::Connection>> ShmTransport::Adopt(
    shm::Fd socket, NodeId peer, std::shared_ptr<SendQueue> queue) {
  const uint64_t id = next_connection_++;
  absl::StatusOr<std::unique_ptr<Connection>> made =
      Connection::Create(&shared_, id, std::move(socket), peer, std::move(queue));
  if (!made.ok()) return made.status();
  std::shared_ptr<Connection> connection = *std::move(made);
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = id;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, connection->socket_fd(), &event) != 0) {
    return absl::ErrnoToStatus(errno, "shared memory: epoll_ctl");
  }
  absl::Status status = env_->AddWakeUp(connection->wake_fd());
  if (!status.ok()) return status;
  connections_.emplace(id, connection);
  polled_.push_back(connection);
  greeting_timers_[id] = env_->After(kGreetingTimeout, [this, id] {
    const std::shared_ptr<Connection> silent = connections_.at(id);
    Drop(silent, absl::DeadlineExceededError(absl::StrFormat(
                     "no greeting within %s", absl::FormatDuration(kGreetingTimeout))));
  });
  return connection;
}

void ShmTransport::EndGreeting(uint64_t connection) {
  auto timer = greeting_timers_.find(connection);
  if (timer == greeting_timers_.end()) return;
  env_->Cancel(timer->second);
  greeting_timers_.erase(timer);
}

void ShmTransport::AcceptAll() {
  while (true) {
    absl::StatusOr<shm::Fd> socket = shm::Accept(listener_);
    if (!socket.ok()) {
      // The listener stays readable, so it is not looked at for a while.
      epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, listener_.get(), nullptr);
      accept_again_ = env_->After(kAcceptPause, [this] {
        const absl::Status status = WatchListener();
        if (!status.ok()) Refuse(std::string(status.message()));
      });
      return Refuse(std::string(socket.status().message()));
    }
    if (!socket->ok()) return;
    if (greeting_timers_.size() >= kMaxStrangers || connections_.size() >= kMaxConnections) {
      Refuse(absl::StrFormat("%d connections, of which %d wait for a greeting, allowed are %d, %d",
                             connections_.size(), greeting_timers_.size(), kMaxConnections,
                             kMaxStrangers));
      continue;
    }
    const absl::StatusOr<std::shared_ptr<Connection>> connection =
        Adopt(*std::move(socket), kNoNode, std::make_shared<SendQueue>());
    if (!connection.ok()) Refuse(std::string(connection.status().message()));
  }
}

bool ShmTransport::DrainSockets() {
  std::array<epoll_event, 64> events;
  const int count = epoll_wait(epoll_.get(), events.data(), events.size(), 0);
  for (int i = 0; i < count; ++i) {
    if (events[i].data.u64 == 0) {
      AcceptAll();
      continue;
    }
    auto found = connections_.find(events[i].data.u64);
    if (found == connections_.end()) {  // dropped, perhaps by what came before it
      custody_->OnSocket(events[i].data.u64);
      continue;
    }
    const std::shared_ptr<Connection> connection = found->second;
    OnSocket(connection);
  }
  return count > 0;
}

void ShmTransport::OnSocket(const std::shared_ptr<Connection>& connection) {
  const bool was_greeted = connection->greeted();
  absl::Status status = connection->OnSocket();
  if (!status.ok()) return Drop(connection, status);
  if (!was_greeted && connection->greeted()) OnGreeted(connection);
  Service(connection);  // what there is to read, and whether that was the end
}

void ShmTransport::OnGreeted(const std::shared_ptr<Connection>& connection) {
  EndGreeting(connection->id());
  const NodeId id = connection->peer();
  auto named = peers_.find(id);
  if (named != peers_.end() && named->second->connection == connection) {
    named->second->was_greeted = true;
    named->second->pause = absl::ZeroDuration();
  } else {
    // A peer may come back before its old connection is known to be dead.
    auto [place, fresh] = accepted_.try_emplace(id, connection->id());
    if (!fresh) {
      auto old = connections_.find(std::exchange(place->second, connection->id()));
      if (old != connections_.end()) CloseConnection(std::shared_ptr<Connection>(old->second));
    }
  }
  Log(absl::StrFormat("node %s over shared memory", ToString(id)));
}

void ShmTransport::Drop(const std::shared_ptr<Connection>& connection, const absl::Status& why) {
  const uint64_t id = connection->id();
  if (connections_.erase(id) == 0) return;
  EndGreeting(id);
  env_->RemoveSource(connection->wake_fd());
  shm::Kept kept = connection->TakeLent();
  if (kept.socket != nullptr) {
    custody_->Keep(id, std::move(kept));
  } else {
    // The socket may stay open, for what is still borrowed; nobody looks at it any more.
    epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, connection->socket_fd(), nullptr);
  }
  std::replace(polled_.begin(), polled_.end(), connection, std::shared_ptr<Connection>());
  if (!why.ok()) {
    Refuse(absl::StrFormat("the connection of node %s: %s", ToString(connection->peer()),
                           why.message()));
  }
  auto accepted = accepted_.find(connection->peer());
  const bool heard = accepted != accepted_.end() && accepted->second == id;
  if (heard) accepted_.erase(accepted);
  // By the loop: who hears of it may use this transport.
  if (peer_gone_ && connection->greeted()) {
    env_->Post([this, peer = connection->peer(), alive = std::weak_ptr<bool>(alive_)] {
      if (!alive.expired()) peer_gone_(peer);
    });
  }
  auto named = peers_.find(connection->peer());
  if (named == peers_.end() || named->second->connection != connection) return;
  Peer* const peer = named->second.get();
  peer->connection = nullptr;
  if (peer->was_greeted || !options_.on_unreachable) return TryAgainLater(peer);
  GiveUp(peer->id, why.ok() ? absl::UnavailableError("it hung up on the greeting") : why);
}

}  // namespace parley
