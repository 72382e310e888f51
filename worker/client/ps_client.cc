#include "worker/client/ps_client.h"

#include <algorithm>
#include <cassert>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"
#include "ps/base/sparse_layout.h"
#include "worker/client/client_core.h"
#include "worker/client/dense_client.h"
#include "worker/client/leaving.h"
#include "worker/client/shard_queues.h"
#include "worker/client/sparse_client.h"

namespace parley {
namespace {

// The owners of a table's partitions, as indexes into the map's shards.
absl::StatusOr<TableRoute> RouteOf(uint32_t table, uint32_t partitions,
                                   const pb::PartitionMap& map) {
  for (const pb::TableMap& owners : map.table()) {
    if (owners.table() != table) continue;
    if (static_cast<uint32_t>(owners.owner_size()) != partitions) {
      return absl::InvalidArgumentError(
          absl::StrFormat("assignment: the map of table %d has %d owners, expected is one for each "
                          "of %d partitions",
                          table, owners.owner_size(), partitions));
    }
    TableRoute route{.table = table, .owner = {}};
    for (uint32_t owner : owners.owner()) {
      if (owner >= static_cast<uint32_t>(map.shard_size())) {
        return absl::InvalidArgumentError(absl::StrFormat(
            "assignment: partition %d of table %d is owned by shard %d, allowed is less than %d",
            route.owner.size(), table, owner, map.shard_size()));
      }
      route.owner.push_back(owner);
    }
    return route;
  }
  return absl::InvalidArgumentError(
      absl::StrFormat("assignment: it has no partition map of table %d", table));
}

class PsClientImpl : public PsClient {
 public:
  PsClientImpl(Env* env, Rpc* rpc, Options options)
      : leaving_(&core_),
        queues_(env, rpc,
                {.rank = options.rank,
                 .incarnation = options.incarnation,
                 .progress_timeout = options.progress_timeout,
                 .on_error = std::move(options.on_error),
                 .log = std::move(options.log)}) {
    core_.env = env;
    core_.queues = &queues_;
    core_.pool = options.pool != nullptr ? options.pool : &own_pool_;
    core_.mover = options.mover;
    core_.max_request_bytes = options.max_request_bytes;
    core_.max_part_bytes = options.max_part_bytes;
  }

  absl::Status Init(const pb::Assignment& assignment) {
    for (const pb::TableSpec& spec : assignment.table()) {
      absl::StatusOr<uint32_t> partitions = TablePartitions(spec);
      if (!partitions.ok()) return partitions.status();
      routes_[spec.id()].owner.resize(*partitions);
    }
    absl::StatusOr<Routes> routes = RoutesOf(assignment.map());
    if (!routes.ok()) return routes.status();
    TakeShards(assignment.map(), &*routes);
    routes_ = *std::move(routes);
    for (const pb::TableSpec& spec : assignment.table()) {
      const TableRoute& route = routes_[spec.id()];
      if (spec.has_sparse()) {
        auto table = SparseClient::Create(&core_, spec, route);
        if (!table.ok()) return table.status();
        sparse_[spec.id()] = *std::move(table);
        continue;
      }
      auto table = DenseClient::Create(&core_, spec, route);
      if (!table.ok()) return table.status();
      dense_[spec.id()] = *std::move(table);
    }
    return absl::OkStatus();
  }

  absl::Status OnMap(const pb::PartitionMap& map) override {
    if (map.epoch() <= core_.epoch) return absl::OkStatus();
    absl::StatusOr<Routes> routes = RoutesOf(map);
    if (!routes.ok()) return routes.status();
    queues_.Pause();
    TakeShards(map, &*routes);
    std::set<uint32_t> gained;
    for (const auto& [table, route] : *routes) {
      const TableRoute& before = routes_[table];
      for (size_t p = 0; p < route.owner.size(); ++p) {
        if (route.owner[p] != before.owner[p]) gained.insert(route.owner[p]);
      }
      if (const auto found = dense_.find(table); found != dense_.end()) {
        found->second->SetRoute(route);
      } else {
        sparse_.at(table)->SetRoute(route);
      }
    }
    routes_ = *std::move(routes);
    leaving_.OnMap(gained);
    queues_.Reroute();
    leaving_.EndIfAllAnswered();
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
    leaving_.Begin(after_tick, std::move(done));
  }

  std::string WaitingFor() const override { return queues_.WaitingFor(); }
  const Counters& counters() const override { return core_.counters; }

 private:
  using Routes = std::map<uint32_t, TableRoute>;  // by table

  // Of the tables that are known. Owners are indexes into the map's shards.
  absl::StatusOr<Routes> RoutesOf(const pb::PartitionMap& map) const {
    Routes routes;
    for (const auto& [table, known] : routes_) {
      auto route = RouteOf(table, static_cast<uint32_t>(known.owner.size()), map);
      if (!route.ok()) return route.status();
      routes[table] = *std::move(route);
    }
    return routes;
  }

  // The map's shards are those of the core from now on, and the owners in `routes` their numbers.
  void TakeShards(const pb::PartitionMap& map, Routes* routes) {
    core_.epoch = map.epoch();
    core_.shards.clear();
    for (const pb::ShardAddress& shard : map.shard()) {
      core_.shards.push_back(queues_.AddShard(
          NodeId{shard.node()}, absl::StrFormat("server %d shard %d (%s)", shard.server_rank(),
                                                shard.shard(), shard.endpoint())));
    }
    core_.known.resize(queues_.shards());
    for (uint32_t shard = 0; shard < core_.known.size(); ++shard) {
      if (std::find(core_.shards.begin(), core_.shards.end(), shard) == core_.shards.end()) {
        core_.known[shard] = KnownLists();
      }
    }
    for (auto& [table, route] : *routes) {
      for (uint32_t& owner : route.owner) owner = core_.shards[owner];
    }
  }

  BufferPool own_pool_;
  ClientCore core_;
  std::map<uint32_t, std::unique_ptr<DenseClient>> dense_;
  std::map<uint32_t, std::unique_ptr<SparseClient>> sparse_;
  Routes routes_;  // by the newest map
  Leaving leaving_;
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
