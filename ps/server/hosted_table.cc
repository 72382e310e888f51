#include "ps/server/hosted_table.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/base/sparse_layout.h"
#include "ps/server/partition_places.h"

namespace parley {
namespace {

bool Evicts(const pb::TableSpec& spec) {
  const pb::Eviction& eviction = spec.sparse().eviction();
  return eviction.min_frequency() > 1 || eviction.max_age() > 0 || eviction.max_rows() > 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<HostedTable>> HostedTable::Create(
    const pb::TableSpec& spec, const Context& context, HostedPartition::NormRequest request_norm) {
  absl::StatusOr<uint32_t> partitions = TablePartitions(spec);
  if (!partitions.ok()) return partitions.status();
  std::unique_ptr<HostedTable> table(new HostedTable(spec, context));
  table->partitions_.resize(*partitions);
  table->request_norm_ = std::move(request_norm);
  absl::Status status = table->MakeCodecs();
  if (!status.ok()) return status;
  // Rows of a sparse table are no one gradient whose norm could be clipped.
  if (!spec.has_sparse() && spec.optimizer().clip_norm() > 0) {
    absl::StatusOr<std::unique_ptr<Optimizer>> optimizer = Optimizer::Create(spec.optimizer());
    if (!optimizer.ok()) return optimizer.status();
    table->clip_ = *std::move(optimizer);
  }
  return table;
}

absl::Status HostedTable::MakeCodecs() {
  const pb::Consistency& consistency = context_.consistency;
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
  if (on_device() && (push_codec_ != nullptr || pull_codec_ != nullptr)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "table '%s': its placement is GPU, with codec '%s', which the CPU encodes; "
        "allowed is none",
        spec_.name(), (push_codec_ != nullptr ? push_codec_ : pull_codec_)->name()));
  }
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

absl::StatusOr<std::unique_ptr<HostedPartition>> HostedTable::Make(
    uint32_t index, const std::vector<uint32_t>& worker_incarnations) {
  GpuPlace* place = nullptr;
  if (on_device() && context_.place != nullptr) {
    absl::StatusOr<GpuPlace*> found = context_.place(spec_.compute());
    if (!found.ok()) {
      return absl::Status(found.status().code(), absl::StrFormat("table '%s': %s", spec_.name(),
                                                                 found.status().message()));
    }
    place = *found;
  }
  absl::StatusOr<std::unique_ptr<TablePartition>> values =
      TablePartition::Create(spec_, index, context_.pool, place);
  if (!values.ok()) return values.status();
  HostedPartition::Setup setup;
  setup.table = spec_.id();
  setup.index = index;
  setup.sparse = spec_.has_sparse();
  setup.evicts = Evicts(spec_);
  setup.consistency = context_.consistency;
  setup.worker_incarnations = worker_incarnations;
  setup.check_every = context_.check_every;
  // Where a step cannot be computed again to the bit, nobody is asked to.
  setup.keeps_overwritten = context_.replaces_workers &&
                            context_.consistency.mode() == pb::Consistency::BSP && !setup.evicts &&
                            (push_codec_ == nullptr || !push_codec_->keeps_residual());
  setup.clip = clip_.get();
  setup.pull_codec = pull_codec_.get();
  setup.probe = context_.probe;
  setup.counters = context_.counters;
  setup.pool = context_.pool;
  return std::make_unique<HostedPartition>(
      *std::move(values), std::move(setup),
      [this](uint32_t partition, NormGroup group, double share) {
        request_norm_(partition, group, share);
      });
}

void HostedTable::Host(std::unique_ptr<HostedPartition> partition) {
  const uint32_t index = partition->index();
  hosted_.insert(std::upper_bound(hosted_.begin(), hosted_.end(), index,
                                  [](uint32_t wanted, const HostedPartition* other) {
                                    return wanted < other->index();
                                  }),
                 partition.get());
  partitions_[index] = std::move(partition);
}

std::unique_ptr<HostedPartition> HostedTable::Release(uint32_t partition) {
  std::unique_ptr<HostedPartition> released = std::move(partitions_[partition]);
  std::erase(hosted_, released.get());
  marked.erase(partition);
  return released;
}

NormExchange::Setup HostedTable::NormSetup(const pb::PartitionMap& map, NodeId self) const {
  const pb::TableMap& owners = *FindTableMap(map, spec_.id());
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
  setup.coordinator_name = ShardName(coordinator);
  return setup;
}

std::string HostedTable::Describe() const {
  std::string text = absl::StrFormat("table '%s': %d of %d partitions", spec_.name(),
                                     hosted_.size(), partitions_.size());
  if (!backups.empty()) absl::StrAppendFormat(&text, " and copies of %d", backups.size());
  if (sparse()) {
    absl::StrAppendFormat(&text, ", rows of %d x %s", spec_.sparse().dim(),
                          pb::RowType_Name(spec_.sparse().row_type()));
  }
  if (push_codec_ != nullptr) absl::StrAppend(&text, ", pushes ", push_codec_->name());
  if (pull_codec_ != nullptr) absl::StrAppend(&text, ", pulls ", pull_codec_->name());
  if (on_device()) absl::StrAppend(&text, ", on a GPU");
  return text;
}

}  // namespace parley
