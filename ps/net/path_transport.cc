#include "ps/net/path_transport.h"

#include <sys/stat.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace parley {
namespace {

bool IsSocket(const std::string& path) {
  struct stat status;
  return stat(path.c_str(), &status) == 0 && S_ISSOCK(status.st_mode);
}

// The endpoints of a list by what they are for.
struct Paths {
  std::string shm, ipc, tcp;  // the last of each kind; empty: none
  std::string ipc_file;
};

absl::StatusOr<Paths> SplitRemote(const std::string& list) {
  absl::StatusOr<std::vector<Endpoint>> endpoints = ParseEndpointList(list);
  if (!endpoints.ok()) return endpoints.status();
  Paths paths;
  for (const Endpoint& endpoint : *endpoints) {
    const std::string text = FormatEndpoint(endpoint);
    absl::Status remote = ParseRemoteEndpoint(text).status();
    if (!remote.ok()) return remote;
    switch (endpoint.scheme) {
      case Endpoint::Scheme::kShm:
        paths.shm = text;
        break;
      case Endpoint::Scheme::kIpc:
        paths.ipc = text;
        paths.ipc_file = endpoint.path;
        break;
      case Endpoint::Scheme::kTcp:
        paths.tcp = text;
        break;
    }
  }
  return paths;
}

}  // namespace

absl::StatusOr<std::unique_ptr<PathTransport>> PathTransport::Create(LoopEnv* env,
                                                                     Options options) {
  std::unique_ptr<PathTransport> transport(new PathTransport(env, std::move(options)));
  absl::Status status = transport->Start();
  if (!status.ok()) return status;
  return transport;
}

PathTransport::PathTransport(LoopEnv* env, Options options)
    : env_(env), options_(std::move(options)) {}

absl::Status PathTransport::Start() {
  std::string shm, others;
  if (!options_.bind.empty()) {
    absl::StatusOr<std::vector<Endpoint>> endpoints = ParseEndpointList(options_.bind);
    if (!endpoints.ok()) return endpoints.status();
    for (const Endpoint& endpoint : *endpoints) {
      const std::string text = FormatEndpoint(endpoint);
      if (endpoint.scheme != Endpoint::Scheme::kShm) {
        absl::StrAppend(&others, others.empty() ? "" : ",", text);
      } else if (shm.empty()) {
        shm = text;
      } else {
        return absl::InvalidArgumentError(
            absl::StrFormat("cannot listen on %s: allowed is one shm:// endpoint", options_.bind));
      }
    }
  }
  absl::Status status = StartZmq(others);
  if (status.ok()) status = StartShm(shm, /*needed=*/!shm.empty() && others.empty());
  if (!status.ok()) return status;
  endpoint_ = zmq_->endpoint();
  if (shm_ != nullptr && !shm_->endpoint().empty()) {
    absl::StrAppend(&endpoint_, endpoint_.empty() ? "" : ",", shm_->endpoint());
  }
  return absl::OkStatus();
}

absl::Status PathTransport::StartZmq(const std::string& bind) {
  ZmqTransport::Options options;
  options.self = options_.self;
  options.bind = bind;
  options.queue_frames = options_.queue_frames;
  options.max_part_bytes = options_.max_part_bytes;
  options.max_parts = options_.max_parts;
  options.max_connections = options_.max_connections;
  options.linger = options_.linger;
  options.reconnect_min = options_.reconnect_min;
  options.reconnect_max = options_.reconnect_max;
  options.context = options_.context;
  options.keys = options_.keys;
  options.insecure = options_.insecure;
  options.log = [this](const std::string& line) { Log(line); };
  absl::StatusOr<std::unique_ptr<ZmqTransport>> zmq =
      ZmqTransport::Create(env_, std::move(options));
  if (!zmq.ok()) return zmq.status();
  zmq_ = *std::move(zmq);
  zmq_->SetReceiver(Hand());
  return absl::OkStatus();
}

absl::Status PathTransport::StartShm(const std::string& bind, bool needed) {
  ShmTransport::Options options;
  options.self = options_.self;
  options.bind = bind;
  options.queue_frames = options_.queue_frames;
  options.max_part_bytes = options_.max_part_bytes;
  options.max_parts = options_.max_parts;
  options.linger = options_.linger;
  options.reconnect_min = options_.reconnect_min;
  options.reconnect_max = options_.reconnect_max;
  options.arenas = options_.arenas;
  options.device_arenas = options_.device_arenas;
  options.device_mapper = options_.device_mapper;
  options.log = [this](const std::string& line) { Log(line); };
  options.on_unreachable = [this](NodeId peer, const absl::Status& why, std::vector<Frame> frames) {
    OnUnreachable(peer, why, std::move(frames));
  };
  absl::StatusOr<std::unique_ptr<ShmTransport>> shm =
      ShmTransport::Create(env_, std::move(options));
  // A wrong endpoint is the user's to mend; a system that lacks something is to be lived with.
  const bool users = absl::IsInvalidArgument(shm.status()) || absl::IsAlreadyExists(shm.status());
  if (!shm.ok() && (needed || users)) return shm.status();
  if (!shm.ok()) {
    Log(absl::StrCat("no shared memory here: ", std::string(shm.status().message())));
    return absl::OkStatus();
  }
  shm_ = *std::move(shm);
  shm_->SetReceiver(Hand());
  return absl::OkStatus();
}

Transport::Receiver PathTransport::Hand() {
  return [this](NodeId from, Frame frame) {
    if (receiver_) receiver_(from, std::move(frame));
  };
}

absl::Status PathTransport::Connect(NodeId peer, const std::string& endpoint) {
  auto known = peers_.find(peer);
  if (known != peers_.end() && known->second.endpoint == endpoint) return absl::OkStatus();
  absl::StatusOr<Paths> paths = SplitRemote(endpoint);
  if (!paths.ok()) return paths.status();
  // The socket's file is looked for once; a path that is taken is kept.
  const bool ipc = !paths->ipc.empty() && (paths->tcp.empty() || IsSocket(paths->ipc_file));
  const std::string other = ipc ? paths->ipc : paths->tcp;
  // ZeroMQ knows best how to go from one of its connections to the next.
  const bool stays =
      known != peers_.end() && known->second.path == zmq_.get() && paths->shm.empty();
  if (!stays) Disconnect(peer);
  std::string why;
  if (!paths->shm.empty()) {
    absl::Status status = shm_ == nullptr ? absl::UnavailableError("there is no shared memory here")
                                          : shm_->Connect(peer, paths->shm);
    if (status.ok()) {
      peers_[peer] = {endpoint, other, shm_.get()};
      return status;
    }
    if (absl::IsInvalidArgument(status)) return status;
    why = absl::StrCat("; shared memory: ", std::string(status.message()));
  }
  if (other.empty()) {
    return absl::UnavailableError(
        absl::StrFormat("node %s at %s cannot be reached%s", ToString(peer), endpoint, why));
  }
  absl::Status status = ConnectByZmq(peer, other, why);
  if (status.ok()) peers_[peer] = {endpoint, "", zmq_.get()};
  return status;
}

absl::Status PathTransport::ConnectByZmq(NodeId peer, const std::string& endpoint,
                                         const std::string& why) {
  absl::Status status = zmq_->Connect(peer, endpoint);
  if (status.ok()) Log(absl::StrFormat("node %s over %s%s", ToString(peer), endpoint, why));
  return status;
}

void PathTransport::OnUnreachable(NodeId peer, const absl::Status& why, std::vector<Frame> frames) {
  auto known = peers_.find(peer);
  if (known == peers_.end()) return;
  const std::string reason = absl::StrCat("; shared memory: ", std::string(why.message()));
  const std::string other = std::exchange(known->second.other, "");
  if (other.empty()) {
    Log(absl::StrFormat("node %s at %s cannot be reached%s", ToString(peer), known->second.endpoint,
                        reason));
    peers_.erase(known);
    return;
  }
  known->second.path = zmq_.get();
  absl::Status status = ConnectByZmq(peer, other, reason);
  if (!status.ok()) {
    // Forgotten, so that another Connect tries again.
    peers_.erase(peer);
    return Log(std::string(status.message()));
  }
  // Those that do not fit are lost, as any frame may be.
  for (Frame& frame : frames) zmq_->Send(peer, std::move(frame)).IgnoreError();
}

void PathTransport::Disconnect(NodeId peer) {
  auto known = peers_.find(peer);
  if (known == peers_.end()) return;
  known->second.path->Disconnect(peer);
  peers_.erase(known);
}

absl::Status PathTransport::Send(NodeId to, Frame frame) {
  auto known = peers_.find(to);
  if (known != peers_.end()) return known->second.path->Send(to, std::move(frame));
  if (shm_ != nullptr && shm_->Knows(to)) return shm_->Send(to, std::move(frame));
  return zmq_->Send(to, std::move(frame));
}

TransportCounters PathTransport::counters() const {
  TransportCounters sum = zmq_->counters();
  if (shm_ == nullptr) return sum;
  const TransportCounters shm = shm_->counters();
  sum.frames_in += shm.frames_in;
  sum.frames_out += shm.frames_out;
  sum.bytes_in += shm.bytes_in;
  sum.bytes_out += shm.bytes_out;
  sum.refused += shm.refused;
  sum.dropped += shm.dropped;
  return sum;
}

void PathTransport::SetPeerGone(PeerGone gone) {
  peer_gone_ = std::move(gone);
  zmq_->SetPeerGone([this](NodeId peer) { peer_gone_(peer); });
  if (shm_ != nullptr) shm_->SetPeerGone([this](NodeId peer) { peer_gone_(peer); });
}

void PathTransport::Log(const std::string& line) {
  if (options_.log) options_.log(line);
}

}  // namespace parley
