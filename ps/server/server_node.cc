#include "ps/server/server_node.h"

#include <algorithm>
#include <map>
#include <new>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "ps/net/admission.h"
#include "ps/net/rpc.h"
#include "ps/net/scheduler_link.h"
#include "ps/server/checkpoint_desk.h"
#include "ps/server/hosted_table.h"
#include "ps/server/key_cache.h"
#include "ps/server/partition_roles.h"
#include "ps/server/push_handler.h"
#include "ps/server/replication.h"
#include "ps/server/responder.h"
#include "ps/server/restore_task.h"
#include "ps/server/row_counter.h"
#include "ps/server/table_request.h"

namespace parley {
namespace {

// News that nobody takes for so long are told again; the scheduler may be away.
constexpr absl::Duration kNewsDeadline = absl::Seconds(30);

}  // namespace

class ServerNode::Impl {
 public:
  Impl(Env* env, Transport* transport, Options options, absl::AnyInvocable<void(absl::Status)> done)
      : env_(env),
        transport_(transport),
        options_(std::move(options)),
        done_(std::move(done)),
        rpc_(env, transport),
        link_(env, transport, &rpc_, LinkOptions(), LinkHandlers()),
        pool_(options_.pool != nullptr ? options_.pool : &own_pool_),
        responder_(env, &rpc_),
        row_counter_(env),
        checkpoints_(env, &rpc_,
                     options_.files != nullptr ? options_.files : FileSystem::Posix()),
        replication_(env, &rpc_, ReplicationHooks()),
        roles_(transport->self(), &replication_, RoleHooks()) {}

  ~Impl() {
    // Before what they refer to.
    restore_.reset();
    checkpoints_.Abandon(absl::CancelledError("the server ends"));
    roles_.Clear();
  }

  void Start() {
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

  void Stop(const absl::Status& status) { link_.Fail(status); }

 private:
  template <typename Handler>
  void Handle(pb::Kind kind, Handler handler) {
    rpc_.Handle(kind, [this, kind, handler](NodeId from, Frame frame) {
      const uint32_t table = frame.header.table();
      OrEnd(kind, table, [&] { handler(from, std::move(frame)); });
    });
  }

  // Does `work`, in which updates may happen. Should memory run out, one may be half applied:
  // nobody is answered from it any more, and the shard ends.
  template <typename Work>
  void OrEnd(pb::Kind kind, uint32_t table, Work work) {
    if (out_of_memory_) return;
    if (inside_) return work();  // the outermost must not go on either
    inside_ = true;
    try {
      work();
    } catch (const std::bad_alloc&) {
      out_of_memory_ = true;
      link_.Fail(absl::ResourceExhaustedError(
          absl::StrFormat("out of memory in a %s about table %d; an update may be half applied, so "
                          "this shard ends",
                          pb::Kind_Name(kind), table)));
    }
    inside_ = false;
  }

  SchedulerLink::Options LinkOptions() {
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
    return link;
  }

  SchedulerLink::Handlers LinkHandlers() {
    SchedulerLink::Handlers handlers;
    handlers.on_welcome = [this](const pb::Welcome& welcome) { OnWelcome(welcome); };
    handlers.heartbeat = [this] { return MakeHeartbeat(); };
    handlers.log = [this](const std::string& line) { Log(line); };
    handlers.on_end = [this](absl::Status status) { done_(std::move(status)); };
    return handlers;
  }

  Replication::Hooks ReplicationHooks() {
    Replication::Hooks hooks;
    hooks.tell = [this](const pb::BackupNews& news, Rpc::Callback callback) {
      link_.Ask(pb::BACKUP_NEWS, news.SerializeAsString(), kNewsDeadline, "news of a copy",
                std::move(callback));
    };
    hooks.on_durable = [this] { responder_.ReleaseSoon(); };
    hooks.log = [this](const std::string& line) { Log(line); };
    return hooks;
  }

  PartitionRoles::Hooks RoleHooks() {
    PartitionRoles::Hooks hooks;
    hooks.on_give_up = [this](const std::set<const HostedPartition*>& leaving) {
      GiveUp(leaving);
    };
    hooks.request_norm = [this](uint32_t table, uint32_t partition, NormGroup group,
                                double share) {
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

  void Log(const std::string& line) {
    if (options_.log) options_.log(line);
  }

  void OnWelcome(const pb::Welcome& welcome) {
    job_ = welcome.job_id();
    rank_ = welcome.rank();
    experiment_ = welcome.experiment();
    Log(absl::StrFormat("joined job %s as %sserver %d shard %d, listening on %s", welcome.job(),
                        welcome.spare() ? "spare " : "", welcome.rank(), options_.shard,
                        transport_->endpoint()));
  }

  void OnAssign(NodeId from, const Frame& request) {
    pb::Assignment assignment;
    absl::Status status = from == kSchedulerNode
                              ? ParseBody(request, &assignment)
                              : absl::PermissionDeniedError("ASSIGN is the scheduler's to say");
    // The welcome, with the experiment, may be overtaken by what follows from it.
    if (status.ok() && job_ == 0)
      status = absl::UnavailableError("this server is not admitted yet");
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
      status = Move(assignment);
    } else {
      status = Begin(assignment);
      if (status.ok() && assignment.has_restore()) {
        assign_ = request.header;
        rpc_.ReplyParked(from, request.header, "the checkpoint to be read");
        return Restore(assignment);
      }
    }
    if (status.ok()) status = Activate(assignment);
    FinishAssign(from, request.header, status);
  }

  absl::Status CheckAssignment(const pb::Assignment& assignment) const {
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
  absl::Status Begin(const pb::Assignment& assignment) {
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
    context.probe = options_.probe;
    context.counters = &counters_;
    return roles_.Begin(assignment, context);
  }

  void Restore(const pb::Assignment& assignment) {
    std::vector<RestoreTask::Item> items;
    for (const auto& [id, table] : roles_.tables()) {
      for (HostedPartition* partition : table->hosted()) items.emplace_back(id, partition);
    }
    restoring_ = assignment;
    restore_ = std::make_unique<RestoreTask>(
        env_, options_.files != nullptr ? options_.files : FileSystem::Posix(), pool_,
        assignment.restore(), std::move(items), [this](absl::Status status) {
          OrEnd(pb::ASSIGN, 0, [&] {
            if (status.ok()) status = Activate(restoring_);
            FinishAssign(kSchedulerNode, assign_, status);
          });
          restore_.reset();
        });
  }

  absl::Status Move(const pb::Assignment& assignment) {
    const std::vector<HostedPartition*> before = roles_.primaries();
    row_counter_.Abandon();
    absl::Status status = roles_.Move(assignment);
    if (status.ok() && roles_.primaries() != before) {
      checkpoints_.Abandon(absl::FailedPreconditionError("partitions have moved meanwhile"));
    }
    return status;
  }

  // The tables are as the map says: connects them with the others, lets workers in.
  absl::Status Activate(const pb::Assignment& assignment) {
    absl::Status status = ConnectShards(assignment);
    if (!status.ok()) return status;
    epoch_ = assignment.map().epoch();
    TakeWorkers(assignment);
    for (const auto& [id, table] : roles_.tables()) ConnectNorms(assignment, table.get());
    roles_.Activate(assignment);
    for (HostedPartition* partition : roles_.primaries()) partition->Resume();
    responder_.Release();
    LogAssignment();
    return absl::OkStatus();
  }

  void FinishAssign(NodeId from, const pb::FrameHeader& request, const absl::Status& status) {
    if (absl::IsResourceExhausted(status)) {
      // It is not asked again in vain: the scheduler hears at once that it does not fit.
      link_.Fail(status);
    } else if (!status.ok()) {
      rpc_.ReplyError(from, request, status);
    } else {
      AnswerAssign(from, request);
    }
  }

  void AnswerAssign(NodeId from, const pb::FrameHeader& request) {
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
  void GiveUp(const std::set<const HostedPartition*>& leaving) {
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

  void TakeWorkers(const pb::Assignment& assignment) {
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

  // To those that copies and norms are sent to.
  absl::Status ConnectShards(const pb::Assignment& assignment) {
    std::map<NodeId, std::string> shards;
    for (const pb::ShardAddress& shard : assignment.map().shard()) {
      if (NodeId{shard.node()} != transport_->self()) {
        shards.emplace(NodeId{shard.node()}, shard.endpoint());
      }
    }
    std::set<NodeId> wanted;
    for (const auto& [id, table] : roles_.tables()) roles_.AddPeers(*table, &wanted);
    for (const auto& [id, table] : roles_.tables()) {
      const NodeId coordinator = table->NormSetup(assignment.map(), transport_->self()).coordinator;
      if (table->clips() && coordinator != transport_->self()) wanted.insert(coordinator);
    }
    for (NodeId node : wanted) {
      if (connected_.contains(node)) continue;
      absl::Status status = transport_->Connect(node, shards[node]);
      if (!status.ok()) return status;
      connected_.insert(node);
    }
    // Those that the map has lost are not coming back under this name.
    std::erase_if(connected_, [&](NodeId node) {
      if (shards.contains(node)) return false;
      transport_->Disconnect(node);
      return true;
    });
    return absl::OkStatus();
  }

  void LogAssignment() {
    uint64_t bytes = 0, hosted = 0;
    for (const auto& [id, table] : roles_.tables()) {
      hosted += table->hosted().size();
      for (const HostedPartition* partition : table->hosted()) {
        bytes += partition->values(0) * sizeof(float);
      }
    }
    Log(absl::StrFormat("epoch %d: %d partitions, %.1f KiB of dense weights, updates with %s",
                        epoch_, hosted, bytes / 1024.0, OptimizerKernelIsa()));
    for (const auto& [id, table] : roles_.tables()) Log(table->Describe());
  }

  // Anew with every map: who collects them may be another.
  void ConnectNorms(const pb::Assignment& assignment, HostedTable* table) {
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

  void ApplyNorm(const HostedTable& table, NormGroup group, double total) {
    const absl::Duration start = env_->Now();
    for (HostedPartition* partition : table.hosted()) partition->OnNorm(group, total);
    apply_time_ += env_->Now() - start;
    OnApplied();
  }

  // A rank is a claim until it is held against the node that the scheduler gave it to. Whatever map
  // a request was routed by, it is good if it fits this one.
  absl::Status CheckWorker(NodeId from, const pb::FrameHeader& header) const {
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

  absl::Status AtEpoch(const pb::FrameHeader& header, absl::StatusCode code) const {
    return absl::Status(
        code, absl::StrFormat("the request was routed by epoch %d, this shard is at epoch %d",
                              header.epoch(), epoch_));
  }

  // What another shard says goes by the map of both: an older one than this is the fence.
  absl::Status CheckShard(const pb::FrameHeader& header) const {
    if (epoch_ == 0) return absl::UnavailableError("this shard has no partitions yet");
    if (header.epoch() > epoch_) return AtEpoch(header, absl::StatusCode::kUnavailable);
    if (header.epoch() < epoch_) return AtEpoch(header, absl::StatusCode::kFailedPrecondition);
    return absl::OkStatus();
  }

  absl::StatusOr<HostedTable*> FindTable(const pb::FrameHeader& header) const {
    HostedTable* table = roles_.Find(header.table());
    if (table != nullptr) return table;
    return absl::InvalidArgumentError(absl::StrFormat("there is no table %d", header.table()));
  }

  // A push is taken before it is acknowledged or its pull is looked at; who waits for what it
  // completed is answered after it.
  void OnTableRequest(NodeId from, Frame frame) {
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
  bool IsHeld(const TableRequest& request) const {
    if (experiment_.consistency().mode() != pb::Consistency::BSP) return false;
    for (size_t i = 0; i < request.tickets.size(); ++i) {
      const std::optional<uint64_t>& tick = request.tickets[i].tick;
      if (tick && !request.partitions[i]->HasApplied(*tick)) return true;
    }
    return false;
  }

  // Something went into the weights.
  void OnApplied() {
    responder_.Release();
    checkpoints_.OnApplied();
  }

  // Finds all that the request names, or leaves `frame` as it is.
  absl::Status Resolve(Frame* frame, TableRequest* request) {
    absl::StatusOr<HostedTable*> table = FindTable(frame->header);
    if (!table.ok()) return table.status();
    if (frame->header.kind() == pb::PUSH_PULL && !frame->header.has_pull_tick()) {
      return absl::InvalidArgumentError("a PUSH_PULL needs the pull_tick that it is to read for");
    }
    return ResolveRequest(frame, *table, workers_[frame->header.rank()].keys.get(), request);
  }

  void OnLeave(NodeId from, const Frame& request) {
    pb::Leave leave;
    absl::Status status = CheckWorker(from, request.header);
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

  void OnNorm(NodeId from, const Frame& request) {
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
  void OnReplica(NodeId from, const Frame& request) {
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

  void OnCheckpoint(NodeId from, const Frame& request) {
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
    checkpoints_.OnRequest(
        from, request.header, checkpoint,
        absl::StrFormat("server-%d-%d.safetensors", rank_, options_.shard), tables,
        experiment_.consistency().mode() == pb::Consistency::BSP);
  }

  pb::Heartbeat MakeHeartbeat() {
    pb::Heartbeat heartbeat;
    heartbeat.set_waiting_for(responder_.WaitingFor());
    return heartbeat;
  }

  void OnCount(NodeId from, const Frame& request) {
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
  pb::ServerCounts Counts() const {
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

  // One worker, by its rank.
  struct Worker {
    NodeId node = kNoNode;  // who may push, pull and leave as that worker
    uint32_t incarnation = 0;
    std::unique_ptr<KeyCache> keys;
  };
  Worker MakeWorker(NodeId node, uint32_t incarnation) {
    return {node, incarnation,
            std::make_unique<KeyCache>(&own_pool_, options_.key_cache_bytes)};
  }

  // Constant after construction.
  Env* const env_;
  Transport* const transport_;
  Options options_;
  absl::AnyInvocable<void(absl::Status)> done_;

  // Owned by the loop.
  Rpc rpc_;
  SchedulerLink link_;
  uint64_t job_ = 0;
  pb::Experiment experiment_;
  uint32_t rank_ = 0;        // of the server process
  uint64_t epoch_ = 0;       // 0: no partitions yet
  uint64_t generation_ = 0;  // of them, or of those that are being read
  BufferPool own_pool_;
  BufferPool* const pool_;
  std::vector<Worker> workers_;  // by rank
  PushCounters counters_;
  bool inside_ = false;         // OrEnd
  bool out_of_memory_ = false;  // ending; the partitions are not to be used
  Responder responder_;
  RowCounter row_counter_;
  CheckpointDesk checkpoints_;
  Replication replication_;
  PartitionRoles roles_;
  std::set<NodeId> connected_;            // other shards
  std::unique_ptr<RestoreTask> restore_;  // null: none is under way
  pb::Assignment restoring_;              // what it is for
  pb::FrameHeader assign_;                // the last request that waits for it
  absl::Duration apply_time_;
};

ServerNode::ServerNode(Env* env, Transport* transport, Options options,
                       absl::AnyInvocable<void(absl::Status)> done)
    : impl_(std::make_unique<Impl>(env, transport, std::move(options), std::move(done))) {}
ServerNode::~ServerNode() = default;
void ServerNode::Start() { impl_->Start(); }
void ServerNode::Stop(const absl::Status& status) { impl_->Stop(status); }

}  // namespace parley
