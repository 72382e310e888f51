#include "worker/client/ps_client.h"

#include <cassert>
#include <map>
#include <utility>

#include "absl/strings/str_format.h"
#include "ps/base/sparse_layout.h"
#include "worker/client/client_core.h"
#include "worker/client/dense_client.h"
#include "worker/client/shard_queues.h"
#include "worker/client/sparse_client.h"

namespace parley {
namespace {

// The owners of `spec`'s partitions, as the map says.
absl::StatusOr<TableRoute> RouteOf(const pb::TableSpec& spec, const pb::PartitionMap& map) {
  absl::StatusOr<uint32_t> partitions = TablePartitions(spec);
  if (!partitions.ok()) return partitions.status();
  for (const pb::TableMap& owners : map.table()) {
    if (owners.table() != spec.id()) continue;
    if (static_cast<uint32_t>(owners.owner_size()) != *partitions) {
      return absl::InvalidArgumentError(
          absl::StrFormat("assignment: the map of table %d has %d owners, expected is one for each "
                          "of %d partitions",
                          spec.id(), owners.owner_size(), *partitions));
    }
    TableRoute route{.table = spec.id(), .owner = {}};
    for (uint32_t owner : owners.owner()) {
      if (owner >= static_cast<uint32_t>(map.shard_size())) {
        return absl::InvalidArgumentError(absl::StrFormat(
            "assignment: partition %d of table %d is owned by shard %d, allowed is less than %d",
            route.owner.size(), spec.id(), owner, map.shard_size()));
      }
      route.owner.push_back(owner);
    }
    return route;
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("assignment: it has no partition map of table %d", spec.id()));
}

class LeaveRequest : public ShardRequest {
 public:
  LeaveRequest(const ClientCore* core, uint64_t after_tick, absl::AnyInvocable<void()> done)
      : ShardRequest(Kind::kLeave), core_(core), after_tick_(after_tick), done_(std::move(done)) {
    small = true;
  }

  Frame MakeFrame() override {
    Frame frame;
    frame.header.set_kind(pb::LEAVE);
    frame.header.set_epoch(core_->epoch);
    pb::Leave leave;
    leave.set_after_tick(after_tick_);
    frame.header.set_body(leave.SerializeAsString());
    return frame;
  }
  std::string What(const std::string& shard) const override {
    return absl::StrFormat("leave after %d steps to %s", after_tick_, shard);
  }
  absl::Status OnAnswer(Frame) override {
    done_();
    return absl::OkStatus();
  }

 private:
  const ClientCore* const core_;
  const uint64_t after_tick_;
  absl::AnyInvocable<void()> done_;
};

class PsClientImpl : public PsClient {
 public:
  PsClientImpl(Env* env, Rpc* rpc, Options options)
      : queues_(rpc, {.progress_timeout = options.progress_timeout,
                      .on_error = std::move(options.on_error),
                      .log = std::move(options.log)}) {
    core_.env = env;
    core_.queues = &queues_;
    core_.pool = options.pool != nullptr ? options.pool : &own_pool_;
    core_.max_request_bytes = options.max_request_bytes;
    core_.max_part_bytes = options.max_part_bytes;
  }

  absl::Status Init(const pb::Assignment& assignment) {
    core_.epoch = assignment.map().epoch();
    for (const pb::ShardAddress& shard : assignment.map().shard()) {
      queues_.AddShard(NodeId{shard.node()},
                       absl::StrFormat("server %d shard %d (%s)", shard.server_rank(),
                                       shard.shard(), shard.endpoint()));
    }
    core_.known.resize(queues_.shards());
    for (const pb::TableSpec& spec : assignment.table()) {
      absl::StatusOr<TableRoute> route = RouteOf(spec, assignment.map());
      if (!route.ok()) return route.status();
      if (spec.has_sparse()) {
        auto table = SparseClient::Create(&core_, spec, *std::move(route));
        if (!table.ok()) return table.status();
        sparse_[spec.id()] = *std::move(table);
        continue;
      }
      auto table = DenseClient::Create(&core_, spec, *std::move(route));
      if (!table.ok()) return table.status();
      dense_[spec.id()] = *std::move(table);
    }
    return absl::OkStatus();
  }

  DenseTable* dense(uint32_t table) override {
    const auto found = dense_.find(table);
    return found == dense_.end() ? nullptr : found->second.get();
  }
  SparseTable* sparse(uint32_t table) override {
    const auto found = sparse_.find(table);
    return found == sparse_.end() ? nullptr : found->second.get();
  }

  void WhenAllAcknowledged(absl::AnyInvocable<void()> done) override {
    queues_.WhenAllAcknowledged(std::move(done));
  }

  void Leave(uint64_t after_tick, absl::AnyInvocable<void()> done) override {
    assert(queues_.pushes_open() == 0);
    leaves_missing_ = queues_.shards();
    on_left_ = std::move(done);
    for (uint32_t shard = 0; shard < queues_.shards(); ++shard) {
      queues_.Enqueue(shard, std::make_unique<LeaveRequest>(&core_, after_tick, [this] {
                        if (--leaves_missing_ == 0) std::exchange(on_left_, nullptr)();
                      }));
    }
  }

  std::string WaitingFor() const override { return queues_.WaitingFor(); }
  const Counters& counters() const override { return core_.counters; }

 private:
  BufferPool own_pool_;
  ClientCore core_;
  std::map<uint32_t, std::unique_ptr<DenseClient>> dense_;
  std::map<uint32_t, std::unique_ptr<SparseClient>> sparse_;
  size_t leaves_missing_ = 0;
  absl::AnyInvocable<void()> on_left_;
  ShardQueues queues_;  // goes first: its requests refer to the tables
};

}  // namespace

absl::StatusOr<std::unique_ptr<PsClient>> PsClient::Create(Env* env, Rpc* rpc,
                                                           const pb::Assignment& assignment,
                                                           Options options) {
  auto client = std::make_unique<PsClientImpl>(env, rpc, std::move(options));
  absl::Status status = client->Init(assignment);
  if (!status.ok()) return status;
  return client;
}

}  // namespace parley
