// SparseClient: the SparseTable that talks to servers.
#ifndef PARLEY_WORKER_CLIENT_SPARSE_CLIENT_H_
#define PARLEY_WORKER_CLIENT_SPARSE_CLIENT_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/cluster.pb.h"
#include "ps/codec/payload_codec.h"
#include "worker/client/client_core.h"
#include "worker/client/key_split.h"
#include "worker/client/sparse_codecs.h"
#include "worker/client/sparse_request.h"
#include "worker/client/sparse_table.h"
#include "worker/client/sparse_updates.h"

namespace parley {

class SparseClient : public SparseTable {
 public:
  // `core` must outlive this. `route` covers all partitions. kInvalidArgument: the table cannot be,
  // or one of its codecs.
  static absl::StatusOr<std::unique_ptr<SparseClient>> Create(ClientCore* core,
                                                              const pb::TableSpec& table,
                                                              TableRoute route);

  // Partitions have moved, and there may be more shards; what is under way is looked at by the
  // queues, which are paused.
  void SetRoute(TableRoute route);

  uint32_t dim() const override { return shared_.layout.dim(); }
  void Pull(uint64_t tick, absl::Span<const uint64_t> keys, float* rows, OnPulled done) override;
  void Push(uint64_t tick, double weight, absl::Span<const uint64_t> keys, const float* gradients,
            absl::AnyInvocable<void()> done) override;
  void Update(absl::Span<const uint64_t> keys, const float* gradients,
              absl::AnyInvocable<void()> done) override {
    updates_.Add(keys, gradients, std::move(done));
  }
  uint64_t updates_open() const override { return updates_.open(); }

 private:
  struct PullCall;
  struct PushCall;
  // Messages of one call that are being filled, by shard.
  using Open = std::vector<std::unique_ptr<SparseRequest>>;

  SparseClient(SparseShared shared, SparsePushEncoder encoder,
               std::unique_ptr<PayloadCodec> pull_codec);
  std::unique_ptr<KeySplit> Split(absl::Span<const uint64_t> keys);
  void SendPull(const std::shared_ptr<PullCall>& call, uint32_t shard,
                std::unique_ptr<SparseRequest> request);
  absl::Status TakeRows(PullCall& call, const SparseRequest& request, const Frame& answer,
                        bool last);
  void FinishPull(PullCall& call);
  std::vector<std::vector<uint32_t>> PushGroups(const KeySplit& split) const;
  void SendPush(const std::shared_ptr<PushCall>& call, const std::vector<uint32_t>& partitions,
                const float* gradients);
  void AddRun(uint32_t partition, const KeySplit& split, const float* gradients, uint64_t* used,
              SparseRequest* request);

  SparseShared shared_;
  SparsePushEncoder encoder_;
  const std::unique_ptr<PayloadCodec> pull_codec_;  // null: plain floats
  SparseUpdates updates_;
  KeySplitter splitter_;
  std::vector<std::unique_ptr<KeySplit>> idle_splits_;  // their memory is used again
  std::vector<float> scratch_;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // for late callbacks
};

}  // namespace parley

#endif  // PARLEY_WORKER_CLIENT_SPARSE_CLIENT_H_
