#include "ps/server/server_node.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/base/buffer.h"
#include "ps/base/dense_layout.h"
#include "ps/net/admission.h"
#include "ps/net/rpc.h"
#include "ps/net/scheduler_link.h"
#include "ps/server/hosted_partition.h"
#include "ps/server/norm_exchange.h"
#include "ps/server/parked_pulls.h"

namespace parley {
namespace {

// A pull that waits longer than this is told that it is parked. Below the first retry of rpc.h,
// above a usual step.
constexpr absl::Duration kParkedNotice = absl::Milliseconds(300);

// One table on this shard.
struct HostedTable {
  std::unique_ptr<Optimizer> optimizer;
  std::unique_ptr<NormExchange> norms;
  std::map<uint32_t, std::unique_ptr<HostedPartition>> partitions;
};

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
        pool_(options_.pool != nullptr ? options_.pool : &own_pool_) {}

  ~Impl() { env_->Cancel(parked_timer_); }

  void Start() {
    rpc_.SetAdmission(
        [this](NodeId, const pb::FrameHeader& header) { return CheckAdmission(header, job_); });
    rpc_.Handle(pb::ASSIGN, [this](NodeId from, Frame f) { OnAssign(from, f); });
    rpc_.Handle(pb::PUSH, [this](NodeId from, Frame f) { OnPush(from, std::move(f)); });
    rpc_.Handle(pb::PULL, [this](NodeId from, Frame f) { OnPull(from, f); });
    rpc_.Handle(pb::LEAVE, [this](NodeId from, Frame f) { OnLeave(from, f); });
    rpc_.Handle(pb::COUNT, [this](NodeId from, Frame f) { OnCount(from, f); });
    rpc_.Handle(pb::NORM, [this](NodeId from, Frame f) { OnNorm(from, f); });
    link_.Start();
  }

  void Stop(const absl::Status& status) { link_.Fail(status); }

 private:
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
    if (!status.ok()) {
      rpc_.ReplyError(from, request.header, status);
      return;
    }
    rpc_.Reply(from, request.header, Frame());
  }

  absl::Status TakeAssignment(const pb::Assignment& assignment) {
    const pb::PartitionMap& map = assignment.map();
    const std::vector<uint32_t> incarnations(assignment.worker_incarnation().begin(),
                                             assignment.worker_incarnation().end());
    if (map.epoch() == 0 || incarnations.empty() ||
        assignment.worker_node_size() != assignment.worker_incarnation_size()) {
      return absl::InvalidArgumentError(
          "an assignment needs an epoch above 0, and workers with a node each");
    }
    for (uint64_t node : assignment.worker_node()) worker_nodes_.push_back(NodeId{node});
    uint64_t bytes = 0, hosted = 0;
    for (const pb::TableSpec& spec : assignment.table()) {
      absl::StatusOr<DenseLayout> layout = DenseLayout::Create(spec);
      if (!layout.ok()) return layout.status();
      const auto table_map = std::find_if(map.table().begin(), map.table().end(),
                                          [&](const auto& t) { return t.table() == spec.id(); });
      if (table_map == map.table().end() ||
          static_cast<uint32_t>(table_map->owner_size()) != layout->partitions()) {
        return absl::InvalidArgumentError(absl::StrFormat(
            "table '%s': the map does not name an owner for each of its %d partitions", spec.name(),
            layout->partitions()));
      }
      for (uint32_t owner : table_map->owner()) {
        if (owner >= static_cast<uint32_t>(map.shard_size())) {
          return absl::InvalidArgumentError(
              absl::StrFormat("owner %d is no shard of the map", owner));
        }
      }
      absl::Status status = HostTable(spec, *layout, *table_map, map, incarnations);
      if (!status.ok()) return status;
      for (const auto& [index, partition] : tables_[spec.id()].partitions) {
        bytes += partition->size() * sizeof(float);
        ++hosted;
      }
    }
    epoch_ = map.epoch();
    Log(absl::StrFormat("epoch %d: %d partitions, %.1f KiB of weights, updates with %s", epoch_,
                        hosted, bytes / 1024.0, OptimizerKernelIsa()));
    return absl::OkStatus();
  }

  absl::Status HostTable(const pb::TableSpec& spec, const DenseLayout& layout,
                         const pb::TableMap& table_map, const pb::PartitionMap& map,
                         const std::vector<uint32_t>& incarnations) {
    absl::StatusOr<std::unique_ptr<Optimizer>> optimizer = Optimizer::Create(spec.optimizer());
    if (!optimizer.ok()) return optimizer.status();
    HostedTable& table = tables_[spec.id()];
    table.optimizer = *std::move(optimizer);
    NormExchange::Setup norms;
    norms.table = spec.id();
    for (uint32_t owner : table_map.owner())
      norms.owners.push_back(NodeId{map.shard(owner).node()});
    norms.epoch = map.epoch();
    norms.deadline = absl::Milliseconds(experiment_.cluster().progress_timeout_ms());
    const pb::ShardAddress& coordinator = map.shard(table_map.owner(0));
    norms.coordinator = NodeId{coordinator.node()};
    norms.coordinator_name = absl::StrFormat("server %d shard %d (%s)", coordinator.server_rank(),
                                             coordinator.shard(), coordinator.endpoint());
    for (uint32_t index = 0; index < layout.partitions(); ++index) {
      if (NodeId{map.shard(table_map.owner(index)).node()} != transport_->self()) continue;
      HostedPartition::Setup setup;
      setup.table = spec.id();
      setup.index = index;
      setup.consistency = experiment_.consistency();
      setup.worker_incarnations = incarnations;
      setup.optimizer = table.optimizer.get();
      setup.probe = options_.probe;
      setup.counters = &counters_;
      table.partitions[index] = std::make_unique<HostedPartition>(
          spec, layout, std::move(setup), pool_,
          [this, id = spec.id()](uint32_t partition, NormGroup group, double share) {
            tables_[id].norms->Add(partition, group, share);
          });
      ++norms.local_partitions;
    }
    if (table.optimizer->clip_norm() > 0 && norms.coordinator != transport_->self()) {
      absl::Status status = transport_->Connect(norms.coordinator, coordinator.endpoint());
      if (!status.ok()) return status;
    }
    table.norms = std::make_unique<NormExchange>(
        &rpc_, transport_->self(), std::move(norms),
        [this, id = spec.id()](NormGroup group, double total) {
          const absl::Duration start = env_->Now();
          for (auto& [index, partition] : tables_[id].partitions) partition->OnNorm(group, total);
          apply_time_ += env_->Now() - start;
          ReleasePulls();
        },
        [this](const absl::Status& status) { link_.Fail(status); });
    return absl::OkStatus();
  }

  // A rank is a claim until it is held against the node that the scheduler gave it to.
  absl::Status CheckWorker(NodeId from, const pb::FrameHeader& header) const {
    if (epoch_ == 0) return absl::UnavailableError("this shard has no partitions yet");
    if (header.rank() < worker_nodes_.size() && worker_nodes_[header.rank()] == from) {
      return absl::OkStatus();
    }
    return absl::PermissionDeniedError(absl::StrFormat(
        "node %s is not worker %d of %d", ToString(from), header.rank(), worker_nodes_.size()));
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
    return &found->second;
  }

  // The partitions that the parts name, each once.
  static absl::StatusOr<std::vector<HostedPartition*>> Find(HostedTable& table,
                                                            const pb::FrameHeader& header) {
    if (header.part().empty()) return absl::InvalidArgumentError("the request names no partition");
    std::vector<HostedPartition*> found;
    std::set<uint32_t> seen;
    for (const pb::Part& part : header.part()) {
      auto it = table.partitions.find(part.partition());
      if (it == table.partitions.end() || !seen.insert(part.partition()).second) {
        return absl::InvalidArgumentError(
            absl::StrFormat("table %d, partition %d: %s", header.table(), part.partition(),
                            it == table.partitions.end() ? "not on this shard" : "named twice"));
      }
      found.push_back(it->second.get());
    }
    return found;
  }

  void OnPush(NodeId from, Frame request) {
    absl::Status status = CheckWorker(from, request.header);
    if (status.ok()) status = TakePush(request);
    if (!status.ok()) {
      rpc_.ReplyError(from, request.header, status);
      return;
    }
    rpc_.Reply(from, request.header, Frame());
    ReleasePulls();
  }

  absl::Status TakePush(Frame& request) {
    const pb::FrameHeader& header = request.header;
    absl::StatusOr<HostedTable*> table = Route(header);
    if (!table.ok()) return table.status();
    absl::StatusOr<std::vector<HostedPartition*>> partitions = Find(**table, header);
    if (!partitions.ok()) return partitions.status();
    // All parts or none: a push that is half taken could be neither acknowledged nor refused.
    for (int i = 0; i < header.part_size(); ++i) {
      absl::Status status = (*partitions)[i]->CheckPush(header, header.part(i));
      if (!status.ok()) return status;
    }
    const absl::Duration start = env_->Now();
    size_t next_payload = 0;
    for (int i = 0; i < header.part_size(); ++i) {
      Buffer gradient;
      if (header.part(i).count() > 0) gradient = std::move(request.payload[next_payload++]);
      absl::Status status = (*partitions)[i]->TakePush(header, header.part(i), std::move(gradient));
      if (!status.ok()) return status;
    }
    apply_time_ += env_->Now() - start;
    return absl::OkStatus();
  }

  void OnPull(NodeId from, const Frame& request) {
    absl::StatusOr<HostedTable*> table = Route(request.header);
    absl::Status status = CheckWorker(from, request.header);
    if (status.ok()) status = table.status();
    if (status.ok()) status = Find(**table, request.header).status();
    bool is_new = true;
    if (status.ok()) {
      if (AnswerPull(from, request.header)) return;
      status = parked_.Park(from, request.header, env_->Now(), &is_new);
    }
    if (!status.ok()) {
      rpc_.ReplyError(from, request.header, status);
    } else if (!is_new) {
      rpc_.ReplyParked(from, request.header, WaitsFor(request.header));
    } else if (parked_timer_ == kNoTimer) {
      parked_timer_ = env_->After(kParkedNotice, [this] { NotifyParked(); });
    }
  }

  // Answers if the policy allows it for every partition. REQUIRES: Route and Find were OK.
  bool AnswerPull(NodeId from, const pb::FrameHeader& request) {
    std::map<uint32_t, std::unique_ptr<HostedPartition>>& partitions =
        tables_[request.table()].partitions;
    for (const pb::Part& part : request.part()) {
      if (!partitions[part.partition()]->MayRead(request.tick())) return false;
    }
    Frame answer;
    answer.header.set_table(request.table());
    answer.header.set_tick(request.tick());
    for (const pb::Part& part : request.part()) {
      answer.payload.push_back(partitions[part.partition()]->Read(request.rank(), request.tick(),
                                                                  answer.header.add_part()));
    }
    rpc_.Reply(from, request, std::move(answer));
    return true;
  }

  std::string WaitsFor(const pb::FrameHeader& request) {
    for (const pb::Part& part : request.part()) {
      const HostedPartition& partition = *tables_[request.table()].partitions[part.partition()];
      if (!partition.MayRead(request.tick())) return partition.WaitsFor(request.tick());
    }
    return "";
  }

  void ReleasePulls() {
    if (parked_.empty()) return;
    parked_.Release(
        [this](ParkedPulls::Entry& entry) { return AnswerPull(entry.from, entry.request); });
  }

  // Tells each caller once that its pull is held; if that is lost, the caller asks again and is
  // told again.
  void NotifyParked() {
    parked_timer_ = kNoTimer;
    bool more = false;
    parked_.Release([&](ParkedPulls::Entry& entry) {
      if (!entry.told && env_->Now() - entry.since >= kParkedNotice) {
        entry.told = true;
        rpc_.ReplyParked(entry.from, entry.request, WaitsFor(entry.request));
      }
      more |= !entry.told;
      return false;
    });
    if (more) parked_timer_ = env_->After(kParkedNotice, [this] { NotifyParked(); });
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
      for (auto& [index, partition] : table.partitions) {
        partition->OnLeave(request.header.rank(), leave.after_tick());
      }
    }
    apply_time_ += env_->Now() - start;
    rpc_.Reply(from, request.header, Frame());
    ReleasePulls();
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
    parked_.Release([&](ParkedPulls::Entry& entry) {
      if (entry.told && heartbeat.waiting_for().empty())
        heartbeat.set_waiting_for(WaitsFor(entry.request));
      return false;
    });
    return heartbeat;
  }

  void OnCount(NodeId from, const Frame& request) {
    if (from != kSchedulerNode) {
      rpc_.ReplyError(from, request.header,
                      absl::PermissionDeniedError("COUNT is the scheduler's to ask"));
      return;
    }
    pb::ServerCounts counts;
    counts.set_pushes_accepted(counters_.accepted);
    counts.set_pushes_applied(counters_.applied);
    counts.set_pushes_dropped(counters_.dropped);
    counts.set_pushes_duplicate(counters_.duplicate);
    counts.set_apply_seconds(absl::ToDoubleSeconds(apply_time_));
    counts.set_bytes_in(transport_->counters().bytes_in);
    counts.set_bytes_out(transport_->counters().bytes_out);
    Frame answer;
    answer.header.set_body(counts.SerializeAsString());
    rpc_.Reply(from, request.header, std::move(answer));
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
  uint64_t epoch_ = 0;                // 0: no partitions yet
  std::vector<NodeId> worker_nodes_;  // by rank
  BufferPool own_pool_;
  BufferPool* const pool_;
  PushCounters counters_;
  std::map<uint32_t, HostedTable> tables_;
  ParkedPulls parked_;
  TimerId parked_timer_ = kNoTimer;
  absl::Duration apply_time_;
};

ServerNode::ServerNode(Env* env, Transport* transport, Options options,
                       absl::AnyInvocable<void(absl::Status)> done)
    : impl_(std::make_unique<Impl>(env, transport, std::move(options), std::move(done))) {}
ServerNode::~ServerNode() = default;
void ServerNode::Start() { impl_->Start(); }
void ServerNode::Stop(const absl::Status& status) { impl_->Stop(status); }

}  // namespace parley
