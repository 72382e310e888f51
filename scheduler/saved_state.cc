#include "scheduler/saved_state.h"

#include <set>
#include <string>
#include <tuple>
#include <utility>

#include "absl/strings/str_format.h"
#include "ps/base/sparse_layout.h"

namespace parley {
namespace {

// Epochs, generations and steps are counted on from here.
constexpr uint64_t kMaxCount = uint64_t{1} << 62;

absl::Status Bad(const std::string& what) {
  return absl::DataLossError("the scheduler's state is damaged: " + what);
}

absl::Status CheckCount(const char* what, uint64_t value) {
  if (value < kMaxCount) return absl::OkStatus();
  return Bad(absl::StrFormat("%s is %d; allowed: below %d", what, value, kMaxCount));
}

absl::Status CheckMembers(const pb::SchedulerState& state, const pb::Cluster& cluster) {
  std::set<uint64_t> nodes;
  std::set<std::tuple<pb::Role, uint32_t, uint32_t>> places;
  for (const pb::MemberState& member : state.member()) {
    const auto bad = [&](const std::string& what) {
      return Bad(absl::StrFormat("member '%s' %s", member.name(), what));
    };
    const bool server = member.role() == pb::SERVER;
    if (!server && member.role() != pb::WORKER) return bad("is neither server nor worker");
    if (!nodes.insert(member.node()).second) return bad("is there twice; allowed: once");
    if (!places.emplace(member.role(), member.rank(), member.shard()).second) {
      return bad(absl::StrFormat("has rank %d, which is another's", member.rank()));
    }
    if (server && member.shard() >= cluster.shards_per_server()) {
      return absl::FailedPreconditionError(absl::StrFormat(
          "the scheduler's state has shard %d of '%s'; allowed: below shards_per_server, %d",
          member.shard(), member.name(), cluster.shards_per_server()));
    }
    // Places are the experiment's until the job has begun.
    const uint32_t wanted = server ? cluster.servers() : cluster.workers();
    if (!state.has_assignment() && !member.spare() && member.rank() >= wanted) {
      return absl::FailedPreconditionError(absl::StrFormat(
          "the scheduler's state has '%s' as %s %d; allowed: below cluster.%ss, %d", member.name(),
          server ? "server" : "worker", member.rank(), server ? "server" : "worker", wanted));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckTable(const pb::PartitionMap& map, const pb::TableMap& owners,
                        const pb::TableSpec& table) {
  const auto bad = [&](const std::string& what) {
    return Bad(absl::StrFormat("table '%s': %s", table.name(), what));
  };
  absl::StatusOr<uint32_t> partitions = TablePartitions(table);
  if (!partitions.ok()) return bad(std::string(partitions.status().message()));
  const auto shards = static_cast<uint32_t>(map.shard_size());
  if (owners.table() != table.id() || static_cast<uint32_t>(owners.owner_size()) != *partitions) {
    return bad(absl::StrFormat("its map is of table %d, with %d owners; allowed: of %d, with %d",
                               owners.table(), owners.owner_size(), table.id(), *partitions));
  }
  for (uint32_t owner : owners.owner()) {
    if (owner >= shards) {
      return bad(absl::StrFormat("an owner is shard %d; allowed: below %d", owner, shards));
    }
  }
  std::set<std::pair<uint32_t, uint32_t>> copies;
  for (const pb::Backup& backup : owners.backup()) {
    if (backup.partition() >= *partitions || backup.shard() >= shards) {
      return bad(absl::StrFormat("a copy of partition %d at shard %d; allowed: below %d and %d",
                                 backup.partition(), backup.shard(), *partitions, shards));
    }
    if (owners.owner(static_cast<int>(backup.partition())) == backup.shard() ||
        !copies.emplace(backup.partition(), backup.shard()).second) {
      return bad(absl::StrFormat("two copies of partition %d at shard %d; allowed: one",
                                 backup.partition(), backup.shard()));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckAssignment(const pb::SchedulerState& state, const pb::Cluster& cluster) {
  const pb::Assignment& assignment = state.assignment();
  const auto workers = static_cast<int>(cluster.workers());
  if (assignment.worker_node_size() != workers || assignment.worker_incarnation_size() != workers) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "the scheduler's state is of %d workers, with %d incarnations; allowed: "
        "cluster.workers, %d",
        assignment.worker_node_size(), assignment.worker_incarnation_size(), workers));
  }
  const pb::PartitionMap& map = assignment.map();
  if (map.epoch() == 0) return Bad("its assignment has no epoch");
  const int tables = state.tables().table_size();
  if (assignment.table_size() != tables || map.table_size() != tables) {
    return Bad(absl::StrFormat("%d tables are assigned and %d in the map; allowed: %d",
                               assignment.table_size(), map.table_size(), tables));
  }
  std::set<uint64_t> nodes;
  for (const pb::ShardAddress& shard : map.shard()) {
    if (nodes.insert(shard.node()).second) continue;
    return Bad(absl::StrFormat("node %d is two shards; allowed: one", shard.node()));
  }
  std::set<uint32_t> ids;
  for (int i = 0; i < tables; ++i) {
    const pb::TableSpec& table = state.tables().table(i);
    if (!ids.insert(table.id()).second) {
      return Bad(absl::StrFormat("table %d is there twice; allowed: once", table.id()));
    }
    if (assignment.table(i).SerializeAsString() != table.SerializeAsString()) {
      return Bad(absl::StrFormat("table '%s' is assigned as another", table.name()));
    }
    if (absl::Status status = CheckTable(map, map.table(i), table); !status.ok()) return status;
  }
  absl::Status status = CheckCount("the epoch", map.epoch());
  if (status.ok()) status = CheckCount("the generation", assignment.generation());
  if (status.ok()) status = CheckCount("the step of its checkpoint", assignment.restore().step());
  return status;
}

}  // namespace

absl::Status CheckSavedState(const pb::SchedulerState& state, const pb::Cluster& cluster) {
  absl::Status status = CheckMembers(state, cluster);
  if (status.ok() && state.servers_wanted() == 0) {
    status = Bad("it wants 0 servers; allowed: 1 at least");
  }
  if (status.ok() && state.has_assignment()) status = CheckAssignment(state, cluster);
  uint64_t before = 0;
  for (int i = 0; i < state.checkpoint_size() && status.ok(); ++i) {
    const uint64_t step = state.checkpoint(i);
    status = CheckCount("the step of a checkpoint", step);
    if (status.ok() && i > 0 && step <= before) {
      status = Bad(absl::StrFormat("a checkpoint of step %d comes after one of %d", step, before));
    }
    before = step;
  }
  const auto workers = cluster.workers();
  for (const pb::Finished& finished : state.tally().finished()) {
    if (!status.ok() || finished.rank() < workers) continue;
    status =
        Bad(absl::StrFormat("worker %d has finished; allowed: below %d", finished.rank(), workers));
  }
  for (const pb::Report& report : state.tally().report()) {
    if (!status.ok() || report.rank() < workers) continue;
    status =
        Bad(absl::StrFormat("worker %d has reported; allowed: below %d", report.rank(), workers));
  }
  return status;
}

}  // namespace parley
