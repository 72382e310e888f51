#include "ps/net/zmq_transport.h"

#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "ps/net/frame_size.h"
#include "ps/net/zmq_bind.h"
#include "ps/net/zmq_channel.h"
#include "ps/net/zmq_curve.h"
#include "ps/net/zmq_options.h"
#include "ps/wire/codec.h"

namespace parley {
namespace {

// Frames taken from one socket before the others, timers and tasks have their turn.
constexpr int kFramesPerTurn = 64;

constexpr absl::Duration kLogInterval = absl::Seconds(1);
bool IsIpv6(const std::string& host) { return host.find(':') != std::string::npos; }

}  // namespace

struct ZmqTransport::Incoming {
  ZmqMessage routing_id;  // of a ROUTER's message
  ZmqMessage header;
  std::vector<Buffer> payload;
  size_t parts = 0;  // payload parts, also those past max_parts, which are not kept
  size_t bytes = 0;
  bool has_header = true;
};

absl::StatusOr<std::unique_ptr<ZmqTransport>> ZmqTransport::Create(LoopEnv* env, Options options) {
  if (options.self == kNoNode) return absl::InvalidArgumentError("transport: self is 0");
  if (options.queue_frames < 1 || options.queue_frames > 100000) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "transport: queue_frames is %d, allowed is 1..100000", options.queue_frames));
  }
  if (options.max_connections < 1 || options.max_connections > 1000000) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "transport: max_connections is %d, allowed is 1..1000000", options.max_connections));
  }
  std::unique_ptr<ZmqTransport> transport(new ZmqTransport(env, std::move(options)));
  absl::Status status = transport->Start();
  if (!status.ok()) return status;
  return transport;
}

ZmqTransport::ZmqTransport(LoopEnv* env, Options options)
    : env_(env), options_(std::move(options)), gate_(options_.max_connections) {}

ZmqTransport::~ZmqTransport() {
  env_->RemovePoller(this);
  env_->Cancel(gate_timer_);
  if (epoll_fd_ >= 0) env_->RemoveSource(epoll_fd_);
  for (auto& [peer, channel] : peers_) CloseChannel(channel.get());
  if (router_) {
    for (const std::string& bound : bound_) RemoveSocketFile(bound);
    CloseChannel(router_.get());
  }
  if (door_) CloseChannel(door_.get());
  if (epoll_fd_ >= 0) close(epoll_fd_);
  // Then the context goes, unless it is shared, and waits for the sockets to be done.
}

absl::Status ZmqTransport::Start() {
  if (options_.context == nullptr || options_.keys != nullptr) {
    absl::StatusOr<std::shared_ptr<ZmqContext>> context = ZmqContext::Create();
    if (!context.ok()) return context.status();
    options_.context = *std::move(context);
  }
  epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
  if (epoll_fd_ < 0) return absl::ErrnoToStatus(errno, "transport: epoll_create1");
  absl::Status status = env_->AddSource(
      epoll_fd_, [this] { return DrainEvents(); }, LoopEnv::News::kUntilTaken);
  env_->AddPoller(this);
  if (status.ok() && !options_.bind.empty()) status = Listen();
  return status;
}

absl::Status ZmqTransport::Listen() {
  std::vector<BindTarget> targets;
  bool ipv6 = false;
  for (const absl::string_view bind : absl::StrSplit(options_.bind, ',')) {
    absl::StatusOr<BindTarget> target = ResolveBind(std::string(bind));
    if (!target.ok()) return target.status();
    ipv6 |= IsIpv6(target->endpoint.host);
    targets.push_back(*std::move(target));
  }
  absl::StatusOr<std::shared_ptr<Channel>> channel = OpenChannel(ZMQ_ROUTER, ipv6, kNoNode);
  if (!channel.ok()) return channel.status();
  // Before anybody can come.
  absl::Status status = Monitor(channel->get());
  if (status.ok() && options_.keys != nullptr) {
    status = OpenAndWatchDoor();
    if (status.ok()) status = AdmitOnlyThisUser(&(*channel)->socket);
  }
  // Unix sockets first: they have no use for what is then asked of who connects by tcp.
  bound_.resize(targets.size());
  if (status.ok()) status = ListenOn(channel->get(), targets, /*tcp=*/false);
  if (status.ok() && options_.keys != nullptr) {
    status = ListenWithCurve(&(*channel)->socket, *options_.keys);
  }
  if (status.ok()) status = ListenOn(channel->get(), targets, /*tcp=*/true);
  if (!status.ok()) {
    for (const std::string& done : bound_) RemoveSocketFile(done);
    CloseChannel(channel->get());
    return status;
  }
  router_ = *std::move(channel);
  endpoint_ = absl::StrJoin(bound_, ",");
  Log(absl::StrFormat("node %s listens on %s", ToString(self()), endpoint_));
  return Watch(router_.get());
}

// Those of `targets` that are tcp, or those that are not.
absl::Status ZmqTransport::ListenOn(Channel* channel, const std::vector<BindTarget>& targets,
                                    bool tcp) {
  const bool secure = options_.keys != nullptr;
  for (size_t i = 0; i < targets.size(); ++i) {
    const BindTarget& target = targets[i];
    if ((target.endpoint.scheme == Endpoint::Scheme::kTcp) != tcp) continue;
    const bool refused = target.exposed && !secure && !options_.insecure;
    if (refused && target.local) return ExposureError(target);
    absl::StatusOr<std::string> bound = Bind(&channel->socket, target);
    if (!bound.ok()) return bound.status();
    if (refused) return ExposureError(target);  // an address of no interface that yet could be had
    bound_[i] = *std::move(bound);
    if (target.exposed && !secure) {
      Log(
          absl::StrFormat("warning: %s is reached from other machines, nothing is encrypted there "
                          "and nobody proves who it is",
                          bound_[i]));
    }
    // The scheduler's is found in the keys of who connects, others' in what they tell it.
    if (tcp && secure && options_.keys->role != PeerRole::kScheduler) {
      absl::StrAppend(&bound_[i], "#", options_.keys->public_key);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<ZmqTransport::Channel>> ZmqTransport::OpenChannel(int type,
                                                                                 bool ipv6,
                                                                                 NodeId peer) {
  absl::StatusOr<ZmqSocket> socket = ZmqSocket::Open(*options_.context, type);
  if (!socket.ok()) return socket.status();
  auto channel = std::make_shared<Channel>();
  channel->socket = *std::move(socket);
  channel->router = type == ZMQ_ROUTER;
  channel->peer = peer;
  absl::Status status = SetOptions(options_, type, ipv6, &channel->socket);
  if (!status.ok()) return status;
  return channel;
}

absl::Status ZmqTransport::Watch(Channel* channel) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = channel;
  if (epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, channel->socket.fd(), &event) != 0) {
    return absl::ErrnoToStatus(errno, "transport: epoll_ctl");
  }
  Touch(channel);  // news from before the descriptor was watched
  return absl::OkStatus();
}

void ZmqTransport::CloseChannel(Channel* channel) {
  if (channel->monitor != nullptr) {
    zmq_socket_monitor(channel->socket.handle(), nullptr, 0);
    CloseChannel(channel->monitor.get());
  }
  epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, channel->socket.fd(), nullptr);
  channel->socket.Close();
}

void ZmqTransport::Touch(Channel* channel) {
  if (std::exchange(channel->touched, true)) return;
  touched_.push_back(channel->shared_from_this());
}

absl::Status ZmqTransport::Connect(NodeId peer, const std::string& endpoint) {
  if (peer == kNoNode || peer == self()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("cannot connect to node %s at %s: allowed is any other node than this one",
                        ToString(peer), endpoint));
  }
  absl::StatusOr<Endpoint> parsed = ParseRemoteEndpoint(endpoint);
  if (!parsed.ok()) return parsed.status();
  if (parsed->scheme == Endpoint::Scheme::kShm) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "endpoint \"%s\" is of shared memory, allowed here are tcp:// and ipc://", endpoint));
  }
  std::string canonical = FormatEndpoint(*parsed);
  auto known = peers_.find(peer);
  if (known != peers_.end() && known->second->endpoint == canonical) return absl::OkStatus();

  const bool ipv6 = IsIpv6(parsed->host);
  absl::StatusOr<std::shared_ptr<Channel>> channel = OpenChannel(ZMQ_DEALER, ipv6, peer);
  if (!channel.ok()) return channel.status();
  (*channel)->endpoint = canonical;
  if (parsed->scheme == Endpoint::Scheme::kTcp) {
    absl::StatusOr<std::string> key = ExpectedKey(options_.keys.get(), peer, *parsed);
    if (!key.ok()) return key.status();
    if (!key->empty()) {
      absl::Status status = ConnectWithCurve(&(*channel)->socket, *options_.keys, *key);
      if (!status.ok()) return status;
      (*channel)->role = peer == kSchedulerNode ? PeerRole::kScheduler : PeerRole::kServer;
      canonical = canonical.substr(0, canonical.find('#'));
    }
  }
  if (zmq_connect((*channel)->socket.handle(), canonical.c_str()) != 0) {
    return ZmqError(zmq_errno(), absl::StrFormat("cannot connect to %s", canonical));
  }
  absl::Status status = Watch(channel->get());
  if (status.ok()) status = Monitor(channel->get());
  if (!status.ok()) return status;
  // What still waits for the peer where it was is not to come there later: its connection would
  // have this node's name, and the answers that are for the new one.
  if (known != peers_.end()) known->second->socket.SetInt(ZMQ_LINGER, 0).IgnoreError();
  Disconnect(peer);
  peers_.emplace(peer, *std::move(channel));
  return absl::OkStatus();
}

void ZmqTransport::Disconnect(NodeId peer) {
  auto known = peers_.find(peer);
  if (known == peers_.end()) return;
  CloseChannel(known->second.get());  // what was queued has the linger's time
  peers_.erase(known);
}

absl::Status ZmqTransport::Send(NodeId to, Frame frame) {
  absl::Status status = CheckFrameSize(frame, options_.max_part_bytes, options_.max_parts);
  if (!status.ok()) return status;
  auto known = peers_.find(to);
  Channel* const channel = known != peers_.end() ? known->second.get() : router_.get();
  if (channel == nullptr) {
    return absl::UnavailableError(absl::StrFormat("no such peer: node %s", ToString(to)));
  }
  frame.header.set_sender(Value(self()));
  frame.header.set_protocol(kProtocolVersion);
  return SendOn(channel, to, std::move(frame));
}

absl::Status ZmqTransport::SendOn(Channel* channel, NodeId to, Frame frame) {
  Touch(channel);
  ZmqSocket& socket = channel->socket;
  const std::string header = EncodeHeader(frame.header);
  const size_t bytes = header.size() + frame.payload_bytes();
  const size_t parts = frame.payload.size();
  int error = channel->router ? socket.SendCopy(RoutingId(to), ZMQ_SNDMORE) : 0;
  if (error == 0) error = socket.SendCopy(header, parts > 0 ? ZMQ_SNDMORE : 0);
  // A queue with room for the first part has room for all. Only a connection that is closed in
  // between makes a later part fail; ZeroMQ then drops the message and wants to see the rest of it.
  for (size_t i = 0; i < parts && (error == 0 || i > 0); ++i) {
    const int flags = i + 1 < parts ? ZMQ_SNDMORE : 0;
    const int part_error = socket.SendBuffer(std::move(frame.payload[i]), flags);
    if (error == 0) error = part_error;
  }
  if (error == 0) {
    ++counters_.frames_out;
    counters_.bytes_out += bytes;
    return absl::OkStatus();
  }
  if (error == EHOSTUNREACH) {
    return absl::UnavailableError(absl::StrFormat("no such peer: node %s", ToString(to)));
  }
  ++counters_.dropped;
  if (error == EAGAIN && channel->refused) {
    return absl::UnavailableError(
        absl::StrFormat("node %s and this one do not have each other's keys", ToString(to)));
  }
  if (error == EAGAIN) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("%d frames already wait for node %s", options_.queue_frames, ToString(to)));
  }
  return ZmqError(error, absl::StrFormat("cannot send to node %s", ToString(to)));
}

bool ZmqTransport::DrainEvents() {
  std::array<epoll_event, 64> events;
  const int count = epoll_wait(epoll_fd_, events.data(), events.size(), 0);
  for (int i = 0; i < count; ++i) Touch(static_cast<Channel*>(events[i].data.ptr));
  return Poll();
}

bool ZmqTransport::Poll() {
  bool worked = false;
  draining_.swap(touched_);  // receivers touch sockets by answering
  for (std::shared_ptr<Channel>& channel : draining_) {
    if (std::exchange(channel->touched, false)) worked |= DrainChannel(channel.get());
  }
  draining_.clear();
  return worked;
}

bool ZmqTransport::DrainChannel(Channel* channel) {
  if (channel->is_monitor) return DrainMonitor(channel);
  if (channel->is_door) return DrainDoor(channel);
  for (int i = 0; i < kFramesPerTurn; ++i) {
    Incoming in;
    // The receiver may have disconnected this very peer.
    if (!channel->socket.is_open()) return true;
    if (!ReceiveMessage(channel, &in)) {
      channel->touched = false;  // nothing can have been swallowed before this look
      return i > 0;
    }
    Dispatch(channel, &in);
  }
  Touch(channel);
  return true;
}

bool ZmqTransport::ReceiveMessage(Channel* channel, Incoming* in) {
  ZmqSocket& socket = channel->socket;
  bool more = true;
  if (channel->router) {
    if (!socket.Receive(&in->routing_id)) return false;
    more = in->routing_id.more();
  }
  // From here on nothing is missing: ZeroMQ shows a message when all its parts are there.
  in->has_header = more && socket.Receive(&in->header);
  if (!in->has_header) return channel->router;
  in->bytes = in->header.size();
  more = in->header.more();
  while (more) {
    auto part = std::make_unique<ZmqMessage>();
    if (!socket.Receive(part.get())) break;
    more = part->more();
    in->bytes += part->size();
    if (++in->parts > options_.max_parts) continue;  // to the message's end, without keeping it
    ZmqMessage* const raw = part.release();
    in->payload.push_back(Buffer::Wrap(raw->data(), raw->size(), [raw] { delete raw; }));
  }
  return true;
}

void ZmqTransport::Dispatch(Channel* channel, Incoming* in) {
  NodeId from = channel->peer;
  if (channel->router) {
    const std::optional<NodeId> id = ParseRoutingId(in->routing_id.view());
    // The scheduler is connected to, never heard from here: whoever says so is a stranger.
    if (!id || *id == kNoNode || *id == self() || *id == kSchedulerNode) {
      return Refuse(
          absl::StrFormat("the sender calls itself \"%s\", which is no node's routing id",
                          absl::CHexEscape(std::string(in->routing_id.view().substr(0, 32)))));
    }
    from = *id;
  }
  if (!in->has_header) return Refuse("a message without parts");
  if (in->parts > options_.max_parts) {
    return Refuse(absl::StrFormat("a frame of %d payload parts from node %s, allowed is 0..%d",
                                  in->parts, ToString(from), options_.max_parts));
  }
  absl::StatusOr<Frame> frame = DecodeFrame(in->header.view(), std::move(in->payload));
  if (!frame.ok()) {
    return Refuse(absl::StrFormat("from node %s: %s", ToString(from), frame.status().message()));
  }
  if (frame->header.sender() != Value(from)) {
    return Refuse(absl::StrFormat("sender is %016x on the connection of node %s",
                                  frame->header.sender(), ToString(from)));
  }
  ProvenSender sender{.role = channel->role, .key = ""};
  if (door_ != nullptr && channel->router) sender = SenderOf(&in->header);
  if (!sender.key.empty() && !owners_.MaySpeak(from, sender.key)) {
    return Refuse(absl::StrFormat("the key %s speaks for node %s, for which another one has spoken",
                                  sender.key, ToString(from)));
  }
  ++counters_.frames_in;
  counters_.bytes_in += in->bytes;
  frame->peer_role = sender.role;
  if (receiver_) receiver_(from, *std::move(frame));
}

void ZmqTransport::Refuse(std::string_view why) {
  ++counters_.refused;
  const absl::Duration now = env_->Now();
  if (now - last_refusal_log_ < kLogInterval) return;
  last_refusal_log_ = now;
  Log(absl::StrFormat("refused %d messages so far; the latest: %s", counters_.refused, why));
}

void ZmqTransport::Log(const std::string& line) {
  if (options_.log) options_.log(line);
}

}  // namespace parley
