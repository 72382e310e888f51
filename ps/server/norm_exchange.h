// NormExchange: adds up the squares of a gradient that lies on many servers, so that clipping by
// norm means the norm of the whole gradient, as it does in one process, whatever the number of
// servers.
//
// Each shard sends the sums of its partitions for a group (a step, or a worker's tick) once all of
// them are known to the shard that owns partition 0 of the table; there the total is made in
// partition order and answered to all. Sums are float64 per partition and added in partition order:
// the total does not depend on placement or timing.
//
// One object per map. With the next map everything is asked anew, of whoever owns partition 0 then;
// some partitions may have applied a group already, so those that know its total tell it (Know).
// Owned by one loop; not thread-safe.
#ifndef PARLEY_PS_SERVER_NORM_EXCHANGE_H_
#define PARLEY_PS_SERVER_NORM_EXCHANGE_H_

#include <deque>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "proto/cluster.pb.h"
#include "ps/net/rpc.h"
#include "ps/server/hosted_partition.h"

namespace parley {

class NormExchange {
 public:
  struct Setup {
    uint32_t table = 0;
    std::vector<NodeId> owners;     // of the table's partitions, by index
    uint32_t local_partitions = 0;  // of the table on this shard
    NodeId coordinator = kNoNode;   // owner of partition 0; may be this node
    std::string coordinator_name;   // for errors
    std::string coordinator_endpoint;
    uint64_t epoch = 0;
    absl::Duration deadline;
  };
  using OnTotal = absl::AnyInvocable<void(NormGroup group, double total)>;
  using OnError = absl::AnyInvocable<void(const absl::Status&)>;

  NormExchange(Rpc* rpc, NodeId self, Setup setup, OnTotal on_total, OnError on_error);
  ~NormExchange();  // nothing that was asked is called back
  NormExchange(const NormExchange&) = delete;
  NormExchange& operator=(const NormExchange&) = delete;

  // The total of a group that a local partition has applied under an earlier map: told to the shard
  // that others ask.
  void Know(NormGroup group, double total);

  // A local partition's share of a group.
  void Add(uint32_t partition, NormGroup group, double sum_of_squares);

  // A NORM request of another shard; answered now or once the group is complete.
  void OnRequest(NodeId from, const Frame& request, const pb::Norm& norm);

 private:
  // Groups whose total is remembered: for requests that come again because the answer was lost, and
  // for local partitions that get to a group later than others here have applied it.
  static constexpr size_t kRemembered = 4096;
  // Groups open at a time: each worker has at most Aggregator::kMaxAhead.
  static constexpr size_t kMaxOpen = 65536;

  struct Collecting {
    std::map<uint32_t, double> partials;  // by partition: the order of addition
    std::map<std::pair<NodeId, uint64_t>, pb::FrameHeader> waiting;  // by sender and request id
  };
  void Ask(NormGroup group, const pb::Norm& norm);
  void Remember(NormGroup group, double total);
  void Finish(NormGroup group, double total, Collecting& collecting);
  void Collect(NormGroup group, Collecting& collecting);
  void Answer(NodeId to, const pb::FrameHeader& request, double total);

  Rpc* const rpc_;
  const NodeId self_;
  const Setup setup_;
  OnTotal on_total_;
  OnError on_error_;
  std::map<NormGroup, std::map<uint32_t, double>> local_;  // incomplete on this shard
  std::map<NormGroup, Collecting> collecting_;             // coordinator only
  std::map<NormGroup, double> totals_;                     // known here
  std::deque<NormGroup> totals_order_;
  std::map<uint64_t, CallId> calls_;  // that are under way, by a number of our own
  uint64_t next_call_ = 0;
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_NORM_EXCHANGE_H_
