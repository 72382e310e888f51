// Which copies of a table's partitions a shard holds by a map, and who holds the others. Pure.
#ifndef PARLEY_PS_SERVER_PARTITION_PLACES_H_
#define PARLEY_PS_SERVER_PARTITION_PLACES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/cluster.pb.h"
#include "ps/base/ids.h"

namespace parley {

// A copy beside the primary's.
struct BackupPlace {
  NodeId node = kNoNode;
  bool synced = false;   // as the map has it
  uint64_t since = 0;    // pb::Backup's: another one at the same node is another copy
  std::string endpoint;  // where it is reached
  std::string name;      // "server 1 shard 0 (tcp://10.0.0.3:41234)", for people
};

enum class PartitionRole { kNone, kPrimary, kBackup };

struct PartitionPlace {
  PartitionRole role = PartitionRole::kNone;
  NodeId primary = kNoNode;
  std::vector<BackupPlace> backups;  // of a primary
};

// "server 1 shard 0 (tcp://10.0.0.3:41234)".
std::string ShardName(const pb::ShardAddress& shard);

// The table's part of the map; null if it has none.
const pb::TableMap* FindTableMap(const pb::PartitionMap& map, uint32_t table);

// By partition, what `self` has of it. kInvalidArgument: the map does not give each partition an
// owner among its shards, or names a backup that cannot be: of no partition or no shard, twice, or
// where the primary is.
absl::StatusOr<std::vector<PartitionPlace>> PlacesOf(const pb::TableSpec& table,
                                                     const pb::PartitionMap& map, NodeId self);

}  // namespace parley

#endif  // PARLEY_PS_SERVER_PARTITION_PLACES_H_
