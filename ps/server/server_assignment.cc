// What a shard does about ASSIGN: a generation begins, or partitions and workers move.
#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/server/server_node_impl.h"

namespace parley {

void ServerNode::Impl::OnAssign(NodeId from, const Frame& request) {
  pb::Assignment assignment;
  absl::Status status = from == kSchedulerNode
                            ? ParseBody(request, &assignment)
                            : absl::PermissionDeniedError("ASSIGN is the scheduler's to say");
  // The welcome, with the experiment, may be overtaken by what follows from it.
  if (status.ok() && job_ == 0) status = absl::UnavailableError("this server is not admitted yet");
  if (status.ok()) status = CheckAssignment(assignment);
  if (!status.ok()) return rpc_.ReplyError(from, request.header, status);
  const uint64_t epoch = assignment.map().epoch();
  // The same assignment again means that its answer was lost.
  if (epoch == epoch_) return AnswerAssign(from, request.header);
  if (restore_ != nullptr && epoch == restoring_.map().epoch()) {
    assign_ = request.header;
    return rpc_.ReplyParked(from, request.header, "the checkpoint to be read");
  }
  if (epoch_ != 0 && assignment.generation() == generation_) {
    const pb::Assigned lacking = Lacking(assignment);
    if (!lacking.lacks().empty()) {
      Frame answer;
      answer.header.set_body(lacking.SerializeAsString());
      return rpc_.Reply(from, request.header, std::move(answer));
    }
    status = Move(assignment);
  } else {
    status = Begin(assignment);
    if (status.ok() && assignment.has_restore()) {
      assign_ = request.header;
      rpc_.ReplyParked(from, request.header, "the checkpoint to be read");
      return Restore(assignment);
    }
  }
  if (status.ok()) Activate(assignment);
  FinishAssign(from, request.header, status);
}

absl::Status ServerNode::Impl::CheckAssignment(const pb::Assignment& assignment) const {
  if (assignment.map().epoch() == 0 || assignment.worker_incarnation().empty() ||
      assignment.worker_node_size() != assignment.worker_incarnation_size()) {
    return absl::InvalidArgumentError(
        "an assignment needs an epoch above 0, and workers with a node each");
  }
  const uint64_t epoch = restore_ != nullptr ? restoring_.map().epoch() : epoch_;
  if (assignment.map().epoch() >= epoch && assignment.generation() >= generation_) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrFormat("epoch %d of generation %d is assigned, this server is at epoch %d of "
                      "generation %d",
                      assignment.map().epoch(), assignment.generation(), epoch, generation_));
}

// A generation begins: nothing of the one before counts.
absl::Status ServerNode::Impl::Begin(const pb::Assignment& assignment) {
  restore_.reset();
  checkpoints_.Abandon(absl::FailedPreconditionError("a new generation begins"));
  epoch_ = 0;
  generation_ = assignment.generation();
  workers_.clear();
  counters_ = PushCounters();
  HostedTable::Context context;
  context.consistency = experiment_.consistency();
  context.check_every = experiment_.cluster().replica_check_steps();
  context.replaces_workers = experiment_.cluster().worker_loss() == pb::Cluster::REPLACE;
  context.pool = pool_;
  context.place = [this](const pb::Compute& compute) { return PlaceFor(compute); };
  context.probe = options_.probe;
  context.counters = &counters_;
  absl::Status status = roles_.Begin(assignment, context);
  if (status.ok()) status = ConnectShards(assignment);
  return status;
}

absl::StatusOr<GpuPlace*> ServerNode::Impl::PlaceFor(const pb::Compute& compute) {
  if (gpu_place_ != nullptr) return gpu_place_.get();
  if (options_.make_gpu_place == nullptr) {
    return absl::InvalidArgumentError("this server keeps no tables on a GPU");
  }
  absl::StatusOr<std::unique_ptr<GpuPlace>> place = options_.make_gpu_place(compute.device());
  // What is unavailable would be asked for again, and a GPU does not come by waiting.
  if (!place.ok()) return absl::InvalidArgumentError(place.status().message());
  gpu_place_ = *std::move(place);
  Log(absl::StrCat("tables on ", ToString(gpu_place_->gpu->info())));
  return gpu_place_.get();
}

void ServerNode::Impl::Restore(const pb::Assignment& assignment) {
  std::vector<RestoreTask::Item> items;
  for (const auto& [id, table] : roles_.tables()) {
    for (HostedPartition* partition : table->hosted()) items.emplace_back(id, partition);
  }
  restoring_ = assignment;
  restore_ = std::make_unique<RestoreTask>(env_, files_, pool_, assignment.restore(),
                                           std::move(items), [this](absl::Status status) {
                                             OrEnd(pb::ASSIGN, 0, [&] {
                                               if (status.ok()) Activate(restoring_);
                                               FinishAssign(kSchedulerNode, assign_, status);
                                             });
                                             restore_.reset();
                                           });
}

// Copies that were lost here and are to be promoted: the primary that found it out did not live to
// say so, and another copy may have what this one had.
pb::Assigned ServerNode::Impl::Lacking(const pb::Assignment& assignment) const {
  pb::Assigned answer;
  for (const pb::TableSpec& spec : assignment.table()) {
    const HostedTable* table = roles_.Find(spec.id());
    const auto places = PlacesOf(spec, assignment.map(), transport_->self());
    if (table == nullptr || !places.ok()) continue;  // refused as a whole, by Move
    for (const auto& [index, backup] : table->backups) {
      if (backup->has_state() || index >= places->size() ||
          (*places)[index].role != PartitionRole::kPrimary) {
        continue;
      }
      pb::Assigned::Lack* lack = answer.add_lacks();
      lack->set_table(spec.id());
      lack->set_partition(index);
    }
  }
  return answer;
}

absl::Status ServerNode::Impl::Move(const pb::Assignment& assignment) {
  // First, since it may fail: a move is made as a whole or not at all.
  absl::Status status = ConnectShards(assignment);
  if (!status.ok()) return status;
  const std::vector<HostedPartition*> before = roles_.primaries();
  row_counter_.Abandon();
  status = roles_.Move(assignment);
  if (status.ok() && roles_.primaries() != before) {
    checkpoints_.Abandon(absl::FailedPreconditionError("partitions have moved meanwhile"));
  }
  return status;
}

// The tables are as the map says: connects them with the others, lets workers in.
void ServerNode::Impl::Activate(const pb::Assignment& assignment) {
  DisconnectShards(assignment);
  epoch_ = assignment.map().epoch();
  TakeWorkers(assignment);
  roles_.Activate(assignment);
  // After it: a total that is known may complete a step, which is an operation for the new copies.
  for (const auto& [id, table] : roles_.tables()) ConnectNorms(assignment, table.get());
  for (HostedPartition* partition : roles_.primaries()) partition->Resume();
  responder_.Release();
  LogAssignment();
}

void ServerNode::Impl::FinishAssign(NodeId from, const pb::FrameHeader& request,
                                    const absl::Status& status) {
  if (absl::IsResourceExhausted(status)) {
    // It is not asked again in vain: the scheduler hears at once that it does not fit.
    link_.Fail(status);
  } else if (!status.ok()) {
    rpc_.ReplyError(from, request, status);
  } else {
    AnswerAssign(from, request);
  }
}

void ServerNode::Impl::AnswerAssign(NodeId from, const pb::FrameHeader& request) {
  pb::Assigned assigned;
  const std::vector<HostedPartition*> primaries = roles_.primaries();
  for (uint32_t rank = 0; !primaries.empty() && rank < workers_.size(); ++rank) {
    uint64_t lowest = primaries[0]->Missing(rank), highest = lowest;
    for (const HostedPartition* partition : primaries) {
      lowest = std::min(lowest, partition->Missing(rank));
      highest = std::max(highest, partition->Missing(rank));
    }
    assigned.add_lowest_missing(lowest);
    assigned.add_highest_missing(highest);
  }
  Frame answer;
  answer.header.set_body(assigned.SerializeAsString());
  rpc_.Reply(from, request, std::move(answer));
}

// These partitions are not this shard's any more: who waits at them asks the new primary, by a
// newer map.
void ServerNode::Impl::GiveUp(const std::set<const HostedPartition*>& leaving) {
  checkpoints_.Abandon(absl::FailedPreconditionError("partitions have moved meanwhile"));
  row_counter_.Abandon();
  responder_.Refuse(
      [&](NodeId, const TableRequest& request) {
        return std::any_of(
            request.partitions.begin(), request.partitions.end(),
            [&](const HostedPartition* partition) { return leaving.contains(partition); });
      },
      absl::FailedPreconditionError("a partition has moved to another shard"));
}

void ServerNode::Impl::TakeWorkers(const pb::Assignment& assignment) {
  for (int rank = 0; rank < assignment.worker_node_size(); ++rank) {
    const NodeId node{assignment.worker_node(rank)};
    const uint32_t incarnation = assignment.worker_incarnation(rank);
    if (rank < static_cast<int>(workers_.size())) {
      const Worker& before = workers_[rank];
      if (before.node == node && before.incarnation == incarnation) continue;
      workers_[rank] = MakeWorker(node, incarnation);
    } else {
      workers_.push_back(MakeWorker(node, incarnation));
    }
  }
  responder_.Refuse(
      [&](NodeId from, const TableRequest& request) {
        return !CheckWorker(from, request.header).ok();
      },
      absl::FailedPreconditionError("the worker was replaced"));
}

// To those that copies and norms will be sent to by this map.
absl::Status ServerNode::Impl::ConnectShards(const pb::Assignment& assignment) {
  const NodeId self = transport_->self();
  std::map<NodeId, std::string> wanted;
  for (const pb::TableSpec& spec : assignment.table()) {
    absl::StatusOr<std::vector<PartitionPlace>> places = PlacesOf(spec, assignment.map(), self);
    if (!places.ok()) return places.status();
    for (const PartitionPlace& place : *places) {
      for (const BackupPlace& backup : place.backups) wanted.emplace(backup.node, backup.endpoint);
    }
    const HostedTable* table = roles_.Find(spec.id());
    if (table == nullptr || !table->clips()) continue;
    const NormExchange::Setup norms = table->NormSetup(assignment.map(), self);
    if (norms.coordinator != self) wanted.emplace(norms.coordinator, norms.coordinator_endpoint);
  }
  for (const auto& [node, endpoint] : wanted) {
    if (connected_.contains(node)) continue;
    absl::Status status = transport_->Connect(node, endpoint);
    if (!status.ok()) return status;
    connected_.insert(node);
  }
  return absl::OkStatus();
}

// From those that the map has lost: they are not coming back under this name.
void ServerNode::Impl::DisconnectShards(const pb::Assignment& assignment) {
  std::set<NodeId> present;
  for (const pb::ShardAddress& shard : assignment.map().shard()) {
    present.insert(NodeId{shard.node()});
  }
  std::erase_if(connected_, [&](NodeId node) {
    if (present.contains(node)) return false;
    transport_->Disconnect(node);
    return true;
  });
}

void ServerNode::Impl::LogAssignment() {
  uint64_t bytes = 0, hosted = 0;
  for (const auto& [id, table] : roles_.tables()) {
    hosted += table->hosted().size();
    for (const HostedPartition* partition : table->hosted()) {
      bytes += partition->values(0) * sizeof(float);
    }
  }
  Log(absl::StrFormat("epoch %d: %d partitions, %.1f KiB of dense weights, updates with %s", epoch_,
                      hosted, bytes / 1024.0, OptimizerKernelIsa()));
  for (const auto& [id, table] : roles_.tables()) Log(table->Describe());
}

// Anew with every map: who collects them may be another.
void ServerNode::Impl::ConnectNorms(const pb::Assignment& assignment, HostedTable* table) {
  NormExchange::Setup norms = table->NormSetup(assignment.map(), transport_->self());
  norms.deadline = absl::Milliseconds(experiment_.cluster().progress_timeout_ms());
  table->norms = std::make_unique<NormExchange>(
      &rpc_, transport_->self(), std::move(norms),
      [this, id = table->id()](NormGroup group, double total) {
        OrEnd(pb::NORM, id, [&] { ApplyNorm(*roles_.Find(id), group, total); });
      },
      [this](const absl::Status& status) { link_.Fail(status); });
  if (!table->clips()) return;
  std::map<NormGroup, double> known;
  for (const HostedPartition* partition : table->hosted()) {
    for (const auto& [group, total] : partition->KnownNorms()) known.emplace(group, total);
  }
  for (const auto& [group, total] : known) table->norms->Know(group, total);
}

}  // namespace parley
