// PartitionRoles: what this shard is, primary or copy, for each partition of each table, and what
// has to be done when a map says that it is something else.
//
//   is      | shall be | action
//   --------+----------+---------------------------------------------------------------------------
//   nothing | copy     | an empty one, which its primary brings up
//   nothing | primary  | refused, but where a generation begins: first weights, or a checkpoint's
//   primary | primary  | its copies may be others
//   primary | copy     | forgotten; an empty one, which the new primary brings up
//   copy    | primary  | promoted as it is; refused if there is nothing to promote
//   copy    | copy     | maybe of another primary, which brings it up again
//   any     | nothing  | forgotten
//
// Owned by one loop; not thread-safe.
#ifndef PARLEY_PS_SERVER_PARTITION_ROLES_H_
#define PARLEY_PS_SERVER_PARTITION_ROLES_H_

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "proto/cluster.pb.h"
#include "ps/server/hosted_table.h"
#include "ps/server/partition_places.h"
#include "ps/server/replication.h"

namespace parley {

class PartitionRoles {
 public:
  using Tables = std::map<uint32_t, std::unique_ptr<HostedTable>>;
  struct Hooks {
    // These are about to be given up: nothing may refer to them afterwards.
    absl::AnyInvocable<void(const std::set<const HostedPartition*>&)> on_give_up;
    absl::AnyInvocable<void(uint32_t table, uint32_t partition, NormGroup, double)> request_norm;
    // To a primary about its copy here.
    absl::AnyInvocable<void(NodeId, const pb::FrameHeader&, const absl::Status&)> answer;
  };

  // `replication` must outlive this.
  PartitionRoles(NodeId self, Replication* replication, Hooks hooks)
      : self_(self), replication_(replication), hooks_(std::move(hooks)) {}

  // A generation begins: forgets everything, makes the tables, and partitions with first weights.
  // kInvalidArgument: what cannot be, by HostedTable::Create and PlacesOf. kResourceExhausted: no
  // memory. After an error there are no tables.
  absl::Status Begin(const pb::Assignment& assignment, const HostedTable::Context& context);

  // A later map of the generation. kFailedPrecondition: it wants a primary where there is nothing,
  // or other tables. After an error nothing has changed.
  absl::Status Move(const pb::Assignment& assignment);

  // After either, once state and connections are there: primaries send to their copies from now on,
  // and take pushes of these workers.
  void Activate(const pb::Assignment& assignment);

  // Gives up everything.
  void Clear();

  const Tables& tables() const { return tables_; }
  // The table, or null.
  HostedTable* Find(uint32_t table) const;
  // Partitions that this shard is primary of, table by table.
  std::vector<HostedPartition*> primaries() const;

 private:
  using Places = std::map<uint32_t, std::vector<PartitionPlace>>;  // by table

  absl::Status CheckMove(const pb::Assignment& assignment, Places* places) const;
  void Change(HostedTable& table, uint32_t partition, const PartitionPlace& place,
              std::vector<std::unique_ptr<HostedPartition>>* given_up);
  void AddBackup(HostedTable& table, uint32_t partition, NodeId primary);

  const NodeId self_;
  Replication* const replication_;
  Hooks hooks_;
  Tables tables_;
  Places places_;
  std::vector<uint32_t> incarnations_;  // of workers, by rank
};

}  // namespace parley

#endif  // PARLEY_PS_SERVER_PARTITION_ROLES_H_
