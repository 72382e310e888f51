// SimNetwork: the Transport of a simulated cluster, with every fault a network has.
//
// Frames of one SimWorld are delayed at random (which reorders them), lost, duplicated, and cut off
// by partitions, all from the world's seed. Each goes through the real codec: the header is encoded
// at Send and decoded at delivery. Payload Buffers are held by reference until delivery, as a
// zero-copy transport holds them, so that whoever writes to bytes that are still being sent sees
// the corruption here; the receiver gets a copy of its own, taken at delivery and, as with real
// transports, not always aligned.
//
// Thread-safety: none, as SimWorld.
#ifndef PARLEY_PS_NET_SIM_NETWORK_H_
#define PARLEY_PS_NET_SIM_NETWORK_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "ps/base/ids.h"
#include "ps/base/sim_env.h"
#include "ps/net/transport.h"

namespace parley {

// What became of all frames. sent + duplicated = lost + cut + undeliverable + delivered + in
// flight.
struct SimNetworkCounters {
  uint64_t sent = 0, duplicated = 0, delivered = 0;
  uint64_t lost = 0;           // by chance
  uint64_t cut = 0;            // by Cut and Isolate
  uint64_t undeliverable = 0;  // nobody there: never started, destroyed or killed
};

// REQUIRES: outlives its transports and every further event of the world.
class SimNetwork {
 public:
  struct Options {
    absl::Duration min_delay = absl::Microseconds(50);  // of one frame, one way
    absl::Duration max_delay = absl::Milliseconds(1);
    double loss = 0;       // probability that a frame vanishes
    double duplicate = 0;  // probability that it arrives twice, each copy with its own delay
  };
  using Tap = std::function<void(NodeId from, NodeId to, const Frame& frame)>;

  SimNetwork(SimWorld* world, Options options);
  SimNetwork(const SimNetwork&) = delete;
  SimNetwork& operator=(const SimNetwork&) = delete;

  // Holds for frames sent from now on.
  void SetOptions(Options options) { options_ = options; }
  const Options& options() const { return options_; }

  // No frame passes between the two, or between the node and anybody; those under way are lost.
  void Cut(NodeId a, NodeId b);
  void Isolate(NodeId node) { isolated_.insert(node); }
  // Frames of `from` do not reach `to`; the other way all is well.
  void CutOneWay(NodeId from, NodeId to) { one_way_.insert({from, to}); }
  // Undoes all cuts and isolations. Loss, duplication and slowness stay.
  void Heal();
  // Frames to and from `node` take `factor` times as long; 1 is normal.
  void SetSlow(NodeId node, double factor) { slow_[node] = factor; }
  // The same of those between the two alone.
  void SetSlowLink(NodeId a, NodeId b, double factor) {
    slow_links_[{std::min(a, b), std::max(a, b)}] = factor;
  }

  // After SimEnv::Kill of a node that listened, or was heard from: those that connected to it, and
  // those it had connected to (which cannot tell who it was), hear from their transports that a
  // connection broke - or, by chance, some do not. To those that hear of it it is no peer any more
  // unless they Connect to it.
  void TellGone(NodeId dead);

  // Called with every frame at its delivery, just before the receiver: for checkers.
  void SetTap(Tap tap) { tap_ = std::move(tap); }
  // The same when it is sent, whether or not it will arrive.
  void SetSendTap(Tap tap) { send_tap_ = std::move(tap); }

  // `endpoint` is "sim://name", or empty for a node that does not listen. Frames sent to an
  // endpoint go to the transport that has it when they arrive; of several the newest. A peer heard
  // from can be answered without Connect, as long as its transport lives. A node that stands still
  // (SimEnv::Stall) receives what comes meanwhile afterwards. Destroying the transport
  // takes it off the network; killing `env` silences it.
  std::unique_ptr<Transport> CreateTransport(SimEnv* env, NodeId self, std::string endpoint);

  const SimNetworkCounters& counters() const { return counters_; }

 private:
  class SimTransport;
  struct InFlight {
    NodeId from, to;
    std::string endpoint;  // where `to` is reached; empty: by its NodeId
    std::string header;    // encoded
    std::vector<Buffer> payload;
  };

  void Launch(InFlight frame);
  void Deliver(const std::shared_ptr<InFlight>& frame);
  // `peer`: `dead`, as far as the observer can tell.
  void Gone(NodeId observer, NodeId dead, NodeId peer);
  bool IsCut(NodeId from, NodeId to) const;
  double Slowness(NodeId node) const;
  double Slowness(NodeId from, NodeId to) const;  // of their link, and of both
  SimTransport* Find(const InFlight& frame) const;

  SimWorld* const world_;
  Options options_;
  Tap tap_, send_tap_;
  SimNetworkCounters counters_;
  // Ordered containers throughout: nothing may depend on a hash's seed.
  std::set<std::pair<NodeId, NodeId>> cuts_, one_way_;  // one_way_: from, to
  std::set<NodeId> isolated_;
  std::map<NodeId, double> slow_;
  std::map<std::pair<NodeId, NodeId>, double> slow_links_;
  std::map<NodeId, SimTransport*> by_node_;
  std::map<std::string, SimTransport*> by_endpoint_;
};

}  // namespace parley

#endif  // PARLEY_PS_NET_SIM_NETWORK_H_
