#include "tests/sim/checkers.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace parley {
namespace {

constexpr uint64_t kFinalRead = ~uint64_t{0};

uint64_t AllowedStaleness(const pb::Consistency& consistency) {
  switch (consistency.mode()) {
    case pb::Consistency::BSP:
      return 0;
    case pb::Consistency::SSP:
      return consistency.staleness();
    case pb::Consistency::ASP:
      return kFinalRead;
  }
  return 0;
}

uint32_t BackupWorkers(const pb::Consistency& consistency) {
  return consistency.mode() == pb::Consistency::BSP ? consistency.backup_workers() : 0;
}

bool IsPush(const Frame& frame) {
  return frame.header.kind() == pb::PUSH || frame.header.kind() == pb::PUSH_PULL;
}

}  // namespace

class HistoryChecker::Probe : public ServerProbe {
 public:
  Probe(HistoryChecker* checker, NodeId node) : checker_(checker), node_(node) {}

  void OnIndex(uint32_t table, uint32_t index, uint64_t operation) override {
    checker_->servers_[node_].next_index[{table, index}] = operation;
  }
  void OnApply(uint32_t table, uint32_t index, uint64_t tick, const std::vector<uint32_t>& workers,
               uint64_t version) override {
    checker_->OnApply(node_, {table, index}, tick, workers, version);
  }
  void OnUpdateWithoutTick(uint32_t table, uint32_t index, uint32_t worker, uint64_t sequence,
                           uint64_t version) override {
    checker_->OnUpdateWithoutTick(node_, {table, index}, worker, sequence, version);
  }
  void OnAccept(uint32_t table, uint32_t index, uint32_t worker, uint64_t tick,
                bool late) override {
    checker_->OnAccept(node_, {table, index}, worker, tick, late);
  }
  void OnRead(uint32_t table, uint32_t index, uint32_t worker, uint64_t tick,
              uint64_t version) override {
    checker_->OnRead(node_, {table, index}, worker, tick, version);
  }

 private:
  HistoryChecker* const checker_;
  const NodeId node_;
};

HistoryChecker::HistoryChecker(const pb::Consistency& consistency, uint32_t workers)
    : consistency_(consistency), workers_(workers), ticks_of_(workers, 0) {}

std::unique_ptr<ServerProbe> HistoryChecker::ProbeOf(NodeId node) {
  return std::make_unique<Probe>(this, node);
}

std::string HistoryChecker::Partition::Name() const {
  return absl::StrFormat("partition %d of table %d", index, table);
}

void HistoryChecker::ExpectTable(uint32_t table, uint32_t partitions) {
  for (uint32_t index = 0; index < partitions; ++index) expected_.insert({table, index});
}

void HistoryChecker::Violation(std::string line) {
  if (violations_.size() < 20) violations_.push_back(std::move(line));
}

Branch& HistoryChecker::Of(NodeId node, Partition partition) {
  const Server& server = servers_[node];
  const Line line{server.generation, partition};
  auto role = server.roles.find(partition);
  const Role none, &as = role == server.roles.end() ? none : role->second;
  Lineage& lineage =
      lineages_.try_emplace(line, workers_, first_step_[server.generation]).first->second;
  std::vector<Update> left_behind;
  Branch& branch = lineage.Of(node, as.stint, as.base, &left_behind);
  CheckTakeOver(line, node, left_behind);
  return branch;
}

void HistoryChecker::CheckTakeOver(const Line& line, NodeId node,
                                   const std::vector<Update>& left_behind) {
  for (const Update& update : left_behind) {
    if (!update.tick.has_value()) continue;
    for (uint32_t worker : update.workers) {
      auto promised = promised_[line].find({worker, *update.tick});
      if (promised == promised_[line].end()) continue;
      Violation(absl::StrFormat(
          "tick %d of worker %d is lost: node %s had acknowledged it to be in %s, and node %s goes "
          "on without it",
          *update.tick, worker, ToString(promised->second), line.second.Name(), ToString(node)));
    }
  }
}

void HistoryChecker::OnApply(NodeId node, Partition partition, uint64_t tick,
                             const std::vector<uint32_t>& workers, uint64_t version) {
  ++applies_;
  Server& server = servers_[node];
  const uint64_t index = server.next_index[partition];
  Branch& branch = Of(node, partition);
  if (branch.version().has_value() && version < *branch.version()) {
    Violation(absl::StrFormat("%s went back from version %d to %d", partition.Name(),
                              *branch.version(), version));
  }
  const Line line{server.generation, partition};
  Update update{.index = index, .tick = tick, .workers = workers, .version = version};
  for (uint32_t worker : workers) {
    update.weights.push_back(WeightOf(node, line, {worker, tick}));
    if (accepted_[line].contains({worker, tick})) continue;
    Violation(absl::StrFormat("tick %d of worker %d was applied to %s, never accepted", tick,
                              worker, partition.Name()));
  }
  // With backup workers a step is closed for those too that were not waited for.
  update.closes_all = BackupWorkers(consistency_) > 0;
  uint32_t again = 0;
  if (!branch.Add(std::move(update), &again)) {
    Violation(absl::StrFormat("tick %d of worker %d was applied 2 times to %s", tick, again,
                              partition.Name()));
  }
}

// What it took itself; of gradients that came with a state, what anybody took.
double HistoryChecker::WeightOf(NodeId node, const Line& line, Mark mark) const {
  auto own = weights_.find({line, node, mark});
  if (own != weights_.end()) return own->second;
  auto of_line = accepted_.find(line);
  if (of_line == accepted_.end()) return 0;
  auto any = of_line->second.find(mark);
  return any == of_line->second.end() ? 0 : any->second;
}

void HistoryChecker::OnUpdateWithoutTick(NodeId node, Partition partition, uint32_t worker,
                                         uint64_t sequence, uint64_t version) {
  ++applies_;
  ++updates_without_tick_;
  const uint64_t index = servers_[node].next_index[partition];
  Update update{.index = index, .workers = {worker}, .sequence = sequence, .version = version};
  uint32_t again = 0;
  if (!Of(node, partition).Add(std::move(update), &again)) {
    Violation(absl::StrFormat(
        "sequence %d of worker %d, an update without tick, was applied 2 times to %s", sequence,
        worker, partition.Name()));
  }
  if (consistency_.mode() != pb::Consistency::ASP) {
    Violation(absl::StrFormat(
        "sequence %d of worker %d, an update without tick, came to %s under %s", sequence, worker,
        partition.Name(), pb::Consistency::Mode_Name(consistency_.mode())));
  }
}

void HistoryChecker::OnAccept(NodeId node, Partition partition, uint32_t worker, uint64_t tick,
                              bool late) {
  Server& server = servers_[node];
  const Line line{server.generation, partition};
  Branch& branch = Of(node, partition);
  const int times = ++taken_[{line, node, branch.stint(), {worker, tick}}];
  if (times > 1) {
    Violation(absl::StrFormat("tick %d of worker %d was accepted %d times by %s", tick, worker,
                              times, partition.Name()));
  }
  if (times == 1 && branch.Has(worker, tick)) {
    Violation(absl::StrFormat("tick %d of worker %d was accepted by %s, which has it already", tick,
                              worker, partition.Name()));
  }
  accepted_[line][{worker, tick}] = server.arriving;
  weights_[{line, node, {worker, tick}}] = server.arriving;
  if (worker < workers_) ticks_of_[worker] = std::max(ticks_of_[worker], tick + 1);
  if (!late) return;
  Update update{.index = server.next_index[partition] + 1, .tick = tick, .workers = {worker}};
  update.late = true;
  uint32_t unused;
  branch.Add(std::move(update), &unused);
}

void HistoryChecker::OnRead(NodeId node, Partition partition, uint32_t worker, uint64_t tick,
                            uint64_t version) {
  Branch& branch = Of(node, partition);
  branch.Begin(version);
  const bool by_tick = consistency_.mode() == pb::Consistency::BSP &&
                       BackupWorkers(consistency_) == 0 && tick != kFinalRead;
  const std::optional<uint64_t> expected = by_tick ? branch.VersionFor(tick) : branch.version();
  // To a request that came again, long after its first answer, a later one may be sent: nothing
  // will be made of it.
  if (expected.has_value() && (version < *expected || version > *branch.version())) {
    Violation(
        absl::StrFormat("worker %d was sent version %d of %s for tick %d, expected is %d to %d",
                        worker, version, partition.Name(), tick, *expected, *branch.version()));
  }
  reads_.push_back({partition, worker, tick, branch.closed()});
}

void HistoryChecker::OnArrival(NodeId from, NodeId to, const Frame& frame) {
  const pb::FrameHeader& header = frame.header;
  if (header.kind() == pb::ASSIGN) return OnAssign(to, frame);
  if (IsPush(frame)) {
    servers_[to].arriving = header.weight();
    Push push{header.table(), header.rank(), header.has_tick(), header.tick(), {}};
    for (const pb::Part& part : header.part()) {
      push.parts.emplace_back(part.partition(), part.sequence());
    }
    pushes_.try_emplace({from, header.request_id()}, std::move(push));
  } else if (header.kind() == pb::REPLY && header.status_code() == 0) {
    if (auto told = unsynced_.find({to, header.request_id()}); told != unsynced_.end()) {
      std::erase(servers_[to].roles[told->second.first].synced, told->second.second);
    }
    auto copying = copying_.find({to, header.request_id()});
    if (copying == copying_.end()) return;
    const auto& [partition, index] = copying->second;
    uint64_t& has = copied_[{servers_[to].generation, to, from, partition}];
    has = std::max(has, index);
  }
}

void HistoryChecker::OnSend(NodeId from, NodeId to, const Frame& frame) {
  const pb::FrameHeader& header = frame.header;
  if (header.kind() == pb::BACKUP_NEWS) return OnNews(from, frame);
  if (header.kind() == pb::REPLICATE && header.part_size() > 0) {
    pb::ReplicaOp op;
    if (!op.ParseFromString(header.body())) return;
    copying_[{from, header.request_id()}] = {{header.table(), header.part(0).partition()},
                                             op.index()};
  } else if (header.kind() == pb::SYNC && header.part_size() > 0) {
    pb::PartitionState state;
    if (!state.ParseFromString(header.body())) return;
    uint64_t bytes = 0;
    for (const Buffer& buffer : frame.payload) bytes += buffer.size();
    if (state.offset() + bytes < state.total_bytes()) return;
    copying_[{from, header.request_id()}] = {{header.table(), header.part(0).partition()},
                                             state.index()};
  } else if (header.kind() == pb::REPLY && header.status_code() == 0) {
    auto push = pushes_.find({to, header.request_id()});
    if (push != pushes_.end() && push->second.has_tick) OnAcknowledged(from, push->second);
  }
}

// Nothing here damages a state: one that differs was made so.
void HistoryChecker::OnNews(NodeId primary, const Frame& frame) {
  pb::BackupNews news;
  if (!news.ParseFromString(frame.header.body())) return;
  if (news.what() == pb::BackupNews::UNSYNCED) {
    unsynced_[{primary, frame.header.request_id()}] = {{news.table(), news.partition()},
                                                       NodeId{news.node()}};
  }
  if (news.what() != pb::BackupNews::DIVERGED ||
      news.text().find("has the digest") == std::string::npos) {
    return;
  }
  Violation(absl::StrFormat("copy %s of node %s came to another state: %s",
                            ToString(NodeId{news.node()}), ToString(primary), news.text()));
}

// The naive model of an acknowledgement: what is behind it, at the moment when it is given.
void HistoryChecker::OnAcknowledged(NodeId node, const Push& push) {
  Server& server = servers_[node];
  for (const auto& [index, sequence] : push.parts) {
    const Partition partition{push.table, index};
    const Line line{server.generation, partition};
    const Role& role = server.roles[partition];
    acknowledged_[line].try_emplace({push.rank, push.tick}, node);
    const auto what = [&] {
      return absl::StrFormat("node %s acknowledged tick %d of worker %d for %s", ToString(node),
                             push.tick, push.rank, partition.Name());
    };
    if (!role.primary) Violation(absl::StrCat(what(), ", which it is not the primary of"));
    if (!role.primary || role.copies.empty()) continue;
    ++promises_;
    // One that has only just become primary has said nothing yet: then, of its predecessor.
    const Lineage& lineage =
        lineages_.try_emplace(line, workers_, first_step_[server.generation]).first->second;
    const Branch* own = lineage.Find(node, role.stint);
    const Branch* branch = own != nullptr ? own : lineage.current();
    if (branch == nullptr || !branch->Has(push.rank, push.tick)) {
      if (branch == nullptr || branch->closed()[push.rank] <= push.tick) {
        Violation(absl::StrCat(what(), ", which is not in the weights though there are copies"));
      }
      continue;
    }
    promised_[line].try_emplace({push.rank, push.tick}, node);
    const uint64_t operation = branch->IndexOf(push.rank, push.tick);
    if (own == nullptr || operation <= branch->base()) continue;
    const Branch* next = lineage.After(role.stint);
    if (next != nullptr && operation > next->base()) {
      Violation(absl::StrFormat("%s when its time was over: node %s had gone on without it", what(),
                                ToString(next->node())));
    }
    for (NodeId copy : role.synced) {
      const uint64_t has = copied_[{server.generation, node, copy, partition}];
      if (has >= operation) continue;
      Violation(absl::StrFormat("%s before copy %s said that it has it: operation %d, not %d",
                                what(), ToString(copy), has, operation));
    }
  }
}

void HistoryChecker::OnAssign(NodeId node, const Frame& frame) {
  pb::Assignment assignment;
  if (!assignment.ParseFromString(frame.header.body())) return;
  Server& server = servers_[node];
  const std::pair<uint64_t, uint64_t> now{assignment.generation(), assignment.map().epoch()};
  if (now <= std::pair{server.generation, server.epoch}) return;
  if (assignment.generation() > server.generation) {
    server.roles.clear();
    server.next_index.clear();
  }
  std::tie(server.generation, server.epoch) = now;
  generation_ = std::max(generation_, server.generation);
  first_step_[server.generation] = assignment.restore().step();
  const auto node_of = [&](uint32_t shard) {
    return shard < static_cast<uint32_t>(assignment.map().shard_size())
               ? NodeId{assignment.map().shard(shard).node()}
               : kNoNode;
  };
  for (const pb::TableMap& table : assignment.map().table()) {
    for (int index = 0; index < table.owner_size(); ++index) {
      Role& role = server.roles[{table.table(), static_cast<uint32_t>(index)}];
      const bool primary = node_of(table.owner(index)) == node;
      if (primary && !role.primary) {
        role.stint = server.epoch;
        role.base = server.next_index[{table.table(), static_cast<uint32_t>(index)}];
      }
      role.primary = primary;
      role.copies.clear();
      role.synced.clear();
    }
    for (const pb::Backup& backup : table.backup()) {
      Role& role = server.roles[{table.table(), backup.partition()}];
      role.copies.push_back(node_of(backup.shard()));
      if (backup.synced()) role.synced.push_back(node_of(backup.shard()));
    }
  }
}

uint64_t HistoryChecker::first_step() const {
  auto first = first_step_.find(generation_);
  return first == first_step_.end() ? 0 : first->second;
}

std::set<HistoryChecker::Partition> HistoryChecker::FinalPartitions() const {
  std::set<Partition> partitions = expected_;
  for (const auto& [line, lineage] : lineages_) {
    if (line.first == generation_) partitions.insert(line.second);
  }
  return partitions;
}

void HistoryChecker::VisitFinal(
    absl::FunctionRef<void(const std::string& name, const std::vector<Update>& updates)> visit)
    const {
  for (Partition partition : FinalPartitions()) {
    auto lineage = lineages_.find({generation_, partition});
    const Branch* branch = lineage == lineages_.end() ? nullptr : lineage->second.current();
    visit(partition.Name(), branch == nullptr ? std::vector<Update>() : branch->updates());
  }
}

void HistoryChecker::FinishPartition(Partition partition, bool closed_without, uint64_t* applied,
                                     uint64_t* late) {
  const Line line{generation_, partition};
  auto lineage = lineages_.find(line);
  const Branch* branch = lineage == lineages_.end() ? nullptr : lineage->second.current();
  std::map<uint64_t, uint32_t> late_of_step;
  for (const Update& update : branch == nullptr ? std::vector<Update>() : branch->updates()) {
    (update.late ? *late : *applied) += update.workers.size();
    if (!update.late || ++late_of_step[*update.tick] <= BackupWorkers(consistency_)) continue;
    Violation(absl::StrFormat("%d pushes for step %d came late to %s, allowed are %d",
                              late_of_step[*update.tick], *update.tick, partition.Name(),
                              BackupWorkers(consistency_)));
  }
  // It has seen every tick of every worker.
  for (uint32_t worker = 0; worker < workers_; ++worker) {
    for (uint64_t tick = first_step_[generation_]; tick < ticks_of_[worker]; ++tick) {
      if (branch != nullptr && branch->Has(worker, tick)) continue;
      if (closed_without && branch != nullptr && branch->closed()[worker] > tick) continue;
      if (!accepted_[line].contains({worker, tick})) {
        Violation(
            absl::StrFormat("%s never got tick %d of worker %d", partition.Name(), tick, worker));
      } else if (acknowledged_[line].contains({worker, tick})) {
        Violation(absl::StrFormat("tick %d of worker %d, acknowledged by %s, was never applied",
                                  tick, worker, partition.Name()));
      } else {
        Violation(absl::StrFormat("tick %d of worker %d, accepted by %s, was never applied", tick,
                                  worker, partition.Name()));
      }
    }
  }
}

// The last primary, if it had nothing to do, said no word. The weights are its nevertheless, not
// those of the one before, which may have gone on without knowing.
void HistoryChecker::HearSilentPrimaries() {
  std::map<Partition, std::pair<uint64_t, NodeId>> last;  // stint, node
  for (const auto& [node, server] : servers_) {
    if (server.generation != generation_) continue;
    for (const auto& [partition, role] : server.roles) {
      if (role.primary) last[partition] = std::max(last[partition], std::pair{role.stint, node});
    }
  }
  for (const auto& [partition, primary] : last) {
    auto lineage = lineages_.find({generation_, partition});
    if (lineage == lineages_.end() || lineage->second.current() == nullptr) continue;
    if (lineage->second.current()->stint() < primary.first) Of(primary.second, partition);
  }
}

void HistoryChecker::Finish(uint64_t acknowledged, uint64_t applied, uint64_t dropped,
                            bool closed_without) {
  HearSilentPrimaries();
  const uint64_t staleness = AllowedStaleness(consistency_);
  for (const Read& read : reads_) {
    const uint64_t needed = read.tick == kFinalRead  ? kFinalRead
                            : read.tick <= staleness ? 0
                                                     : read.tick - staleness;
    for (uint32_t worker = 0; worker < workers_; ++worker) {
      // A worker that is through with all its ticks is waited for no longer.
      const uint64_t due = std::min(needed, ticks_of_[worker]);
      if (read.closed[worker] >= due) continue;
      Violation(absl::StrFormat(
          "worker %d read %s for tick %d when only %d ticks of worker %d were in, "
          "allowed is %d or more",
          read.worker, read.partition.Name(), read.tick, read.closed[worker], worker, due));
    }
  }
  uint64_t seen_applied = 0, seen_late = 0;
  for (Partition partition : FinalPartitions()) {
    FinishPartition(partition, closed_without, &seen_applied, &seen_late);
  }
  if (acknowledged != seen_applied + seen_late || applied != seen_applied || dropped != seen_late) {
    Violation(absl::StrFormat(
        "the summary says %d acknowledged, %d applied, %d late; seen were %d, %d and %d",
        acknowledged, applied, dropped, seen_applied + seen_late, seen_applied, seen_late));
  }
}

}  // namespace parley
