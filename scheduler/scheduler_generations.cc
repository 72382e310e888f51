// SchedulerNode: the first assignment, all beginning again from a checkpoint, and a scheduler that
// goes on where an earlier one was.
#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/checkpoint/checkpoint_files.h"
#include "scheduler/assignment.h"
#include "scheduler/saved_state.h"
#include "scheduler/scheduler_impl.h"

namespace parley {
namespace {

// Before checkpoints that could not be read are looked for again.
constexpr absl::Duration kUnreachablePause = absl::Seconds(1);

// What of two descriptions of a table differs, for which saved values fit one and not the other;
// empty: nothing.
std::string TableDifference(const pb::TableSpec& saved, const pb::TableSpec& now) {
  const auto differs = [&](const char* what, auto a, auto b) -> std::string {
    return absl::StrCat("table '", now.name(), "': ", what, " was ", a, ", now it is ", b);
  };
  if (saved.id() != now.id()) return differs("its id", saved.id(), now.id());
  if (saved.name() != now.name()) return differs("its name", saved.name(), now.name());
  if (saved.partition_elements() != now.partition_elements()) {
    return differs("elements of a partition (cluster.partition_kib)", saved.partition_elements(),
                   now.partition_elements());
  }
  if (saved.tensor_size() != now.tensor_size()) {
    return differs("the number of tensors", saved.tensor_size(), now.tensor_size());
  }
  for (int i = 0; i < saved.tensor_size(); ++i) {
    pb::TensorSpec a = saved.tensor(i), b = now.tensor(i);
    a.clear_init(), a.clear_bound(), b.clear_init(), b.clear_bound();
    if (a.SerializeAsString() != b.SerializeAsString()) {
      return differs("a tensor", a.ShortDebugString(), b.ShortDebugString());
    }
  }
  const pb::SparseSpec &a = saved.sparse(), &b = now.sparse();
  if (a.dim() != b.dim()) return differs("dim", a.dim(), b.dim());
  if (a.partitions() != b.partitions()) {
    return differs("the number of partitions", a.partitions(), b.partitions());
  }
  if (a.row_type() != b.row_type()) {
    return differs("row_type", pb::RowType_Name(a.row_type()), pb::RowType_Name(b.row_type()));
  }
  if (saved.optimizer().rule_case() != now.optimizer().rule_case()) {
    return absl::StrCat("table '", now.name(), "': the optimizer is another one");
  }
  return "";
}

}  // namespace

void SchedulerNode::Impl::OnOpened(absl::StatusOr<std::optional<std::string>> found) {
  started_ = env_->Now();
  if (phase_ != Phase::kOpening) return;  // stopped meanwhile
  if (!found.ok()) return StopAll(found.status());
  owns_state_ = !found->has_value();
  if (owns_state_) return FindRestore();
  pb::SchedulerState state;
  if (!state.ParseFromString(**found) || state.format() != kSchedulerStateFormat) {
    return StopAll(absl::DataLossError(absl::StrFormat(
        "the scheduler's state is none, or of format %d; allowed is %d: remove it to begin anew",
        state.format(), kSchedulerStateFormat)));
  }
  if (state.job() != options_.job) {
    return StopAll(absl::FailedPreconditionError(
        absl::StrFormat("the scheduler's state is of job '%s', this is job '%s': give each its "
                        "own place for it",
                        state.job(), options_.job)));
  }
  if (!state.ended()) {
    const absl::Status checked = CheckSavedState(state, cluster());
    if (!checked.ok()) return StopAll(checked);
  }
  owns_state_ = true;
  if (state.ended()) return FindRestore();  // of a run that came to its end
  GoOn(state);
}

// The checkpoint that the first generation begins from, if one is asked for.
void SchedulerNode::Impl::FindRestore() {
  if (options_.restore.empty() && options_.checkpoint_root.empty()) return BeginGathering();
  struct Found {
    absl::StatusOr<FoundCheckpoint> checkpoint = absl::UnknownError("");
    std::vector<std::string> skipped;
    absl::Status others;
  };
  auto found = std::make_shared<Found>();
  env_->Offload(
      [files = files_, directory = options_.restore, root = options_.checkpoint_root, found] {
        if (!directory.empty()) {
          found->checkpoint = FindCheckpoint(files, directory, [found](const std::string& line) {
            found->skipped.push_back(line);
          });
        }
        const bool own = found->checkpoint.ok() &&
                         absl::StartsWith(found->checkpoint->directory, absl::StrCat(root, "/"));
        if (!root.empty() && !own) found->others = CheckNoCheckpoints(files, root);
      },
      [this, alive = alive_, found] {
        if (!*alive || phase_ != Phase::kOpening) return;
        for (const std::string& line : found->skipped) Event(line);
        if (!found->others.ok()) return StopAll(found->others);
        if (options_.restore.empty()) return BeginGathering();
        if (!found->checkpoint.ok()) return StopAll(found->checkpoint.status());
        const FoundCheckpoint& checkpoint = *found->checkpoint;
        restored_manifest_ = checkpoint.manifest;
        resumed_from_.emplace();
        resumed_from_->set_directory(checkpoint.directory);
        resumed_from_->set_step(checkpoint.manifest.step());
        pb::TallyState tally;
        if (tally.ParseFromString(checkpoint.manifest.tally())) tally_.Load(tally);
        Event(absl::StrFormat("the job goes on from the checkpoint of step %d in %s",
                              checkpoint.manifest.step(), checkpoint.directory));
        BeginGathering();
      });
}

// What the job is to begin from was found by an earlier scheduler; what it needs is checked by this
// one.
void SchedulerNode::Impl::ReadRestore() {
  auto read = std::make_shared<absl::StatusOr<pb::CheckpointManifest>>(absl::UnknownError(""));
  env_->Offload([files = files_, directory = resumed_from_->directory(),
                 read] { *read = ReadManifest(files, directory); },
                [this, alive = alive_, read] {
                  if (!*alive || phase_ != Phase::kOpening) return;
                  if (!read->ok()) return StopAll(read->status());
                  restored_manifest_ = **read;
                  BeginGathering();
                });
}

void SchedulerNode::Impl::BeginGathering() {
  phase_ = Phase::kGathering;
  started_ = env_->Now();
}

absl::Status SchedulerNode::Impl::CheckRestore() const {
  if (!restored_manifest_.has_value()) return absl::OkStatus();
  const pb::CheckpointManifest& saved = *restored_manifest_;
  std::string difference;
  if (saved.workers() != cluster().workers()) {
    difference = absl::StrFormat("it is of %d workers, cluster.workers is %d", saved.workers(),
                                 cluster().workers());
  } else if (saved.table_size() != tables_.table_size()) {
    difference = absl::StrFormat("it has %d tables, the model needs %d", saved.table_size(),
                                 tables_.table_size());
  }
  for (int i = 0; difference.empty() && i < saved.table_size(); ++i) {
    difference = TableDifference(saved.table(i), tables_.table(i));
  }
  if (difference.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrFormat(
      "the checkpoint %s cannot be gone on from: %s", resumed_from_->directory(), difference));
}

// A state of this job: its members are taken for alive until node_timeout_ms have passed, and the
// round that was under way is made again.
void SchedulerNode::Impl::GoOn(const pb::SchedulerState& state) {
  goes_on_ = true;
  members_.Load(state, env_->Now());
  if (state.has_tables()) {
    have_tables_ = true;
    tables_ = state.tables();
    tally_.SetTables(tables_);
  }
  servers_wanted_ = state.servers_wanted();
  if (state.has_resumed_from()) resumed_from_ = state.resumed_from();
  committed_.assign(state.checkpoint().begin(), state.checkpoint().end());
  if (!state.has_assignment() && !state.has_stop()) {
    // Workers ask again to be registered.
    for (Member* member : members_.all()) member->ready = false;
    tally_.Load(state.tally());
    Event("the scheduler is back; the job has not begun yet");
    if (resumed_from_.has_value()) return ReadRestore();
    return BeginGathering();
  }
  assignment_ = state.assignment();  // none yet: of a job that was stopped before
  tally_.BeginGeneration(assignment_.generation(), assignment_.restore().step());
  tally_.Load(state.tally());
  if (!committed_.empty()) checkpoints_.NoteWritten(committed_.back());
  phase_ = Phase::kTraining;
  training_since_ = env_->Now();
  if (state.has_stop()) {
    return StopAll(state.stop().ok() ? absl::OkStatus()
                                     : absl::AbortedError(state.stop().reason()));
  }
  Event(absl::StrFormat("the scheduler is back, and goes on with epoch %d and %d nodes",
                        assignment_.map().epoch(), state.member_size()));
  RunRound(false);
}

std::string SchedulerNode::Impl::SaveState() {
  pb::SchedulerState state;
  state.set_format(kSchedulerStateFormat);
  state.set_job(options_.job);
  members_.Save(&state);
  if (have_tables_) *state.mutable_tables() = tables_;
  if (assignment_.map().epoch() > 0) *state.mutable_assignment() = assignment_;
  state.set_servers_wanted(servers_wanted_);
  *state.mutable_tally() = tally_.Save();
  if (resumed_from_.has_value()) *state.mutable_resumed_from() = *resumed_from_;
  for (uint64_t step : committed_) state.add_checkpoint(step);
  if (phase_ == Phase::kStopping) {
    state.mutable_stop()->set_ok(result_.ok());
    state.mutable_stop()->set_reason(std::string(result_.message()));
  }
  state.set_ended(ended_);
  return state.SerializeAsString();
}

// Shards of processes all of whose shards are here, by rank and shard.
std::vector<Member*> SchedulerNode::Impl::CompleteServers() {
  std::vector<Member*> servers = members_.all();
  std::erase_if(servers, [this](const Member* member) {
    return member->role != pb::SERVER ||
           members_.ShardsOf(member->process).size() < cluster().shards_per_server();
  });
  return servers;
}

void SchedulerNode::Impl::TryAssign() {
  if (phase_ != Phase::kGathering) return;
  for (const Member* member : members_.FillPlaces()) {
    Event(absl::StrCat("a spare takes the place of ", member->Describe(true)));
  }
  if (!members_.servers_complete() || !members_.workers_complete()) return;
  for (const Member* worker : members_.workers()) {
    if (!worker->ready) return;
  }
  phase_ = Phase::kAssigning;
  if (absl::Status status = CheckRestore(); !status.ok()) return StopAll(status);
  restore_ = resumed_from_;
  BeginGeneration();
}

// `verdict` is how the job ends if it may not begin again.
void SchedulerNode::Impl::RollBack(const absl::Status& verdict, const std::string& reason) {
  if (phase_ == Phase::kStopping || restoring_) return;
  if (tally_.restarts() >= cluster().max_restarts()) {
    if (cluster().max_restarts() == 0) return StopAll(verdict);
    return StopAll(absl::Status(
        verdict.code(), absl::StrFormat("%s; %s, and max_restarts %d are used up",
                                        verdict.message(), reason, cluster().max_restarts())));
  }
  CancelRound();
  checkpoints_.Pause();
  ++counting_;
  phase_ = Phase::kTraining;
  round_open_ = false;
  round_news_.clear();
  server_deaths_ = 0;
  restoring_ = true;
  restore_found_ = false;
  restoring_since_ = env_->Now();
  restore_reason_ = reason;
  verdict_ = verdict;
  // One that is being committed counts, too.
  checkpoints_.AfterCommit([this] {
    if (restoring_ && phase_ != Phase::kStopping) FindCheckpointForRollBack();
  });
}

// Of this job's own: there may be others in the directory, newer ones, too. That none can be read
// just now is no reason to begin at the first weights.
void SchedulerNode::Impl::FindCheckpointForRollBack() {
  std::vector<std::string> candidates;  // newest first
  for (auto step = committed_.rbegin(); step != committed_.rend(); ++step) {
    for (std::string& directory : CheckpointDirectories(options_.checkpoint_root, *step)) {
      candidates.push_back(std::move(directory));
    }
  }
  if (resumed_from_.has_value()) candidates.push_back(resumed_from_->directory());
  auto found = std::make_shared<UsableCheckpoint>();
  env_->Offload(
      [files = files_, root = options_.checkpoint_root, has_written = !committed_.empty(),
       candidates = std::move(candidates), found] {
        *found = FindUsable(files, candidates);
        if (has_written && !found->checkpoint.has_value() && !files->Exists(root)) {
          found->unreachable = absl::UnavailableError(
              absl::StrCat("the directory of checkpoints '", root, "' is not there"));
        }
      },
      [this, alive = alive_, found] {
        if (!*alive || !restoring_ || phase_ == Phase::kStopping) return;
        if (!found->checkpoint.has_value() && !found->unreachable.ok()) {
          return OnCheckpointsUnreachable(found->unreachable);
        }
        for (const std::string& line : found->skipped) Event(line);
        restore_.reset();
        if (found->checkpoint.has_value()) {
          restore_.emplace();
          restore_->set_directory(found->checkpoint->directory);
          restore_->set_step(found->checkpoint->manifest.step());
        }
        restore_found_ = true;
        TryGeneration();
      });
}

void SchedulerNode::Impl::OnCheckpointsUnreachable(const absl::Status& status) {
  if (env_->Now() - restoring_since_ >= absl::Milliseconds(cluster().start_timeout_ms())) {
    return StopAll(absl::Status(
        verdict_->code(),
        absl::StrFormat("%s; %s, and no checkpoint could be read within start_timeout_ms %d: %s",
                        verdict_->message(), restore_reason_, cluster().start_timeout_ms(),
                        status.message())));
  }
  Event(absl::StrCat("checkpoints cannot be read just now, tried again soon: ", status.message()));
  env_->After(kUnreachablePause, [this, alive = alive_] {
    if (*alive && restoring_ && phase_ != Phase::kStopping) FindCheckpointForRollBack();
  });
}

// A moment is given to replacements; then it is as many as there are. At least one of each.
void SchedulerNode::Impl::TryGeneration() {
  if (!restoring_ || !restore_found_ || phase_ == Phase::kStopping) return;
  std::set<uint64_t> processes;
  for (const Member* server : CompleteServers()) processes.insert(server->process);
  size_t ready = 0;
  for (const Member* member : members_.all()) ready += member->role == pb::WORKER && member->ready;
  const absl::Duration waited = env_->Now() - restoring_since_;
  const bool patient = waited < absl::Milliseconds(cluster().node_timeout_ms());
  if (processes.empty() || ready == 0) {
    if (waited < absl::Milliseconds(cluster().start_timeout_ms())) return;
    return StopAll(absl::Status(
        verdict_->code(),
        absl::StrFormat("%s; %s, and no other %s came within start_timeout_ms %d",
                        verdict_->message(), restore_reason_,
                        processes.empty() ? "server" : "worker", cluster().start_timeout_ms())));
  }
  if (processes.size() < servers_wanted_ && patient) return;
  restoring_ = false;
  BeginGeneration();
}

// Everybody gets everything anew; logical workers stay where they are as far as their nodes live.
void SchedulerNode::Impl::BeginGeneration() {
  const bool first = phase_ == Phase::kAssigning;
  // Saved together with what it is counted for: a scheduler that dies on the way counts it once.
  if (!first) tally_.CountRestart();
  std::vector<Member*> servers = CompleteServers();
  std::set<uint32_t> ranks;
  std::erase_if(servers, [&](const Member* server) {
    if (ranks.size() < servers_wanted_) ranks.insert(server->rank);
    return !ranks.contains(server->rank);
  });
  absl::StatusOr<pb::Assignment> made = MakeAssignment(tables_, servers, members_.workers());
  if (!made.ok()) return StopAll(made.status());
  pb::Assignment next = *std::move(made);
  next.mutable_map()->set_epoch(assignment_.map().epoch() + 1);
  next.set_generation(assignment_.generation() + 1);
  next.set_workers(cluster().workers());
  next.set_data_parts(cluster().workers());
  if (assignment_.worker_node_size() > 0) {
    *next.mutable_worker_node() = assignment_.worker_node();
    *next.mutable_worker_incarnation() = assignment_.worker_incarnation();
    for (int rank = 0; rank < next.worker_incarnation_size(); ++rank) {
      next.set_worker_incarnation(rank, next.worker_incarnation(rank) + 1);
    }
    if (first) {
      for (const Member* worker : members_.workers()) {
        next.set_worker_node(worker->rank, Value(worker->node));
      }
    }
  }
  if (restore_.has_value()) *next.mutable_restore() = *restore_;
  // What was after it is no past of this generation, and is to be written again.
  std::erase_if(committed_,
                [this](uint64_t step) { return !restore_.has_value() || step > restore_->step(); });
  tally_.BeginGeneration(next.generation(), next.restore().step());
  // Copies, and homes for logical workers whose nodes are gone, as in any round.
  Plan plan = MakePlan(MakePlanInput(), next);
  if (plan.changed) next = plan.next;
  assignment_ = std::move(next);
  unsettled_ = !plan.settled;
  end_asked_ = end_written_ = false;
  rank_beats_.clear();
  failures_.clear();  // ticks count from where all begin
  slow_.Clear();
  UpdateSpares();
  let_go_.clear();
  orphans_since_.reset();
  if (!first) {
    round_news_.push_back(absl::StrFormat(
        "%s; all begin again from %s with %d servers (roll-back %d of at most %d)", restore_reason_,
        restore_.has_value() ? absl::StrFormat("the checkpoint of step %d", restore_->step())
                             : "the first weights",
        ranks.size(), tally_.restarts(), cluster().max_restarts()));
  }
  RunRound(true);
}

}  // namespace parley
