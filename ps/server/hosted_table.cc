#include "ps/server/hosted_table.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/base/sparse_layout.h"

namespace parley {
namespace {

const pb::TableMap* FindMap(const pb::PartitionMap& map, uint32_t table) {
  for (const pb::TableMap& owners : map.table()) {
    if (owners.table() == table) return &owners;
  }
  return nullptr;
}

absl::Status CheckMap(const pb::TableSpec& spec, const pb::PartitionMap& map,
                      const pb::TableMap* owners, uint32_t partitions) {
  if (owners == nullptr || static_cast<uint32_t>(owners->owner_size()) != partitions) {
    return absl::InvalidArgumentError(
        absl::StrFormat("table '%s': the map does not name an owner for each of its %d partitions",
                        spec.name(), partitions));
  }
  for (uint32_t owner : owners->owner()) {
    if (owner >= static_cast<uint32_t>(map.shard_size())) {
      return absl::InvalidArgumentError(absl::StrFormat("owner %d is no shard of the map", owner));
    }
  }
  return absl::OkStatus();
}

bool Evicts(const pb::TableSpec& spec) {
  const pb::Eviction& eviction = spec.sparse().eviction();
  return eviction.min_frequency() > 1 || eviction.max_age() > 0 || eviction.max_rows() > 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<HostedTable>> HostedTable::Create(
    const pb::Assignment& assignment, int index, const Context& context,
    HostedPartition::NormRequest request_norm) {
  const pb::TableSpec& spec = assignment.table(index);
  absl::StatusOr<uint32_t> partitions = TablePartitions(spec);
  if (!partitions.ok()) return partitions.status();
  const pb::TableMap* owners = FindMap(assignment.map(), spec.id());
  absl::Status status = CheckMap(spec, assignment.map(), owners, *partitions);
  if (!status.ok()) return status;

  std::unique_ptr<HostedTable> table(new HostedTable(spec));
  table->request_norm_ = std::move(request_norm);
  status = table->MakeCodecs(context.consistency);
  if (!status.ok()) return status;
  // Rows of a sparse table are no one gradient whose norm could be clipped.
  if (!spec.has_sparse() && spec.optimizer().clip_norm() > 0) {
    absl::StatusOr<std::unique_ptr<Optimizer>> optimizer = Optimizer::Create(spec.optimizer());
    if (!optimizer.ok()) return optimizer.status();
    table->clip_ = *std::move(optimizer);
  }
  status = table->MakePartitions(assignment, *owners, context);
  if (!status.ok()) return status;
  return table;
}

absl::Status HostedTable::MakeCodecs(const pb::Consistency& consistency) {
  const pb::Compression& compression = spec_.compression();
  const auto make = [&](const std::string& name, const char* way,
                        std::unique_ptr<PayloadCodec>* codec) -> absl::Status {
    absl::StatusOr<std::unique_ptr<PayloadCodec>> made = PayloadCodec::Create(name, compression);
    if (!made.ok()) {
      return absl::Status(made.status().code(),
                          absl::StrFormat("table '%s', compression of a %s: %s", spec_.name(), way,
                                          made.status().message()));
    }
    *codec = *std::move(made);
    return absl::OkStatus();
  };
  absl::Status status = make(compression.push(), "push", &push_codec_);
  if (status.ok()) status = make(compression.pull(), "pull", &pull_codec_);
  if (!status.ok()) return status;
  // A change can only be sent to readers that all hold the same, which only BSP makes so; and of a
  // sparse table each reader holds other rows.
  if (pull_codec_ != nullptr && pull_codec_->keeps_residual() &&
      (spec_.has_sparse() || consistency.mode() != pb::Consistency::BSP)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "table '%s': pulls by codec '%s' send changes, allowed is that for dense tables under BSP; "
        "it is %s under %s",
        spec_.name(), pull_codec_->name(), spec_.has_sparse() ? "sparse" : "dense",
        pb::Consistency::Mode_Name(consistency.mode())));
  }
  return absl::OkStatus();
}

absl::Status HostedTable::MakePartitions(const pb::Assignment& assignment,
                                         const pb::TableMap& owners, const Context& context) {
  const pb::PartitionMap& map = assignment.map();
  partitions_.resize(static_cast<size_t>(owners.owner_size()));
  for (uint32_t index = 0; index < partitions_.size(); ++index) {
    const uint32_t owner = owners.owner(static_cast<int>(index));
    if (NodeId{map.shard(static_cast<int>(owner)).node()} != context.self) continue;
    HostedPartition::Setup setup;
    setup.table = spec_.id();
    setup.index = index;
    setup.sparse = spec_.has_sparse();
    setup.evicts = Evicts(spec_);
    setup.consistency = context.consistency;
    setup.worker_incarnations.assign(assignment.worker_incarnation().begin(),
                                     assignment.worker_incarnation().end());
    setup.clip = clip_.get();
    setup.pull_codec = pull_codec_.get();
    setup.probe = context.probe;
    setup.counters = context.counters;
    setup.pool = context.pool;
    absl::StatusOr<std::unique_ptr<TablePartition>> values =
        TablePartition::Create(spec_, index, context.pool);
    if (!values.ok()) return values.status();
    partitions_[index] = std::make_unique<HostedPartition>(
        *std::move(values), std::move(setup),
        [this](uint32_t partition, NormGroup group, double share) {
          request_norm_(partition, group, share);
        });
    hosted_.push_back(partitions_[index].get());
  }
  return absl::OkStatus();
}

NormExchange::Setup HostedTable::NormSetup(const pb::Assignment& assignment, NodeId self) const {
  const pb::PartitionMap& map = assignment.map();
  const pb::TableMap& owners = *FindMap(map, spec_.id());
  NormExchange::Setup setup;
  setup.table = spec_.id();
  for (uint32_t owner : owners.owner()) {
    setup.owners.push_back(NodeId{map.shard(static_cast<int>(owner)).node()});
  }
  setup.local_partitions =
      static_cast<uint32_t>(std::count(setup.owners.begin(), setup.owners.end(), self));
  setup.epoch = map.epoch();
  const pb::ShardAddress& coordinator = map.shard(static_cast<int>(owners.owner(0)));
  setup.coordinator = NodeId{coordinator.node()};
  setup.coordinator_endpoint = coordinator.endpoint();
  setup.coordinator_name = absl::StrFormat("server %d shard %d (%s)", coordinator.server_rank(),
                                           coordinator.shard(), coordinator.endpoint());
  return setup;
}

std::string HostedTable::Describe() const {
  std::string text = absl::StrFormat("table '%s': %d of %d partitions", spec_.name(),
                                     hosted_.size(), partitions_.size());
  if (sparse()) {
    absl::StrAppendFormat(&text, ", rows of %d x %s", spec_.sparse().dim(),
                          pb::RowType_Name(spec_.sparse().row_type()));
  }
  if (push_codec_ != nullptr) absl::StrAppend(&text, ", pushes ", push_codec_->name());
  if (pull_codec_ != nullptr) absl::StrAppend(&text, ", pulls ", pull_codec_->name());
  return text;
}

}  // namespace parley
