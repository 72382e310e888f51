#include "scheduler/assignment.h"

#include <set>

#include "absl/strings/str_format.h"
#include "ps/base/sparse_layout.h"

namespace parley {

absl::StatusOr<pb::Assignment> MakeAssignment(const pb::Register& tables,
                                              const std::vector<Member*>& servers,
                                              const std::vector<Member*>& workers) {
  pb::Assignment assignment;
  pb::PartitionMap* map = assignment.mutable_map();
  map->set_epoch(1);
  for (const Member* server : servers) {
    pb::ShardAddress* shard = map->add_shard();
    shard->set_node(Value(server->node));
    shard->set_server_rank(server->rank);
    shard->set_shard(server->shard);
    shard->set_endpoint(server->endpoint);
    shard->set_incarnation(server->incarnation);
  }
  std::set<uint32_t> ids;
  size_t next = 0;  // goes on from table to table: the remainder of each falls to other shards
  for (const pb::TableSpec& table : tables.table()) {
    if (!ids.insert(table.id()).second) {
      return absl::InvalidArgumentError(
          absl::StrFormat("table '%s': id %d is another table's", table.name(), table.id()));
    }
    absl::StatusOr<uint32_t> partitions = TablePartitions(table);
    if (!partitions.ok()) return partitions.status();
    *assignment.add_table() = table;
    pb::TableMap* owners = map->add_table();
    owners->set_table(table.id());
    for (uint32_t p = 0; p < *partitions; ++p) {
      owners->add_owner(static_cast<uint32_t>(next++ % servers.size()));
    }
  }
  assignment.set_workers(workers.size());
  assignment.set_data_parts(workers.size());
  for (const Member* worker : workers) {
    assignment.add_worker_incarnation(worker->incarnation);
    assignment.add_worker_node(Value(worker->node));
  }
  return assignment;
}

}  // namespace parley
