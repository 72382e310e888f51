#include "ps/server/server_node.h"

#include <map>
#include <new>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "ps/net/admission.h"
#include "ps/net/rpc.h"
#include "ps/net/scheduler_link.h"
#include "ps/server/hosted_table.h"
#include "ps/server/key_cache.h"
#include "ps/server/pull_handler.h"
#include "ps/server/push_handler.h"
#include "ps/server/row_counter.h"
#include "ps/server/table_request.h"

namespace parley {

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
        pulls_(env, &rpc_),
        row_counter_(env) {}

  void Start() {
    rpc_.SetAdmission(
        [this](NodeId, const pb::FrameHeader& header) { return CheckAdmission(header, job_); });
    Handle(pb::ASSIGN, [this](NodeId from, Frame f) { OnAssign(from, f); });
    for (pb::Kind kind : {pb::PUSH, pb::PULL, pb::PUSH_PULL}) {
      Handle(kind, [this](NodeId from, Frame f) { OnTableRequest(from, std::move(f)); });
    }
    Handle(pb::LEAVE, [this](NodeId from, Frame f) { OnLeave(from, f); });
    Handle(pb::COUNT, [this](NodeId from, Frame f) { OnCount(from, f); });
    Handle(pb::NORM, [this](NodeId from, Frame f) { OnNorm(from, f); });
    link_.Start();
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
    handlers.on_end = [this](absl::Status status) { done_(std::move(status)); };
    return handlers;
  }

  void Log(const std::string& line) {
    if (options_.log) options_.log(line);
  }

  void OnWelcome(const pb::Welcome& welcome) {
    job_ = welcome.job_id();
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
    // The same assignment again means that its answer was lost.
    if (status.ok() && epoch_ == 0) status = TakeAssignment(assignment);
    if (status.ok() && assignment.map().epoch() != epoch_) {
      status = absl::FailedPreconditionError(absl::StrFormat(
          "epoch %d is assigned, this server is at epoch %d", assignment.map().epoch(), epoch_));
    }
    if (absl::IsResourceExhausted(status)) {
      // It is not asked again in vain: the scheduler hears at once that it does not fit.
      link_.Fail(status);
    } else if (!status.ok()) {
      rpc_.ReplyError(from, request.header, status);
    } else {
      rpc_.Reply(from, request.header, Frame());
    }
  }

  absl::Status TakeAssignment(const pb::Assignment& assignment) {
    if (assignment.map().epoch() == 0 || assignment.worker_incarnation().empty() ||
        assignment.worker_node_size() != assignment.worker_incarnation_size()) {
      return absl::InvalidArgumentError(
          "an assignment needs an epoch above 0, and workers with a node each");
    }
    HostedTable::Context context;
    context.self = transport_->self();
    context.consistency = experiment_.consistency();
    context.pool = pool_;
    context.probe = options_.probe;
    context.counters = &counters_;
    std::map<uint32_t, std::unique_ptr<HostedTable>> tables;
    for (int index = 0; index < assignment.table_size(); ++index) {
      const uint32_t id = assignment.table(index).id();
      absl::StatusOr<std::unique_ptr<HostedTable>> table =
          HostedTable::Create(assignment, index, context,
                              [this, id](uint32_t partition, NormGroup group, double share) {
                                tables_.at(id)->norms->Add(partition, group, share);
                              });
      if (!table.ok()) return table.status();
      absl::Status status = ConnectNorms(assignment, table->get());
      if (!status.ok()) return status;
      if (!tables.emplace(id, *std::move(table)).second) {
        return absl::InvalidArgumentError(absl::StrFormat("table %d is assigned twice", id));
      }
    }
    tables_ = std::move(tables);
    for (uint64_t node : assignment.worker_node()) {
      workers_.push_back({NodeId{node}, KeyCache(&own_pool_, options_.key_cache_bytes)});
    }
    epoch_ = assignment.map().epoch();
    LogAssignment();
    return absl::OkStatus();
  }

  void LogAssignment() {
    uint64_t bytes = 0, hosted = 0;
    for (const auto& [id, table] : tables_) {
      hosted += table->hosted().size();
      for (const HostedPartition* partition : table->hosted()) {
        bytes += partition->values(0) * sizeof(float);
      }
    }
    Log(absl::StrFormat("epoch %d: %d partitions, %.1f KiB of dense weights, updates with %s",
                        epoch_, hosted, bytes / 1024.0, OptimizerKernelIsa()));
    for (const auto& [id, table] : tables_) Log(table->Describe());
  }

  absl::Status ConnectNorms(const pb::Assignment& assignment, HostedTable* table) {
    NormExchange::Setup norms = table->NormSetup(assignment, transport_->self());
    norms.deadline = absl::Milliseconds(experiment_.cluster().progress_timeout_ms());
    if (table->clips() && norms.coordinator != transport_->self()) {
      absl::Status status = transport_->Connect(norms.coordinator, norms.coordinator_endpoint);
      if (!status.ok()) return status;
    }
    table->norms = std::make_unique<NormExchange>(
        &rpc_, transport_->self(), std::move(norms),
        [this, id = table->id()](NormGroup group, double total) {
          OrEnd(pb::NORM, id, [&] { ApplyNorm(*tables_.at(id), group, total); });
        },
        [this](const absl::Status& status) { link_.Fail(status); });
    return absl::OkStatus();
  }

  void ApplyNorm(const HostedTable& table, NormGroup group, double total) {
    const absl::Duration start = env_->Now();
    for (HostedPartition* partition : table.hosted()) partition->OnNorm(group, total);
    apply_time_ += env_->Now() - start;
    pulls_.Release();
  }

  // A rank is a claim until it is held against the node that the scheduler gave it to.
  absl::Status CheckWorker(NodeId from, const pb::FrameHeader& header) const {
    if (epoch_ == 0) return absl::UnavailableError("this shard has no partitions yet");
    if (header.rank() < workers_.size() && workers_[header.rank()].node == from) {
      return absl::OkStatus();
    }
    return absl::PermissionDeniedError(absl::StrFormat(
        "node %s is not worker %d of %d", ToString(from), header.rank(), workers_.size()));
  }

  // The table of a request that was routed by the map that this shard holds.
  absl::StatusOr<HostedTable*> Route(const pb::FrameHeader& header) {
    if (epoch_ == 0) return absl::UnavailableError("this shard has no partitions yet");
    if (header.epoch() != epoch_) {
      return absl::FailedPreconditionError(absl::StrFormat(
          "the request was routed by epoch %d, this shard is at epoch %d", header.epoch(), epoch_));
    }
    auto found = tables_.find(header.table());
    if (found == tables_.end()) {
      return absl::InvalidArgumentError(absl::StrFormat("there is no table %d", header.table()));
    }
    return found->second.get();
  }

  // A push is taken before it is acknowledged or its pull is looked at; who waits for what it
  // completed is answered after it.
  void OnTableRequest(NodeId from, Frame frame) {
    const pb::Kind kind = frame.header.kind();
    absl::Status status = CheckWorker(from, frame.header);
    if (status.ok() && kind != pb::PUSH && pulls_.TellIfHeld(from, frame.header)) return;
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
      status = TakePush(&request, &own_pool_, /*keep_keys=*/kind == pb::PUSH_PULL);
      apply_time_ += env_->Now() - start;
      if (!status.ok()) {
        rpc_.ReplyError(from, request.header, status);
        return;
      }
    }
    if (kind == pb::PUSH) {
      rpc_.Reply(from, request.header, Frame());
    } else {
      pulls_.Pull(from, std::move(request));
    }
    if (counters_.applied != applied) pulls_.Release();
  }

  // Finds all that the request names, or leaves `frame` as it is.
  absl::Status Resolve(Frame* frame, TableRequest* request) {
    absl::StatusOr<HostedTable*> table = Route(frame->header);
    if (!table.ok()) return table.status();
    if (frame->header.kind() == pb::PUSH_PULL && !frame->header.has_pull_tick()) {
      return absl::InvalidArgumentError("a PUSH_PULL needs the pull_tick that it is to read for");
    }
    return ResolveRequest(frame, *table, &workers_[frame->header.rank()].keys, request);
  }

  void OnLeave(NodeId from, const Frame& request) {
    pb::Leave leave;
    absl::Status status = CheckWorker(from, request.header);
    if (status.ok()) status = ParseBody(request, &leave);
    if (!status.ok()) {
      rpc_.ReplyError(from, request.header, status);
      return;
    }
    const absl::Duration start = env_->Now();
    for (auto& [id, table] : tables_) {
      for (HostedPartition* partition : table->hosted()) {
        partition->OnLeave(request.header.rank(), leave.after_tick());
      }
    }
    apply_time_ += env_->Now() - start;
    rpc_.Reply(from, request.header, Frame());
    pulls_.Release();
  }

  void OnNorm(NodeId from, const Frame& request) {
    pb::Norm norm;
    absl::StatusOr<HostedTable*> table = Route(request.header);
    absl::Status status = table.ok() ? ParseBody(request, &norm) : table.status();
    if (!status.ok()) {
      rpc_.ReplyError(from, request.header, status);
      return;
    }
    (*table)->norms->OnRequest(from, request, norm);
  }

  pb::Heartbeat MakeHeartbeat() {
    pb::Heartbeat heartbeat;
    heartbeat.set_waiting_for(pulls_.WaitingFor());
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
    for (const auto& [id, table] : tables_) {
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

  pb::ServerCounts Counts() const {
    pb::ServerCounts counts;
    counts.set_pushes_accepted(counters_.accepted);
    counts.set_pushes_applied(counters_.applied);
    counts.set_pushes_dropped(counters_.dropped);
    counts.set_pushes_duplicate(counters_.duplicate);
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
    KeyCache keys;
  };

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
  uint64_t epoch_ = 0;  // 0: no partitions yet
  BufferPool own_pool_;
  BufferPool* const pool_;
  std::vector<Worker> workers_;  // by rank
  PushCounters counters_;
  bool inside_ = false;         // OrEnd
  bool out_of_memory_ = false;  // ending; the partitions are not to be used
  std::map<uint32_t, std::unique_ptr<HostedTable>> tables_;
  PullHandler pulls_;
  RowCounter row_counter_;
  absl::Duration apply_time_;
};

ServerNode::ServerNode(Env* env, Transport* transport, Options options,
                       absl::AnyInvocable<void(absl::Status)> done)
    : impl_(std::make_unique<Impl>(env, transport, std::move(options), std::move(done))) {}
ServerNode::~ServerNode() = default;
void ServerNode::Start() { impl_->Start(); }
void ServerNode::Stop(const absl::Status& status) { impl_->Stop(status); }

}  // namespace parley
