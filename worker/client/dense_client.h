// DenseClient: the DenseTable that talks to servers.
#ifndef PARLEY_WORKER_CLIENT_DENSE_CLIENT_H_
#define PARLEY_WORKER_CLIENT_DENSE_CLIENT_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/cluster.pb.h"
#include "ps/wire/frame.h"
#include "worker/client/client_core.h"
#include "worker/client/dense_codecs.h"
#include "worker/client/dense_table.h"
#include "worker/client/push_stream.h"

namespace parley {

class DenseClient : public DenseTable {
 public:
  // `core` must outlive this. `route` covers all partitions. kInvalidArgument: the table cannot be,
  // or one of its codecs.
  static absl::StatusOr<std::unique_ptr<DenseClient>> Create(ClientCore* core,
                                                             const pb::TableSpec& table,
                                                             TableRoute route);

  // Partitions have moved; what is under way is looked at by the queues, which are paused.
  void SetRoute(TableRoute route) { route_ = std::move(route); }

  const DenseLayout& layout() const override { return *layout_; }
  void Pull(uint64_t tick, float* parameters, OnArrived on_arrived, OnPulled done) override;
  void Push(uint64_t tick, double weight, absl::Span<const uint32_t> partitions,
            const Buffer& gradients) override;
  void BeginPull(uint64_t tick, float* parameters, OnArrived on_arrived, OnPulled done) override;
  void PushPull(uint64_t tick, double weight, absl::Span<const uint32_t> partitions,
                const Buffer& gradients) override;

 private:
  class Request;  // a push, a pull or both
  struct OpenPull {
    bool active = false;
    uint64_t tick = 0;
    float* parameters = nullptr;
    uint32_t missing = 0;  // partitions
    PullResult result;
    OnArrived on_arrived;
    OnPulled done;
  };

  DenseClient(ClientCore* core, std::unique_ptr<DenseLayout> layout, TableRoute route,
              DensePushEncoder encoder, DensePullDecoder decoder);
  std::vector<std::vector<uint32_t>> Group(absl::Span<const uint32_t> partitions) const;
  void Send(absl::Span<const uint32_t> partitions, const Request& like);
  absl::Status TakeAnswer(const std::vector<uint32_t>& partitions, const Frame& answer);
  void AfterAnswer(const std::vector<uint32_t>& partitions);

  ClientCore* const core_;
  const std::unique_ptr<DenseLayout> layout_;
  TableRoute route_;
  DensePushEncoder encoder_;
  DensePullDecoder decoder_;
  // All of it, at each shard of the first map: the lane for small messages. For good, since all
  // pushes of a partition take one lane.
  bool small_ = true;
  std::vector<PushStream> streams_;  // by partition
  OpenPull pull_;
};

}  // namespace parley

#endif  // PARLEY_WORKER_CLIENT_DENSE_CLIENT_H_
