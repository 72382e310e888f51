// A few nodes on one kind of Transport, for tests that ask the same of every kind.
//
// The real kinds give each node a thread of its own, as a cluster does; the simulated one runs all
// in the test's thread. A test talks to a node through Do and looks at what it received through
// Received and WaitFor.
#ifndef PARLEY_TESTS_CONFORMANCE_TRANSPORT_RIG_H_
#define PARLEY_TESTS_CONFORMANCE_TRANSPORT_RIG_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "ps/net/security.h"
#include "ps/net/transport.h"

namespace parley {

struct ReceivedFrame {
  NodeId from;
  Frame frame;
};

class TransportRig {
 public:
  struct Node {
    bool listens = true;
    std::string endpoint = "";  // to listen on; empty: one that is free
    int queue_frames = 1000;
    size_t max_part_bytes = size_t{80} << 20;
    size_t max_parts = 16384;
    // Of "tcp" and "curve".
    int max_connections = 4096;
    absl::Duration handshake = absl::Seconds(5);
    // Of the kinds with tcp. "curve" gives keys to those that have none.
    std::shared_ptr<const NodeKeys> keys = nullptr;
    std::function<void(const std::string&)> log = nullptr;  // called on the node's loop
  };

  virtual ~TransportRig() = default;

  // Starts a node; its endpoint.
  virtual std::string Start(NodeId id, Node node) = 0;
  std::string Start(NodeId id) { return Start(id, Node{}); }
  // Ends it. What it received stays.
  virtual void End(NodeId id) = 0;
  // Runs `task` on the node's loop and returns when it is done.
  virtual void Do(NodeId id, std::function<void(Transport&)> task) = 0;
  // Lets time pass until `pred` holds, which is asked again and again; false after a long while.
  virtual bool WaitFor(std::function<bool()> pred) = 0;
  // Copies of the frames that reached the node of this id, in order of arrival, and their number.
  virtual std::vector<ReceivedFrame> Received(NodeId id) = 0;
  virtual size_t ReceivedCount(NodeId id) = 0;

  absl::Status Connect(NodeId id, NodeId peer, const std::string& endpoint);
  absl::Status Send(NodeId id, NodeId to, Frame frame);
  TransportCounters Counters(NodeId id);
  bool WaitForFrames(NodeId id, size_t count);
};

// "sim", "tcp", "ipc", "shm", "path" with all of them, or "curve": tcp with keys.
std::unique_ptr<TransportRig> MakeTransportRig(const std::string& kind);

// Keys of a new pair, which nobody has authorized yet.
NodeKeys MakeNodeKeys(PeerRole role);

// A PUSH with the number as its tick and one part for each payload (sizes are multiples of 4).
Frame MakeFrame(uint64_t number, std::vector<Buffer> payload = {});

// Pseudo-random bytes.
Buffer Noise(uint64_t seed, size_t size);

// A path for a socket that no other test and no other process uses.
std::string FreshSocketPath();

}  // namespace parley

#endif  // PARLEY_TESTS_CONFORMANCE_TRANSPORT_RIG_H_
