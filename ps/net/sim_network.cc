#include "ps/net/sim_network.h"

#include <algorithm>
#include <cassert>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "ps/base/payload_copy.h"
#include "ps/wire/codec.h"

namespace parley {
namespace {

constexpr absl::string_view kScheme = "sim://";
constexpr double kHintLost = 0.2;  // TellGone

// A copy that starts `skew` bytes past an aligned address, since received bytes may be anywhere.
Buffer CopyOf(const Buffer& bytes, size_t skew) {
  Buffer copy = Buffer::Allocate(bytes.size() + skew).Slice(skew, bytes.size());
  CopyPayload(copy.mutable_data(), bytes.data(), bytes.size());
  return copy;
}

size_t SizeOf(const std::string& header, const std::vector<Buffer>& payload) {
  size_t size = header.size();
  for (const Buffer& buffer : payload) size += buffer.size();
  return size;
}

}  // namespace

class SimNetwork::SimTransport : public Transport {
 public:
  SimTransport(SimNetwork* network, SimEnv* env, NodeId self, std::string endpoint)
      : network_(network), env_(env), self_(self), endpoint_(std::move(endpoint)) {
    network_->by_node_[self_] = this;
    if (!endpoint_.empty()) network_->by_endpoint_[endpoint_] = this;
  }

  ~SimTransport() override {
    // Another may have taken the name since: a restarted node at the same endpoint.
    auto node = network_->by_node_.find(self_);
    if (node != network_->by_node_.end() && node->second == this) network_->by_node_.erase(node);
    auto named = network_->by_endpoint_.find(endpoint_);
    if (named != network_->by_endpoint_.end() && named->second == this) {
      network_->by_endpoint_.erase(named);
    }
  }

  NodeId self() const override { return self_; }
  std::string endpoint() const override { return endpoint_; }

  absl::Status Connect(NodeId peer, const std::string& endpoint) override {
    if (!absl::StartsWith(endpoint, kScheme) || endpoint.size() == kScheme.size()) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "endpoint '%s' of node %s: allowed is \"sim://name\"", endpoint, ToString(peer)));
    }
    peers_[peer] = endpoint;
    return absl::OkStatus();
  }

  void Disconnect(NodeId peer) override { peers_.erase(peer); }

  absl::Status Send(NodeId to, Frame frame) override {
    if (!env_->alive()) return absl::UnavailableError(absl::StrCat(env_->name(), " is dead"));
    InFlight flight;
    if (auto peer = peers_.find(to); peer != peers_.end()) {
      flight.endpoint = peer->second;
    } else if (heard_.count(to) == 0) {
      return absl::UnavailableError(absl::StrCat("no such peer: node ", ToString(to)));
    }
    frame.header.set_sender(Value(self_));
    frame.header.set_protocol(kProtocolVersion);
    if (network_->send_tap_) network_->send_tap_(self_, to, frame);
    flight.from = self_;
    flight.to = to;
    flight.header = EncodeHeader(frame.header);
    flight.payload = std::move(frame.payload);
    ++counters_.frames_out;
    counters_.bytes_out += SizeOf(flight.header, flight.payload);
    network_->Launch(std::move(flight));
    return absl::OkStatus();
  }

  void SetReceiver(Receiver receiver) override { receiver_ = std::move(receiver); }
  void SetPeerGone(PeerGone gone) override { gone_ = std::move(gone); }
  TransportCounters counters() const override { return counters_; }

  SimEnv* env() const { return env_; }
  // By Connect.
  bool Knows(const std::string& endpoint, NodeId* peer) const {
    for (const auto& [node, at] : peers_) {
      if (at != endpoint) continue;
      *peer = node;
      return true;
    }
    return false;
  }
  void Gone(NodeId peer) {
    if (gone_) gone_(peer);
  }

  void Forget(NodeId peer) { heard_.erase(peer); }

  bool alive() const { return env_->alive(); }

  // The bytes as they are now, at delivery.
  void Receive(const InFlight& flight, size_t skew, const Tap& tap) {
    std::vector<Buffer> payload;
    payload.reserve(flight.payload.size());
    for (const Buffer& buffer : flight.payload) payload.push_back(CopyOf(buffer, skew));
    absl::StatusOr<Frame> frame = DecodeFrame(flight.header, std::move(payload));
    if (!frame.ok()) {
      ++counters_.refused;
      return;
    }
    ++counters_.frames_in;
    counters_.bytes_in += SizeOf(flight.header, flight.payload);
    heard_.insert(flight.from);
    if (tap) tap(flight.from, self_, *frame);
    if (receiver_) receiver_(flight.from, *std::move(frame));
  }

 private:
  SimNetwork* const network_;
  SimEnv* const env_;
  const NodeId self_;
  const std::string endpoint_;
  std::map<NodeId, std::string> peers_;
  std::set<NodeId> heard_;
  Receiver receiver_;
  PeerGone gone_;
  TransportCounters counters_;
};

SimNetwork::SimNetwork(SimWorld* world, Options options) : world_(world), options_(options) {}

std::unique_ptr<Transport> SimNetwork::CreateTransport(SimEnv* env, NodeId self,
                                                       std::string endpoint) {
  assert(endpoint.empty() || absl::StartsWith(endpoint, kScheme));
  return std::make_unique<SimTransport>(this, env, self, std::move(endpoint));
}

void SimNetwork::Cut(NodeId a, NodeId b) { cuts_.insert({std::min(a, b), std::max(a, b)}); }

void SimNetwork::Heal() {
  cuts_.clear();
  one_way_.clear();
  isolated_.clear();
}

bool SimNetwork::IsCut(NodeId from, NodeId to) const {
  return isolated_.count(from) > 0 || isolated_.count(to) > 0 || one_way_.count({from, to}) > 0 ||
         cuts_.count({std::min(from, to), std::max(from, to)}) > 0;
}

double SimNetwork::Slowness(NodeId node) const {
  auto found = slow_.find(node);
  return found == slow_.end() ? 1 : found->second;
}

double SimNetwork::Slowness(NodeId from, NodeId to) const {
  auto found = slow_links_.find({std::min(from, to), std::max(from, to)});
  return std::max({Slowness(from), Slowness(to), found == slow_links_.end() ? 1 : found->second});
}

void SimNetwork::Launch(InFlight frame) {
  ++counters_.sent;
  if (IsCut(frame.from, frame.to)) {
    ++counters_.cut;
    return;
  }
  const bool twice = world_->RandomUnit() < options_.duplicate;
  counters_.duplicated += twice;
  auto shared = std::make_shared<InFlight>(std::move(frame));
  const double slow = Slowness(shared->from, shared->to);
  for (int copy = 0; copy < (twice ? 2 : 1); ++copy) {
    if (world_->RandomUnit() < options_.loss) {
      ++counters_.lost;
      continue;
    }
    const absl::Duration delay =
        world_->RandomDuration(options_.min_delay, options_.max_delay) * slow;
    world_->Schedule(delay, [this, shared] { Deliver(shared); });
  }
}

SimNetwork::SimTransport* SimNetwork::Find(const InFlight& frame) const {
  if (frame.endpoint.empty()) {
    auto node = by_node_.find(frame.to);
    return node == by_node_.end() ? nullptr : node->second;
  }
  auto named = by_endpoint_.find(frame.endpoint);
  return named == by_endpoint_.end() ? nullptr : named->second;
}

void SimNetwork::Deliver(const std::shared_ptr<InFlight>& frame) {
  SimTransport* const receiver = Find(*frame);
  if (receiver == nullptr || !receiver->alive()) {
    ++counters_.undeliverable;
  } else if (IsCut(frame->from, receiver->self())) {
    ++counters_.cut;
  } else if (receiver->env()->stalled_until() > world_->Now()) {
    world_->Schedule(receiver->env()->stalled_until() - world_->Now(),
                     [this, frame] { Deliver(frame); });
  } else {
    receiver->Receive(*frame, counters_.delivered++ % 8, tap_);
  }
}

void SimNetwork::TellGone(NodeId dead) {
  auto found = by_node_.find(dead);
  if (found == by_node_.end()) return;
  const SimTransport* gone = found->second;
  for (const auto& [node, transport] : by_node_) {
    if (node == dead) continue;
    NodeId peer = kNoNode;
    const bool connected = !gone->endpoint().empty() && transport->Knows(gone->endpoint(), &peer);
    NodeId unused;
    if (!connected &&
        (transport->endpoint().empty() || !gone->Knows(transport->endpoint(), &unused))) {
      continue;
    }
    if (world_->RandomUnit() < kHintLost) continue;
    world_->Schedule(world_->RandomDuration(options_.min_delay, options_.max_delay),
                     [this, observer = node, dead, peer] { Gone(observer, dead, peer); });
  }
}

void SimNetwork::Gone(NodeId observer, NodeId dead, NodeId peer) {
  auto found = by_node_.find(observer);
  if (found == by_node_.end() || !found->second->alive()) return;
  found->second->Forget(dead);
  found->second->Gone(peer);
}

}  // namespace parley
