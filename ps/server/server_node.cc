#include "ps/server/server_node.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "ps/net/admission.h"
#include "ps/server/push_handler.h"
#include "ps/server/server_node_impl.h"

namespace parley {
namespace {

// News that nobody takes for so long are told again; the scheduler may be away.
constexpr absl::Duration kNewsDeadline = absl::Seconds(30);

}  // namespace

void ServerNode::Impl::Start() {
  rpc_.SetAdmission(
      [this](NodeId, const pb::FrameHeader& header) { return CheckAdmission(header, job_); });
  for (pb::Kind kind : {pb::PUSH, pb::PULL, pb::PUSH_PULL}) {
    Handle(kind, [this](NodeId from, Frame f) { OnTableRequest(from, std::move(f)); });
  }
  Handle(pb::LEAVE, [this](NodeId from, Frame f) { OnLeave(from, f); });
  Handle(pb::COUNT, [this](NodeId from, Frame f) { OnCount(from, f); });
  Handle(pb::NORM, [this](NodeId from, Frame f) { OnNorm(from, f); });
  for (pb::Kind kind : {pb::REPLICATE, pb::SYNC}) {
    Handle(kind, [this](NodeId from, Frame f) { OnReplica(from, f); });
  }
  Handle(pb::CHECKPOINT, [this](NodeId from, Frame f) { OnCheckpoint(from, f); });
  link_.Start();
  // Served here and not by the link: reading a checkpoint takes longer than an answer may.
  Handle(pb::ASSIGN, [this](NodeId from, Frame f) { OnAssign(from, f); });
}

SchedulerLink::Options ServerNode::Impl::LinkOptions() {
  SchedulerLink::Options link;
  link.scheduler = options_.scheduler;
  link.join_timeout = options_.join_timeout;
  link.hello.set_role(pb::SERVER);
  link.hello.set_job(options_.job);
  link.hello.set_node_name(options_.node_name);
  link.hello.set_endpoint(transport_->endpoint());
  link.hello.set_process(options_.process);
  link.hello.set_shard(options_.shard);
  if (options_.wanted_rank) link.hello.set_wanted_rank(*options_.wanted_rank);
  if (options_.spare) link.hello.set_spare(true);
  return link;
}

SchedulerLink::Handlers ServerNode::Impl::LinkHandlers() {
  SchedulerLink::Handlers handlers;
  handlers.on_welcome = [this](const pb::Welcome& welcome) { OnWelcome(welcome); };
  handlers.heartbeat = [this] { return MakeHeartbeat(); };
  handlers.log = [this](const std::string& line) { Log(line); };
  handlers.on_end = [this](absl::Status status) { done_(std::move(status)); };
  return handlers;
}

Replication::Hooks ServerNode::Impl::ReplicationHooks() {
  Replication::Hooks hooks;
  hooks.tell = [this](const pb::BackupNews& news, Rpc::Callback callback) {
    link_.Ask(pb::BACKUP_NEWS, news.SerializeAsString(), kNewsDeadline, "news of a copy",
              std::move(callback));
  };
  hooks.on_durable = [this] { responder_.ReleaseSoon(); };
  hooks.log = [this](const std::string& line) { Log(line); };
  return hooks;
}

PartitionRoles::Hooks ServerNode::Impl::RoleHooks() {
  PartitionRoles::Hooks hooks;
  hooks.on_give_up = [this](const std::set<const HostedPartition*>& leaving) { GiveUp(leaving); };
  hooks.request_norm = [this](uint32_t table, uint32_t partition, NormGroup group, double share) {
    roles_.Find(table)->norms->Add(partition, group, share);
  };
  hooks.answer = [this](NodeId to, const pb::FrameHeader& request, const absl::Status& status) {
    if (status.ok()) {
      rpc_.Reply(to, request, Frame());
    } else {
      rpc_.ReplyError(to, request, status);
    }
  };
  return hooks;
}

void ServerNode::Impl::OnWelcome(const pb::Welcome& welcome) {
  job_ = welcome.job_id();
  rank_ = welcome.rank();
  experiment_ = welcome.experiment();
  Log(absl::StrFormat("joined job %s as %sserver %d shard %d, listening on %s", welcome.job(),
                      welcome.spare() ? "spare " : "", welcome.rank(), options_.shard,
                      transport_->endpoint()));
}

void ServerNode::Impl::ApplyNorm(const HostedTable& table, NormGroup group, double total) {
  const absl::Duration start = env_->Now();
  for (HostedPartition* partition : table.hosted()) partition->OnNorm(group, total);
  apply_time_ += env_->Now() - start;
  OnApplied();
}

// A rank is a claim until it is held against the node that the scheduler gave it to. Whatever map
// a request was routed by, it is good if it fits this one.
absl::Status ServerNode::Impl::CheckWorker(NodeId from, const pb::FrameHeader& header) const {
  if (epoch_ == 0) return absl::UnavailableError("this shard has no partitions yet");
  if (header.epoch() > epoch_) return AtEpoch(header, absl::StatusCode::kUnavailable);
  if (header.rank() < workers_.size() && workers_[header.rank()].node == from) {
    const uint32_t incarnation = workers_[header.rank()].incarnation;
    if (header.incarnation() == incarnation) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrFormat("worker %d is at incarnation %d, the request is of incarnation %d",
                        header.rank(), incarnation, header.incarnation()));
  }
  if (header.epoch() < epoch_) return AtEpoch(header, absl::StatusCode::kFailedPrecondition);
  return absl::PermissionDeniedError(absl::StrFormat(
      "node %s is not worker %d of %d", ToString(from), header.rank(), workers_.size()));
}

absl::Status ServerNode::Impl::AtEpoch(const pb::FrameHeader& header, absl::StatusCode code) const {
  return absl::Status(
      code, absl::StrFormat("the request was routed by epoch %d, this shard is at epoch %d",
                            header.epoch(), epoch_));
}

// What another shard says goes by the map of both: an older one than this is the fence.
absl::Status ServerNode::Impl::CheckShard(const pb::FrameHeader& header) const {
  if (epoch_ == 0) return absl::UnavailableError("this shard has no partitions yet");
  if (header.epoch() > epoch_) return AtEpoch(header, absl::StatusCode::kUnavailable);
  if (header.epoch() < epoch_) return AtEpoch(header, absl::StatusCode::kFailedPrecondition);
  return absl::OkStatus();
}

absl::StatusOr<HostedTable*> ServerNode::Impl::FindTable(const pb::FrameHeader& header) const {
  HostedTable* table = roles_.Find(header.table());
  if (table != nullptr) return table;
  return absl::InvalidArgumentError(absl::StrFormat("there is no table %d", header.table()));
}

// A push is taken before it is acknowledged or its pull is looked at; who waits for what it
// completed is answered after it.
void ServerNode::Impl::OnTableRequest(NodeId from, Frame frame) {
  const pb::Kind kind = frame.header.kind();
  const bool copied = replication_.any();
  absl::Status status = CheckWorker(from, frame.header);
  if (status.ok() && (kind != pb::PUSH || copied) && responder_.TellIfHeld(from, frame.header)) {
    return;
  }
  TableRequest request;
  if (status.ok()) status = Resolve(&frame, &request);
  if (!status.ok()) {
    rpc_.ReplyError(from, frame.header, status);
    return;
  }
  const uint64_t applied = counters_.applied;
  if (kind != pb::PULL) {
    const absl::Duration start = env_->Now();
    // Decoded values are read here and by nobody else: they need no memory that can be lent.
    status =
        TakePush(&request, &own_pool_, /*keep_keys=*/kind == pb::PUSH_PULL, /*tickets=*/copied);
    apply_time_ += env_->Now() - start;
    if (!status.ok()) {
      rpc_.ReplyError(from, request.header, status);
      return;
    }
  }
  if (kind == pb::PUSH && !copied) {
    rpc_.Reply(from, request.header, Frame());
  } else {
    const bool tell = kind == pb::PUSH && IsHeld(request);
    responder_.Answer(from, std::move(request), tell);
  }
  if (counters_.applied != applied) OnApplied();
}

// Whether a push waits for those of other workers: its sender has to know at once, since it may
// have to push more before they can.
bool ServerNode::Impl::IsHeld(const TableRequest& request) const {
  if (experiment_.consistency().mode() != pb::Consistency::BSP) return false;
  for (size_t i = 0; i < request.tickets.size(); ++i) {
    const std::optional<uint64_t>& tick = request.tickets[i].tick;
    if (tick && !request.partitions[i]->HasApplied(*tick)) return true;
  }
  return false;
}

// Something went into the weights.
void ServerNode::Impl::OnApplied() {
  responder_.Release();
  checkpoints_.OnApplied();
}

// Finds all that the request names, or leaves `frame` as it is.
absl::Status ServerNode::Impl::Resolve(Frame* frame, TableRequest* request) {
  absl::StatusOr<HostedTable*> table = FindTable(frame->header);
  if (!table.ok()) return table.status();
  if (frame->header.kind() == pb::PUSH_PULL && !frame->header.has_pull_tick()) {
    return absl::InvalidArgumentError("a PUSH_PULL needs the pull_tick that it is to read for");
  }
  return ResolveRequest(frame, *table, workers_[frame->header.rank()].keys.get(), request);
}

void ServerNode::Impl::OnLeave(NodeId from, const Frame& request) {
  pb::Leave leave;
  absl::Status status = CheckWorker(from, request.header);
  // Meant are all partitions that this shard had by that map: some may have gone elsewhere, and
  // only who knows that asks there.
  if (status.ok() && request.header.epoch() < epoch_) {
    status = AtEpoch(request.header, absl::StatusCode::kFailedPrecondition);
  }
  if (status.ok()) status = ParseBody(request, &leave);
  if (!status.ok()) {
    rpc_.ReplyError(from, request.header, status);
    return;
  }
  if (responder_.TellIfHeld(from, request.header)) return;
  const absl::Duration start = env_->Now();
  TableRequest left;
  left.header = request.header;
  left.partitions = roles_.primaries();
  for (HostedPartition* partition : left.partitions) {
    partition->OnLeave(request.header.rank(), leave.after_tick());
  }
  apply_time_ += env_->Now() - start;
  responder_.Answer(from, std::move(left));
  OnApplied();
}

void ServerNode::Impl::OnNorm(NodeId from, const Frame& request) {
  pb::Norm norm;
  absl::Status status = CheckShard(request.header);
  absl::StatusOr<HostedTable*> table = FindTable(request.header);
  if (status.ok()) status = table.ok() ? ParseBody(request, &norm) : table.status();
  if (!status.ok()) {
    rpc_.ReplyError(from, request.header, status);
    return;
  }
  (*table)->norms->OnRequest(from, request, norm);
}

// REPLICATE and SYNC, from a primary to its copy here.
void ServerNode::Impl::OnReplica(NodeId from, const Frame& request) {
  const pb::FrameHeader& header = request.header;
  absl::Status status = CheckShard(header);
  absl::StatusOr<HostedTable*> table = FindTable(header);
  if (status.ok()) status = table.status();
  if (status.ok() && header.part().empty()) {
    status = absl::InvalidArgumentError("it names no partition");
  }
  if (!status.ok()) return rpc_.ReplyError(from, header, status);
  const uint32_t partition = header.part(0).partition();
  const auto backup = (*table)->backups.find(partition);
  if (backup == (*table)->backups.end() || backup->second->primary() != from) {
    return rpc_.ReplyError(
        from, header,
        absl::FailedPreconditionError(absl::StrFormat(
            "table %d, partition %d: by epoch %d this shard has no copy for node %s",
            header.table(), partition, epoch_, ToString(from))));
  }
  if (header.kind() == pb::SYNC) {
    backup->second->OnSync(request);
  } else {
    backup->second->OnOp(request);
  }
}

// Of this node alone, for ever: ranks are not, since a spare takes a dead server's place, and one
// that stood still may wake up beside it and write.
std::string ServerNode::Impl::FileName() const {
  return absl::StrFormat("server-%d-%d-%016x.safetensors", rank_, options_.shard,
                         Value(transport_->self()));
}

void ServerNode::Impl::OnCheckpoint(NodeId from, const Frame& request) {
  pb::CheckpointRequest checkpoint;
  absl::Status status = from == kSchedulerNode
                            ? ParseBody(request, &checkpoint)
                            : absl::PermissionDeniedError("CHECKPOINT is the scheduler's to say");
  if (status.ok() && epoch_ == 0) {
    status = absl::UnavailableError("this shard has no partitions yet");
  } else if (status.ok() && checkpoint.generation() != generation_) {
    status = absl::FailedPreconditionError(
        absl::StrFormat("a checkpoint of generation %d is wanted, this server is at %d",
                        checkpoint.generation(), generation_));
  }
  if (!status.ok()) return rpc_.ReplyError(from, request.header, status);
  std::vector<HostedTable*> tables;
  for (const auto& [id, table] : roles_.tables()) tables.push_back(table.get());
  checkpoints_.OnRequest(from, request.header, checkpoint, FileName(), tables,
                         experiment_.consistency().mode() == pb::Consistency::BSP);
}

pb::Heartbeat ServerNode::Impl::MakeHeartbeat() {
  pb::Heartbeat heartbeat;
  heartbeat.set_waiting_for(responder_.WaitingFor());
  return heartbeat;
}

void ServerNode::Impl::OnCount(NodeId from, const Frame& request) {
  if (from != kSchedulerNode) {
    rpc_.ReplyError(from, request.header,
                    absl::PermissionDeniedError("COUNT is the scheduler's to ask"));
    return;
  }
  std::vector<const HostedTable*> tables;
  bool sparse = false;
  for (const auto& [id, table] : roles_.tables()) {
    tables.push_back(table.get());
    sparse |= table->sparse();
  }
  // Rows may take a while: the question is not lost.
  if (sparse) rpc_.ReplyParked(from, request.header, "the rows to be counted");
  row_counter_.Count(tables, [this, from, header = request.header](const auto& rows) {
    pb::ServerCounts counts = Counts();
    counts.mutable_rows()->Assign(rows.begin(), rows.end());
    Frame answer;
    answer.header.set_body(counts.SerializeAsString());
    rpc_.Reply(from, header, std::move(answer));
  });
}

// Of the partitions that this shard is primary of.
pb::ServerCounts ServerNode::Impl::Counts() const {
  pb::ServerCounts counts;
  PushCounters sum;
  std::vector<uint64_t> acknowledged(workers_.size());
  for (const HostedPartition* partition : roles_.primaries()) {
    const PushCounters& more = partition->counts();
    sum.accepted += more.accepted;
    sum.applied += more.applied;
    sum.dropped += more.dropped;
    sum.duplicate += more.duplicate;
    sum.samples += more.samples;
    for (size_t rank = 0; rank < acknowledged.size(); ++rank) {
      acknowledged[rank] += partition->acknowledged()[rank];
    }
  }
  counts.set_pushes_accepted(sum.accepted);
  counts.set_pushes_applied(sum.applied);
  counts.set_pushes_dropped(sum.dropped);
  counts.set_pushes_duplicate(sum.duplicate);
  counts.set_samples(sum.samples);
  counts.set_partitions(roles_.primaries().size());
  counts.mutable_acknowledged()->Assign(acknowledged.begin(), acknowledged.end());
  counts.set_apply_seconds(absl::ToDoubleSeconds(apply_time_));
  const TransportCounters transport = transport_->counters();
  counts.set_bytes_in(transport.bytes_in);
  counts.set_bytes_out(transport.bytes_out);
  counts.set_refused(transport.refused);
  return counts;
}

ServerNode::ServerNode(Env* env, Transport* transport, Options options,
                       absl::AnyInvocable<void(absl::Status)> done)
    : impl_(std::make_unique<Impl>(env, transport, std::move(options), std::move(done))) {}
ServerNode::~ServerNode() = default;
void ServerNode::Start() { impl_->Start(); }
void ServerNode::Stop(const absl::Status& status) { impl_->Stop(status); }

}  // namespace parley
