#include "ps/server/partition_roles.h"

#include <utility>

#include "absl/strings/str_format.h"

namespace parley {

HostedTable* PartitionRoles::Find(uint32_t table) const {
  const auto found = tables_.find(table);
  return found == tables_.end() ? nullptr : found->second.get();
}

std::vector<HostedPartition*> PartitionRoles::primaries() const {
  std::vector<HostedPartition*> all;
  for (const auto& [id, table] : tables_) {
    all.insert(all.end(), table->hosted().begin(), table->hosted().end());
  }
  return all;
}

void PartitionRoles::Clear() {
  const std::vector<HostedPartition*> all = primaries();
  hooks_.on_give_up({all.begin(), all.end()});
  replication_->Clear();
  tables_.clear();
  places_.clear();
}

void PartitionRoles::AddBackup(HostedTable& table, uint32_t partition, NodeId primary) {
  table.backups[partition] = std::make_unique<BackupPartition>(
      primary, [this, &table, partition] { return table.Make(partition, incarnations_); },
      [this](NodeId to, const pb::FrameHeader& request, const absl::Status& status) {
        hooks_.answer(to, request, status);
      },
      table.pool());
}

absl::Status PartitionRoles::Begin(const pb::Assignment& assignment,
                                   const HostedTable::Context& context) {
  Clear();
  incarnations_.assign(assignment.worker_incarnation().begin(),
                       assignment.worker_incarnation().end());
  Tables tables;
  Places places;
  for (const pb::TableSpec& spec : assignment.table()) {
    absl::StatusOr<std::vector<PartitionPlace>> wanted = PlacesOf(spec, assignment.map(), self_);
    if (!wanted.ok()) return wanted.status();
    absl::StatusOr<std::unique_ptr<HostedTable>> table = HostedTable::Create(
        spec, context, [this, id = spec.id()](uint32_t partition, NormGroup group, double share) {
          hooks_.request_norm(id, partition, group, share);
        });
    if (!table.ok()) return table.status();
    for (uint32_t index = 0; index < wanted->size(); ++index) {
      const PartitionPlace& place = (*wanted)[index];
      if (place.role == PartitionRole::kBackup) AddBackup(**table, index, place.primary);
      if (place.role != PartitionRole::kPrimary) continue;
      absl::StatusOr<std::unique_ptr<HostedPartition>> made = (*table)->Make(index, incarnations_);
      if (!made.ok()) return made.status();
      (*table)->Host(*std::move(made));
    }
    places[spec.id()] = *std::move(wanted);
    if (!tables.emplace(spec.id(), *std::move(table)).second) {
      return absl::InvalidArgumentError(absl::StrFormat("table %d is assigned twice", spec.id()));
    }
  }
  tables_ = std::move(tables);
  places_ = std::move(places);
  return absl::OkStatus();
}

absl::Status PartitionRoles::CheckMove(const pb::Assignment& assignment, Places* places) const {
  for (const pb::TableSpec& spec : assignment.table()) {
    const HostedTable* table = Find(spec.id());
    absl::StatusOr<std::vector<PartitionPlace>> wanted = PlacesOf(spec, assignment.map(), self_);
    if (!wanted.ok()) return wanted.status();
    if (table == nullptr || wanted->size() != table->partitions() || places->contains(spec.id())) {
      return absl::FailedPreconditionError(absl::StrFormat(
          "table %d with %d partitions is none of this generation", spec.id(), wanted->size()));
    }
    for (uint32_t index = 0; index < wanted->size(); ++index) {
      if ((*wanted)[index].role != PartitionRole::kPrimary || table->Find(index) != nullptr) {
        continue;
      }
      const auto backup = table->backups.find(index);
      if (backup != table->backups.end() && backup->second->has_state()) continue;
      return absl::FailedPreconditionError(
          absl::StrFormat("table %d, partition %d: this shard has no copy of it to become primary",
                          spec.id(), index));
    }
    (*places)[spec.id()] = *std::move(wanted);
  }
  if (places->size() == tables_.size()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrFormat(
      "%d tables are assigned, this generation has %d", places->size(), tables_.size()));
}

void PartitionRoles::Change(HostedTable& table, uint32_t partition, const PartitionPlace& place,
                            std::vector<std::unique_ptr<HostedPartition>>* given_up) {
  const auto backup = table.backups.find(partition);
  if (place.role == PartitionRole::kPrimary) {
    if (backup == table.backups.end()) return;
    table.Host(backup->second->TakeState());
    table.backups.erase(backup);
    return;
  }
  if (table.Find(partition) != nullptr) {
    replication_->Forget(table.id(), partition);
    given_up->push_back(table.Release(partition));
  }
  if (place.role == PartitionRole::kNone) {
    if (backup != table.backups.end()) table.backups.erase(backup);
  } else if (backup != table.backups.end()) {
    backup->second->SetPrimary(place.primary);
  } else {
    AddBackup(table, partition, place.primary);
  }
}

absl::Status PartitionRoles::Move(const pb::Assignment& assignment) {
  Places places;
  absl::Status status = CheckMove(assignment, &places);
  if (!status.ok()) return status;
  std::set<const HostedPartition*> leaving;
  for (const auto& [id, table] : tables_) {
    for (const HostedPartition* partition : table->hosted()) {
      if (places[id][partition->index()].role != PartitionRole::kPrimary) leaving.insert(partition);
    }
  }
  if (!leaving.empty()) hooks_.on_give_up(leaving);
  incarnations_.assign(assignment.worker_incarnation().begin(),
                       assignment.worker_incarnation().end());
  std::vector<std::unique_ptr<HostedPartition>> given_up;
  for (const auto& [id, table] : tables_) {
    for (uint32_t index = 0; index < table->partitions(); ++index) {
      Change(*table, index, places[id][index], &given_up);
    }
  }
  places_ = std::move(places);
  return absl::OkStatus();
}

void PartitionRoles::Activate(const pb::Assignment& assignment) {
  replication_->SetEpoch(assignment.map().epoch());
  for (const auto& [id, table] : tables_) {
    for (HostedPartition* partition : table->hosted()) {
      replication_->SetCopies(id, partition, places_[id][partition->index()].backups);
      for (uint32_t rank = 0; rank < incarnations_.size(); ++rank) {
        partition->OnWorker(rank, incarnations_[rank]);
      }
    }
  }
}

}  // namespace parley
