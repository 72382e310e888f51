// SchedulerNode: who dies, and what moves then.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "ps/config/copied_partitions.h"
#include "ps/net/scheduler_link.h"
#include "scheduler/scheduler_impl.h"

namespace parley {
namespace {

// Deaths of one logical worker without a step in between, after which it is the work that kills.
constexpr uint32_t kMaxReplacements = 3;

// Codecs that keep nothing of one message for the next.
bool KeepsNothing(const std::string& codec) {
  return codec.empty() || codec == "none" || codec == "fp16" || codec == "bf16";
}

// Of "host:pid" and "host:pid/shard".
std::string HostOf(const std::string& name) { return name.substr(0, name.rfind(':')); }

}  // namespace

bool SchedulerNode::Impl::Endures() const { return cluster().max_restarts() > 0; }

void SchedulerNode::Impl::OnGone(NodeId node) {
  Member* member = members_.Find(node);
  if (member == nullptr || phase_ == Phase::kStopping) return;
  const absl::Duration silence = env_->Now() - member->last_heard;
  std::string cause = absl::StrFormat(
      "is dead: no heartbeat for %.1f s (node_timeout_ms is %d), and its "
      "connection broke",
      absl::ToDoubleSeconds(silence), cluster().node_timeout_ms());
  const absl::Status verdict =
      absl::UnavailableError(absl::StrCat(member->Describe(true), " ", cause, " ", Where()));
  if (Endures()) cause = "is dead: its connection broke";
  member->last_heard = absl::InfiniteDuration();
  OnDead(node, cause, verdict);
}

void SchedulerNode::Impl::OnDead(NodeId node, const std::string& cause,
                                 const absl::Status& verdict) {
  Member* found = members_.Find(node);
  if (found == nullptr || phase_ == Phase::kStopping) return;
  const Member member = *found;
  if (phase_ == Phase::kOpening || phase_ == Phase::kGathering || phase_ == Phase::kAssigning) {
    if (!member.spare && !Endures()) return StopAll(verdict);
    Event(absl::StrCat(member.Describe(true), " ", cause, "; another is waited for"));
    Forget(member);
    if (phase_ == Phase::kGathering) return TryAssign();
    if (phase_ != Phase::kAssigning) return;
    if (member.spare) {
      rounds_.Drop(node);
      return;
    }
    // Who was told of partitions already is told of others in another generation.
    CancelRound();
    phase_ = Phase::kGathering;
    TryAssign();
    return;
  }
  if (member.role == pb::WORKER) {
    OnDeadWorker(member, cause, verdict);
  } else {
    OnDeadServer(member, cause, verdict);
  }
}

void SchedulerNode::Impl::OnDeadWorker(Member worker, const std::string& cause,
                                       const absl::Status& verdict) {
  const std::set<uint32_t> finished = tally_.finished_ranks();
  std::vector<uint32_t> ranks;
  for (int rank = 0; rank < assignment_.worker_node_size(); ++rank) {
    if (assignment_.worker_node(rank) == Value(worker.node) && !finished.contains(rank)) {
      ranks.push_back(rank);
    }
  }
  if (!ranks.empty() && cluster().worker_loss() == pb::Cluster::FAIL) return StopAll(verdict);
  Event(absl::StrCat(worker.Describe(true), " ", cause,
                     ranks.empty() ? "; it had nothing to do" : ""));
  Forget(worker);
  for (uint32_t rank : ranks) {
    if (NoteFailure(rank)) continue;
    return StopAll(absl::Status(
        verdict.code(),
        absl::StrFormat("%s; logical worker %d failed %d times at %d nodes without a step in "
                        "between",
                        verdict.message(), rank, kMaxReplacements + 1, kMaxReplacements + 1)));
  }
  verdict_ = verdict;
  // Also for one without work: a round under way may be waiting for it.
  RequestRound(true);
}

bool SchedulerNode::Impl::NoteFailure(uint32_t rank) {
  auto beat = rank_beats_.find(rank);
  const uint64_t tick = beat == rank_beats_.end() ? 0 : beat->second.second.tick();
  auto [entry, is_new] = failures_.try_emplace(rank);
  Failures& failures = entry->second;
  if (!is_new && tick > failures.tick) failures.count = 0;
  failures.tick = std::max(failures.tick, tick);
  return ++failures.count <= kMaxReplacements;
}

// A process is one: its shards die together, whichever was found out first.
void SchedulerNode::Impl::OnDeadServer(Member server, const std::string& cause,
                                       const absl::Status& verdict) {
  const bool served = !server.spare;
  Event(absl::StrCat(server.Describe(cluster().shards_per_server() > 1), " ", cause,
                     served ? "" : "; it had nothing to do"));
  for (Member* shard : members_.ShardsOf(server.process)) Forget(*shard);
  if (served) {
    ++server_deaths_;
    verdict_ = verdict;
  }
  if (restoring_) return;  // looked at when the next generation begins
  RequestRound(true);
}

void SchedulerNode::Impl::Forget(const Member& member) {
  const NodeId node = member.node;  // `member` may be in what is removed
  detector_.Clear(node);
  registered_.erase(node);
  registering_.erase(node);
  unanswered_.erase(node);
  let_go_.erase(node);
  members_.Remove(node);
}

// A primary says what became of a copy. What is older than the copy's place on the map is about an
// earlier one; what is older than what was heard of it last was overtaken, or is a late duplicate.
// Only who is answered OK has been believed: a primary that goes on without a copy must know that
// the copy will not be promoted.
void SchedulerNode::Impl::OnBackupNews(NodeId from, const Frame& request) {
  pb::BackupNews news;
  if (absl::Status status = ParseBody(request, &news); !status.ok()) {
    rpc_.ReplyError(from, request.header, status);
    return;
  }
  members_.Heard(from, env_->Now());
  bool known = false;
  pb::PartitionMap* map = assignment_.mutable_map();
  for (pb::TableMap& table : *map->mutable_table()) {
    if (table.table() != news.table()) continue;
    for (pb::Backup& backup : *table.mutable_backup()) {
      if (backup.partition() != news.partition() ||
          map->shard(backup.shard()).node() != news.node() ||
          map->shard(table.owner(backup.partition())).node() != Value(from) ||
          backup.since() > news.epoch() || news.number() < backup.news()) {
        continue;
      }
      known = true;
      if (news.number() == backup.news()) continue;  // its answer was lost
      backup.set_news(news.number());
      backup.set_synced(news.what() == pb::BackupNews::SYNCED);
      if (news.what() != pb::BackupNews::SYNCED) {
        const Member* holder = members_.Find(NodeId{news.node()});
        Event(absl::StrFormat("the copy of partition %d of table %d on %s %s: %s", news.partition(),
                              news.table(), holder != nullptr ? holder->Describe(true) : "a server",
                              news.what() == pb::BackupNews::DIVERGED
                                  ? "differed and is made again"
                                  : "cannot be brought up and is none until it is",
                              news.text()));
      }
    }
  }
  if (!known) {
    return rpc_.ReplyError(
        from, request.header,
        absl::FailedPreconditionError(absl::StrFormat(
            "news %d of table %d, partition %d is of a copy that epoch %d does not have there, or "
            "there were later ones",
            news.number(), news.table(), news.partition(), map->epoch())));
  }
  journal_.Save([this, from, header = request.header] {
    rpc_.Reply(from, header, Frame());
    RequestRound(false);
  });
}

bool SchedulerNode::Impl::Exact() const {
  if (options_.experiment.consistency().mode() != pb::Consistency::BSP) return true;
  for (const pb::TableSpec& table : tables_.table()) {
    if (!KeepsNothing(table.compression().push())) return false;
    const pb::Eviction& eviction = table.sparse().eviction();
    if (eviction.min_frequency() > 1 || eviction.max_age() > 0 || eviction.max_rows() > 0) {
      return false;
    }
  }
  return true;
}

PlanInput SchedulerNode::Impl::MakePlanInput() {
  PlanInput input;
  for (const Member* server : CompleteServers()) {
    input.servers.push_back({.node = server->node,
                             .process = server->process,
                             .rank = server->rank,
                             .shard = server->shard,
                             .endpoint = server->endpoint,
                             .incarnation = server->incarnation,
                             .host = HostOf(server->name)});
  }
  for (const Member* member : members_.all()) {
    if (member->role != pb::WORKER || !member->ready) continue;
    input.workers.push_back({.node = member->node,
                             .place = member->rank,
                             .slow = member->slow,
                             .step_seconds = slow_.StepSeconds(member->node)});
  }
  input.servers_wanted = servers_wanted_;
  input.replicas = cluster().replicas();
  input.partitions_move = WhyPartitionsStay(options_.experiment).empty();
  input.finished = tally_.finished_ranks();
  input.move_living = cluster().worker_loss() == pb::Cluster::REPLACE && Exact();
  return input;
}

// Urgent: what a round under way waits for may never come. Else it is let come to its end.
void SchedulerNode::Impl::RequestRound(bool urgent) {
  if (!Running() || restoring_ || assignment_.map().epoch() == 0) return;
  round_wanted_ = true;
  if (round_open_ && !urgent) return;
  if (urgent) CancelRound();
  if (round_timer_ != kNoTimer) return;
  // What dies together is looked at together.
  round_timer_ = env_->After(absl::ZeroDuration(), [this] {
    round_timer_ = kNoTimer;
    PlanRound();
  });
}

void SchedulerNode::Impl::CancelRound() {
  ++round_;
  rounds_.Cancel();
}

void SchedulerNode::Impl::PlanRound() {
  PlanInput input = MakePlanInput();
  input.vacant = std::exchange(vacant_, {});
  if (!Running() || restoring_) return;
  round_wanted_ = false;
  const Plan plan = MakePlan(input, assignment_);
  if (plan.lost) {
    const pb::TableSpec& table = assignment_.table(plan.lost_table);
    return RollBack(verdict_.value_or(absl::UnavailableError("servers are gone")),
                    absl::StrFormat("partition %d of table '%s' has no copy left",
                                    plan.lost_partition, table.name()));
  }
  if (plan.orphans && !orphans_since_.has_value()) {
    orphans_since_ = env_->Now();
    Event("no worker is left; another is waited for");
  } else if (!plan.orphans) {
    orphans_since_.reset();
  }
  if (plan.changed) return Apply(plan);
  // Whoever was not told, because the round was broken off, has to hear of it all the same.
  if (round_open_) return RunRound(generation_round_);
  if (plan.settled) OnSettled();
  MaybeFinish();
}

void SchedulerNode::Impl::Apply(const Plan& plan) {
  std::vector<uint32_t> replaced;
  for (uint32_t rank : plan.moved_ranks) {
    const Member* before = members_.Find(NodeId{assignment_.worker_node(rank)});
    if (before == nullptr) replaced.push_back(rank);
  }
  if (!replaced.empty() && cluster().worker_loss() == pb::Cluster::REPLACE && !Exact() &&
      !committed_.empty() && tally_.restarts() < cluster().max_restarts()) {
    return RollBack(verdict_.value_or(absl::UnavailableError("workers are gone")),
                    "what its push codec, or eviction, kept cannot be computed again");
  }
  if (server_deaths_ > 0 && plan.taken_over > 0) {
    for (uint32_t i = 0; i < server_deaths_; ++i) tally_.CountFailover();
    std::vector<std::string> heirs;
    for (NodeId heir : plan.heirs) {
      if (const Member* member = members_.Find(heir)) {
        heirs.push_back(member->Describe(cluster().shards_per_server() > 1));
      }
    }
    round_news_.push_back(absl::StrFormat("%d partitions were taken over by %s", plan.taken_over,
                                          absl::StrJoin(heirs, ", ")));
  }
  server_deaths_ = 0;
  if (plan.moved > 0) {
    moved_ += plan.moved;
    round_news_.push_back(absl::StrFormat("%d partitions have moved", plan.moved));
  }
  for (uint32_t rank : plan.moved_ranks) {
    const Member* to = members_.Find(NodeId{plan.next.worker_node(rank)});
    round_news_.push_back(absl::StrFormat("logical worker %d goes on at %s", rank,
                                          to != nullptr ? to->Describe(false) : "another node"));
    rank_beats_.erase(rank);
  }
  const bool exact = cluster().worker_loss() == pb::Cluster::REPLACE && Exact();
  for (size_t i = 0; i < replaced.size(); ++i) tally_.CountReplaced(exact);
  if (!replaced.empty() && !exact) {
    round_news_.push_back("what those had begun is left out: they go on with the next step");
  }
  if (plan.taken_over > 0 || plan.moved > 0) checkpoints_.Pause();
  if (phase_ == Phase::kCounting) {
    ++counting_;  // asked again when partitions are in place
    phase_ = Phase::kTraining;
  }
  assignment_ = plan.next;
  unsettled_ = unsettled_ || !plan.settled;
  UpdateSpares();
  // A generation that was broken off while it began still begins.
  RunRound(round_open_ && generation_round_);
}

// Saves, then tells.
void SchedulerNode::Impl::RunRound(bool generation) {
  generation_round_ = generation;
  round_open_ = true;
  const uint64_t round = ++round_;
  journal_.Save([this, round] {
    // Another has been made since.
    if (round != round_ || phase_ == Phase::kStopping) return;
    std::vector<Rounds::Target> servers;
    for (Member* member : members_.all()) {
      if (member->role != pb::SERVER) continue;
      servers.push_back({member->node, member->Describe(true)});
    }
    // A scheduler that is back may know none any more: nobody would ever answer.
    if (servers.empty()) {
      round_open_ = false;
      return RequestRound(false);
    }
    const bool skip =
        cluster().worker_loss() == pb::Cluster::SKIP ||
        (cluster().worker_loss() == pb::Cluster::REPLACE && !Exact() && !generation_round_);
    rounds_.Run(assignment_, servers, skip);
  });
}

void SchedulerNode::Impl::OnServersReady(const pb::Assignment& assignment) {
  published_ = assignment;
  // Primaries are what they were to be, and from now on do what copies that stand by do not have.
  for (pb::TableMap& table : *assignment_.mutable_map()->mutable_table()) {
    for (pb::Backup& backup : *table.mutable_backup()) backup.clear_stands_by();
  }
  if (phase_ == Phase::kAssigning) {
    phase_ = Phase::kTraining;
    training_since_ = env_->Now();
    Event(absl::StrFormat("training starts: %d servers, %d workers, %d samples",
                          cluster().servers(), cluster().workers(), tables_.train_samples()));
  }
  if (progress_timer_ == kNoTimer) {
    progress_timer_ = env_->After(options_.progress_period, [this] { OnProgress(); });
  }
}

// Those that wait for an answer to REGISTER get it instead. Who has had one may have forgotten that
// it ever asked: what came of it since is a duplicate, or was late, and its answer is lost on it.
std::vector<Rounds::Target> SchedulerNode::Impl::WorkersToTell() {
  std::vector<Rounds::Target> workers;
  const std::map<NodeId, pb::FrameHeader> registered = std::exchange(registered_, {});
  for (const Member* member : members_.all()) {
    if (member->role != pb::WORKER || !member->ready) continue;
    const bool answered = !unanswered_.contains(member->node);
    if (answered) workers.push_back({member->node, member->Describe(false)});
    if (registering_.contains(member->node)) continue;  // gets this one soon
    auto waiting = registered.find(member->node);
    if (waiting != registered.end()) AnswerRegister(*member, waiting->second);
  }
  return workers;
}

void SchedulerNode::Impl::OnRoundDone(absl::Duration took) {
  round_open_ = false;
  longest_round_ = std::max(longest_round_, took);
  if (!round_news_.empty()) {
    Event(absl::StrFormat("epoch %d: %s, in %.2f s", assignment_.map().epoch(),
                          absl::StrJoin(round_news_, "; "), absl::ToDoubleSeconds(took)));
  }
  round_news_.clear();
  checkpoints_.Resume(std::exchange(generation_round_, false));
  RequestRound(false);  // something may have happened meanwhile, or be left to move
}

void SchedulerNode::Impl::OnRoundError(NodeId node, const absl::Status& status) {
  const Member* member = members_.Find(node);
  if (member == nullptr) return;
  if (phase_ == Phase::kAssigning && !member->spare) return StopAll(status);
  if (member->role == pb::SERVER && generation_round_ && !absl::IsDeadlineExceeded(status)) {
    // What all are to begin from is no good for one of them; nor will it be for another.
    return RollBack(status, absl::StrCat(member->Describe(true), " could not begin"));
  }
  const std::string cause = absl::StrCat("does not follow: ", status.message());
  const absl::Status verdict =
      absl::Status(status.code(), absl::StrCat(member->Describe(true), " ", cause));
  OnDead(node, cause, verdict);
}

// It has lost copies that it should become primary of, and their primary did not live to tell. It
// is none the worse for that: others stand in for it there.
void SchedulerNode::Impl::OnLacks(NodeId node, const pb::Assigned& answer) {
  const Member* member = members_.Find(node);
  if (member == nullptr) return;
  std::set<std::pair<uint32_t, uint32_t>> lacks;
  for (const pb::Assigned::Lack& lack : answer.lacks()) {
    lacks.emplace(lack.table(), lack.partition());
  }
  const pb::PartitionMap& map = assignment_.map();
  std::set<std::pair<size_t, uint32_t>> vacant;
  for (int t = 0; t < map.table_size(); ++t) {
    for (int p = 0; p < map.table(t).owner_size(); ++p) {
      if (map.shard(static_cast<int>(map.table(t).owner(p))).node() == Value(node) &&
          lacks.contains({map.table(t).table(), p})) {
        vacant.emplace(t, p);
      }
    }
  }
  if (!Running() || restoring_ || vacant.size() != lacks.size()) {
    return OnRoundError(node, absl::FailedPreconditionError("it lacks what it was not given"));
  }
  Event(absl::StrFormat("%s should take over partitions, but has lost its copies of %d of them",
                        member->Describe(true), vacant.size()));
  vacant_ = std::move(vacant);
  RequestRound(true);
}

void SchedulerNode::Impl::UpdateSpares() {
  std::set<uint64_t> busy;
  for (const pb::ShardAddress& shard : assignment_.map().shard()) busy.insert(shard.node());
  for (uint64_t node : assignment_.worker_node()) busy.insert(node);
  for (Member* member : members_.all()) {
    const bool spare = !busy.contains(Value(member->node));
    // One that served and lives has handed over what it had: it was asked to.
    if (spare && !member->spare && member->role == pb::SERVER) let_go_.insert(member->node);
    if (!spare) let_go_.erase(member->node);
    member->spare = spare;
  }
}

// Every copy is there and nothing is left to move.
void SchedulerNode::Impl::OnSettled() {
  if (unsettled_) {
    unsettled_ = false;
    if (cluster().replicas() > 0) Event("all partitions have their copies");
  }
  for (NodeId node : std::exchange(let_go_, {})) {
    Member* server = members_.Find(node);
    if (server == nullptr) continue;
    Event(absl::StrCat(server->Describe(true), " has handed over its partitions and may go"));
    Frame frame;
    frame.header.set_kind(pb::STOP);
    pb::Stop stop;
    stop.set_ok(true);
    frame.header.set_body(stop.SerializeAsString());
    rpc_.Call(node, std::move(frame),
              {.deadline = absl::Milliseconds(cluster().node_timeout_ms()),
               .attempt = absl::Milliseconds(150),
               .what = "stop of " + server->Describe(true)},
              [](const absl::StatusOr<Frame>&) {});
    Forget(*server);
  }
  if (resizers_.empty()) return;
  pb::ControlAnswer answer;
  answer.set_text(absl::StrFormat(
      "%d servers hold the partitions now; %d partitions moved, none stood still for more than "
      "%d ms",
      servers_wanted_, moved_, absl::ToInt64Milliseconds(longest_round_)));
  answer.set_pause_ms(absl::ToInt64Milliseconds(longest_round_));
  Event(answer.text());
  for (const ControlKey& key : std::exchange(resizers_, {})) AnswerControl(key, answer);
}

void SchedulerNode::Impl::JudgeSpeed() {
  const double factor = cluster().slow_worker_factor();
  if (factor <= 1 || cluster().worker_loss() == pb::Cluster::FAIL) return;
  for (NodeId node : slow_.Slow(factor)) {
    Member* member = members_.Find(node);
    if (member == nullptr || member->slow) continue;
    member->slow = true;
    Event(absl::StrFormat("%s is slow: %.3f s a step, more than %.1f times the median",
                          member->Describe(false), slow_.StepSeconds(node), factor));
    RequestRound(false);
  }
}

}  // namespace parley
