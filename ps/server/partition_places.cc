#include "ps/server/partition_places.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "ps/base/sparse_layout.h"

namespace parley {
namespace {

absl::Status CheckOwners(const pb::TableSpec& table, const pb::PartitionMap& map,
                         const pb::TableMap* owners, uint32_t partitions) {
  if (owners == nullptr || static_cast<uint32_t>(owners->owner_size()) != partitions) {
    return absl::InvalidArgumentError(
        absl::StrFormat("table '%s': the map does not name an owner for each of its %d partitions",
                        table.name(), partitions));
  }
  for (uint32_t owner : owners->owner()) {
    if (owner >= static_cast<uint32_t>(map.shard_size())) {
      return absl::InvalidArgumentError(absl::StrFormat("owner %d is no shard of the map", owner));
    }
  }
  return absl::OkStatus();
}

absl::Status AddBackup(const pb::TableSpec& table, const pb::PartitionMap& map,
                       const pb::Backup& backup, NodeId self, std::vector<PartitionPlace>* places) {
  const auto error = [&](const char* what) {
    return absl::InvalidArgumentError(
        absl::StrFormat("table '%s', partition %d: its backup at shard %d %s", table.name(),
                        backup.partition(), backup.shard(), what));
  };
  if (backup.partition() >= places->size()) return error("is of no partition of the table");
  if (backup.shard() >= static_cast<uint32_t>(map.shard_size())) {
    return error("is at no shard of the map");
  }
  const pb::ShardAddress& shard = map.shard(static_cast<int>(backup.shard()));
  PartitionPlace& place = (*places)[backup.partition()];
  const NodeId node{shard.node()};
  if (node == place.primary) return error("is where the primary is");
  if (node == self) {
    if (place.role == PartitionRole::kBackup) return error("is named twice");
    place.role = PartitionRole::kBackup;
  }
  if (std::any_of(place.backups.begin(), place.backups.end(),
                  [&](const BackupPlace& other) { return other.node == node; })) {
    return error("is named twice");
  }
  if (place.role == PartitionRole::kPrimary) {
    place.backups.push_back(
        {node, backup.synced(), backup.since(), shard.endpoint(), ShardName(shard)});
  }
  return absl::OkStatus();
}

}  // namespace

std::string ShardName(const pb::ShardAddress& shard) {
  return absl::StrFormat("server %d shard %d (%s)", shard.server_rank(), shard.shard(),
                         shard.endpoint());
}

const pb::TableMap* FindTableMap(const pb::PartitionMap& map, uint32_t table) {
  for (const pb::TableMap& owners : map.table()) {
    if (owners.table() == table) return &owners;
  }
  return nullptr;
}

absl::StatusOr<std::vector<PartitionPlace>> PlacesOf(const pb::TableSpec& table,
                                                     const pb::PartitionMap& map, NodeId self) {
  absl::StatusOr<uint32_t> partitions = TablePartitions(table);
  if (!partitions.ok()) return partitions.status();
  const pb::TableMap* owners = FindTableMap(map, table.id());
  absl::Status status = CheckOwners(table, map, owners, *partitions);
  if (!status.ok()) return status;
  std::vector<PartitionPlace> places(*partitions);
  for (uint32_t index = 0; index < *partitions; ++index) {
    const uint32_t owner = owners->owner(static_cast<int>(index));
    places[index].primary = NodeId{map.shard(static_cast<int>(owner)).node()};
    if (places[index].primary == self) places[index].role = PartitionRole::kPrimary;
  }
  for (const pb::Backup& backup : owners->backup()) {
    status = AddBackup(table, map, backup, self, &places);
    if (!status.ok()) return status;
  }
  return places;
}

}  // namespace parley
