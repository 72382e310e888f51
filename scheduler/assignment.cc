#include "scheduler/assignment.h"

#include "ps/base/dense_layout.h"

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
  for (const pb::TableSpec& table : tables.table()) {
    absl::StatusOr<DenseLayout> layout = DenseLayout::Create(table);
    if (!layout.ok()) return layout.status();
    *assignment.add_table() = table;
    pb::TableMap* owners = map->add_table();
    owners->set_table(table.id());
    for (uint32_t p = 0; p < layout->partitions(); ++p) owners->add_owner(p % servers.size());
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
