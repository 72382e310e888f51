#include "scheduler/scheduler_node.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/net/admission.h"
#include "ps/net/scheduler_link.h"
#include "scheduler/scheduler_impl.h"

namespace parley {
namespace {

// Whether a table has anything that can be saved as changes.
bool HasSparse(const pb::Model& model) {
  return std::any_of(model.layer().begin(), model.layer().end(),
                     [](const pb::Layer& layer) { return layer.has_embedding(); });
}

}  // namespace

SchedulerNode::Impl::Impl(Env* env, Transport* transport, Options options, RunObserver* observer,
                          absl::AnyInvocable<void(absl::Status)> done)
    : env_(env),
      transport_(transport),
      options_(std::move(options)),
      files_(options_.files != nullptr ? options_.files : FileSystem::Posix()),
      observer_(observer),
      done_(std::move(done)),
      job_id_(JobId(options_.job)),
      alive_(std::make_shared<bool>(true)),
      rpc_(env, transport),
      members_(options_.job, options_.experiment.cluster()),
      tally_(options_.experiment),
      detector_(env, transport, &rpc_, absl::Milliseconds(cluster().heartbeat_ms()),
                [this](NodeId node) { OnGone(node); }),
      rounds_(
          env, &rpc_, absl::Milliseconds(cluster().start_timeout_ms()),
          {.on_servers_ready = [this](const pb::Assignment& ready) { OnServersReady(ready); },
           .workers_to_tell = [this] { return WorkersToTell(); },
           .on_done = [this](absl::Duration took) { OnRoundDone(took); },
           .on_error = [this](NodeId node,
                              const absl::Status& status) { OnRoundError(node, status); },
           .on_lacks = [this](NodeId node, const pb::Assigned& answer) { OnLacks(node, answer); }}),
      journal_(env, options_.store,
               {.state = [this] { return SaveState(); },
                .event = [this](const std::string& line) { Event(line); },
                .on_deposed = [this](const absl::Status& status) { OnDeposed(status); }}),
      checkpoints_(env, &rpc_,
                   {.root = options_.checkpoint_root,
                    .files = files_,
                    .config = options_.experiment.checkpoints(),
                    .chains = HasSparse(options_.experiment.model())},
                   {.view = [this] { return CheckpointView(); },
                    .manifest = [this](uint64_t step) { return Manifest(step); },
                    .event = [this](const std::string& line) { Event(line); },
                    .committed = [this](uint64_t step) { OnCheckpointCommitted(step); }}),
      servers_wanted_(cluster().servers()) {}

SchedulerNode::Impl::~Impl() {
  *alive_ = false;
  transport_->SetPeerGone([](NodeId) {});
  env_->Cancel(watch_timer_);
  env_->Cancel(progress_timer_);
  env_->Cancel(end_timer_);
  env_->Cancel(write_end_timer_);
  env_->Cancel(round_timer_);
}

void SchedulerNode::Impl::Start() {
  started_ = env_->Now();
  rpc_.SetIdentity(job_id_, 1, 0);
  rpc_.SetAdmission(
      [this](NodeId from, const pb::FrameHeader& header) { return Admission(from, header); });
  rpc_.Handle(pb::HELLO, [this](NodeId from, Frame f) { OnHello(from, f); });
  rpc_.Handle(pb::REGISTER, [this](NodeId from, Frame f) { OnRegister(from, f); });
  rpc_.Handle(pb::HEARTBEAT, [this](NodeId from, Frame f) { OnHeartbeat(from, f); });
  rpc_.Handle(pb::REPORT, [this](NodeId from, Frame f) { OnReport(from, f); });
  rpc_.Handle(pb::FINISHED, [this](NodeId from, Frame f) { OnFinished(from, f); });
  rpc_.Handle(pb::FAILED, [this](NodeId from, Frame f) { OnFailed(from, f); });
  rpc_.Handle(pb::BACKUP_NEWS, [this](NodeId from, Frame f) { OnBackupNews(from, f); });
  rpc_.Handle(pb::CONTROL, [this](NodeId from, Frame f) { OnControl(from, f); });
  transport_->SetPeerGone([this](NodeId peer) {
    if (phase_ == Phase::kStopping) return;
    // Which of those that have connected it was cannot be told: all are asked.
    for (Member* member : members_.all()) {
      // Who has yet to find the scheduler that has come back is not there to be asked; nor is who
      // waited for its Welcome for so long that it looks for a scheduler elsewhere.
      if (!member->heard_heartbeat) continue;
      if (peer == kNoNode || member->node == peer) detector_.Suspect(member->node);
    }
  });
  observer_->OnStart(options_.job, options_.experiment);
  last_watch_ = env_->Now();
  watch_timer_ = env_->After(Watch(), [this] { OnWatch(); });
  if (options_.store == nullptr) {
    owns_state_ = true;
    FindRestore();
    return;
  }
  options_.store->Open([this, alive = alive_](absl::StatusOr<std::optional<std::string>> found) {
    if (*alive) OnOpened(std::move(found));
  });
}

// Only members may ask for more than to be admitted; command line tools, for what is theirs.
absl::Status SchedulerNode::Impl::Admission(NodeId from, const pb::FrameHeader& header) {
  absl::Status status = CheckAdmission(header, job_id_);
  if (!status.ok() || header.kind() == pb::FAILED) return status;
  const bool is_answer = header.kind() == pb::REPLY || header.kind() == pb::PARKED;
  // Who is whose member is not known yet.
  if (phase_ == Phase::kOpening && !is_answer) {
    return absl::UnavailableError("the scheduler is starting");
  }
  if (header.kind() == pb::HELLO || header.kind() == pb::CONTROL) return status;
  if (members_.Find(from) == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrFormat("this scheduler of job '%s' does not know node %s: it has to join first",
                        options_.job, ToString(from)));
  }
  return absl::OkStatus();
}

void SchedulerNode::Impl::Refuse(NodeId from, const Frame& request, const std::string& name,
                                 const absl::Status& status) {
  // A stranger that keeps asking must not fill the record.
  if (env_->Now() - last_refusal_ >= absl::Seconds(1)) {
    last_refusal_ = env_->Now();
    Event(
        absl::StrFormat("refused %s: %s", name.substr(0, Membership::kMaxName), status.message()));
  }
  rpc_.ReplyError(from, request.header, status);
}

void SchedulerNode::Impl::OnHello(NodeId from, const Frame& request) {
  pb::Hello hello;
  absl::Status status = ParseBody(request, &hello);
  const bool is_new = members_.Find(from) == nullptr;
  Member* member = nullptr;
  if (status.ok() && phase_ == Phase::kStopping) {
    // Who comes late to a failure is told of it, not left to look for it elsewhere.
    status = absl::FailedPreconditionError(
        absl::StrFormat("job '%s' is ending (%s); start the node for another job", options_.job,
                        result_.ok() ? "it is done" : std::string(result_.message())));
  }
  if (status.ok()) {
    absl::StatusOr<Member*> admitted = members_.Admit(from, hello, env_->Now());
    status = admitted.status();
    if (admitted.ok()) member = *admitted;
  }
  if (!status.ok()) return Refuse(from, request, hello.node_name(), status);
  if (is_new) {
    Event(absl::StrCat(member->Describe(cluster().shards_per_server() > 1), " joined",
                       member->spare ? "; all places are taken, it waits" : ""));
  }
  // Not before it is known for good: a scheduler that comes back must know who it has welcomed.
  journal_.Save([this, from, header = request.header, is_new] {
    Member* member = members_.Find(from);
    if (member == nullptr) return;
    pb::Welcome welcome;
    welcome.set_rank(member->rank);
    welcome.set_incarnation(member->incarnation);
    welcome.set_job(options_.job);
    welcome.set_job_id(job_id_);
    *welcome.mutable_experiment() = options_.experiment;
    welcome.set_spare(member->spare);
    Frame answer;
    answer.header.set_body(welcome.SerializeAsString());
    rpc_.Reply(from, header, std::move(answer));
    if (!is_new) return;
    TryAssign();
    if (restoring_) TryGeneration();
    if (member->role == pb::SERVER) RequestRound(false);
  });
}

void SchedulerNode::Impl::OnRegister(NodeId from, const Frame& request) {
  pb::Register tables;
  absl::Status status = ParseBody(request, &tables);
  Member* member = members_.Find(from);
  if (status.ok() && member->role != pb::WORKER) {
    status = absl::FailedPreconditionError("only a worker registers tables");
  }
  if (status.ok() && phase_ == Phase::kStopping) {
    status = absl::FailedPreconditionError(absl::StrFormat("job '%s' is ending", options_.job));
  }
  if (!status.ok()) {
    rpc_.ReplyError(from, request.header, status);
    return;
  }
  const auto same = [](const pb::Register& a, const pb::Register& b) {
    pb::Register x = a, y = b;
    x.clear_device();
    y.clear_device();
    return x.SerializeAsString() == y.SerializeAsString();
  };
  if (!have_tables_) {
    have_tables_ = true;
    tables_ = tables;
    tally_.SetTables(tables);
  } else if (!same(tables, tables_)) {
    status = absl::FailedPreconditionError(
        absl::StrCat(member->Describe(false),
                     " needs other tables or has other data than the workers before "
                     "it: do all hosts have the same data set and version?"));
    // Of a job that runs, or that has enough others, it is no part yet.
    if (!Running() && !member->spare) return StopAll(status);
    rpc_.ReplyError(from, request.header, status);
    return;
  }
  const bool is_new = !member->ready;
  member->ready = true;
  if (is_new) {
    unanswered_.insert(from);
    Event(absl::StrCat(member->Describe(false), " is ready on ", tables.device()));
  }
  if (CanAnswerRegister()) {
    // A scheduler that comes back must know whom it may give work.
    registering_.insert(from);
    journal_.Save([this, from, header = request.header] {
      registering_.erase(from);
      const Member* worker = members_.Find(from);
      if (worker == nullptr || phase_ == Phase::kStopping) return;
      if (CanAnswerRegister()) return AnswerRegister(*worker, header);
      registered_[from] = header;
    });
  } else {
    registered_[from] = request.header;
    rpc_.ReplyParked(from, request.header, absl::StrCat("the other nodes (", Awaited(), ")"));
  }
  if (!is_new) return;
  TryAssign();
  if (restoring_) TryGeneration();
  RequestRound(false);
}

void SchedulerNode::Impl::AnswerRegister(const Member& worker, const pb::FrameHeader& request) {
  unanswered_.erase(worker.node);
  pb::Assignment assignment = published_;
  assignment.set_data_part(worker.rank);
  Frame answer;
  answer.header.set_body(assignment.SerializeAsString());
  rpc_.Reply(worker.node, request, std::move(answer));
}

void SchedulerNode::Impl::OnHeartbeat(NodeId from, const Frame& request) {
  pb::Heartbeat heartbeat;
  if (!ParseBody(request, &heartbeat).ok()) return;
  Member* member = members_.Find(from);
  member->last_heard = env_->Now();
  if (member->role == pb::WORKER) NoteBeat(from, heartbeat);
  member->heard_heartbeat = true;
  rpc_.Reply(from, request.header, Frame());
}

void SchedulerNode::Impl::NoteBeat(NodeId from, const pb::Heartbeat& beat) {
  // Until everybody begins again, trainers of the generation before beat on.
  if (restoring_ || (round_open_ && generation_round_)) return;
  const auto note = [&](uint32_t rank, const pb::Heartbeat& of_rank) {
    auto& [node, known] = rank_beats_[rank];
    if (node == from && of_rank.samples() < known.samples()) return;
    node = from;
    known = of_rank;
    slow_.Add(rank, from, of_rank.tick(), of_rank.compute_seconds());
  };
  const auto hosts = [&](uint32_t rank) {
    return rank < static_cast<uint32_t>(assignment_.worker_node_size()) &&
           assignment_.worker_node(rank) == Value(from);
  };
  for (const pb::Heartbeat& of_rank : beat.worker()) {
    if (hosts(of_rank.rank())) note(of_rank.rank(), of_rank);
  }
  if (beat.worker_size() > 0 || (beat.tick() == 0 && beat.waiting_for().empty())) return;
  // A node that speaks for itself alone.
  for (int rank = 0; rank < assignment_.worker_node_size(); ++rank) {
    if (hosts(rank)) note(rank, beat);
  }
}

template <typename Message>
absl::StatusOr<uint32_t> SchedulerNode::Impl::RankOf(const Member& member,
                                                     const Message& message) const {
  if (!message.has_rank() && !member.spare) return member.rank;
  if (message.has_rank() && message.rank() < cluster().workers()) return message.rank();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s speaks for logical worker %d; allowed are those below %d",
                      member.Describe(false), message.rank(), cluster().workers()));
}

void SchedulerNode::Impl::OnReport(NodeId from, const Frame& request) {
  pb::Report report;
  absl::Status status = ParseBody(request, &report);
  Member* member = members_.Find(from);
  absl::StatusOr<uint32_t> rank = RankOf(*member, report);
  if (status.ok() && (member->role != pb::WORKER || !rank.ok() ||
                      report.data_epoch() >= options_.experiment.training().epochs())) {
    status = absl::InvalidArgumentError(absl::StrFormat(
        "%s reports epoch %d; allowed are workers with a place and epochs below %d",
        member->Describe(true), report.data_epoch(), options_.experiment.training().epochs()));
  }
  if (!status.ok()) {
    rpc_.ReplyError(from, request.header, status);
    return;
  }
  members_.Heard(from, env_->Now());
  if (std::optional<EpochMetrics> metrics = tally_.AddReport(*rank, report)) {
    for (const EpochMetrics& earlier : tally_.TakeIncomplete()) observer_->OnEpoch(earlier);
    observer_->OnEpoch(*metrics);
  }
  journal_.Save([this, from, header = request.header] { rpc_.Reply(from, header, Frame()); });
}

void SchedulerNode::Impl::OnFinished(NodeId from, const Frame& request) {
  pb::Finished finished;
  absl::Status status = ParseBody(request, &finished);
  Member* member = members_.Find(from);
  absl::StatusOr<uint32_t> rank = RankOf(*member, finished);
  if (status.ok() && (member->role != pb::WORKER || !rank.ok())) {
    status = absl::InvalidArgumentError("only workers with a place finish");
  }
  if (!status.ok()) {
    rpc_.ReplyError(from, request.header, status);
    return;
  }
  // What a former incarnation has done counts no more: its successor says it again.
  const bool current = !finished.has_incarnation() ||
                       (*rank < static_cast<uint32_t>(assignment_.worker_incarnation_size()) &&
                        assignment_.worker_incarnation(*rank) == finished.incarnation());
  if (current) tally_.AddFinished(*rank, finished);
  journal_.Save([this, from, header = request.header] {
    rpc_.Reply(from, header, Frame());
    MaybeFinish();
  });
}

void SchedulerNode::Impl::OnFailed(NodeId from, const Frame& request) {
  pb::Stop reason;
  Member* member = members_.Find(from);
  // A stranger's failure is its own.
  if (member == nullptr || !ParseBody(request, &reason).ok()) return;
  const std::string cause = absl::StrCat("failed: ", reason.reason());
  const absl::Status verdict = absl::AbortedError(absl::StrCat(member->Describe(true), " ", cause));
  member->last_heard = absl::InfiniteDuration();  // gone: not silent, and not to be waited for
  if (phase_ == Phase::kGathering || phase_ == Phase::kAssigning) {
    // Before anything has been computed a failure is most likely everybody's.
    if (!member->spare) return StopAll(verdict);
  }
  OnDead(from, cause, verdict);
}

void SchedulerNode::Impl::OnWatch() {
  watch_timer_ = env_->After(Watch(), [this] { OnWatch(); });
  const absl::Duration now = env_->Now();
  const absl::Duration allowed = absl::Milliseconds(cluster().node_timeout_ms());
  // Timers run before messages are read: after this process itself has stood still, what the others
  // have said meanwhile is still to come.
  if (now - std::exchange(last_watch_, now) > Watch() + allowed / 2) {
    members_.HeardAll(now);
    return;
  }
  while (Member* silent = members_.Silent(now, allowed)) {
    const absl::Duration silence = now - silent->last_heard;
    silent->last_heard = absl::InfiniteDuration();
    const std::string cause =
        absl::StrFormat("is dead: no heartbeat for %.1f s (node_timeout_ms is %d)",
                        absl::ToDoubleSeconds(silence), cluster().node_timeout_ms());
    OnDead(silent->node, cause,
           absl::UnavailableError(absl::StrCat(silent->Describe(true), " ", cause, " ", Where())));
    if (phase_ == Phase::kStopping) return;
  }
  // One that reads a checkpoint may take its time.
  const bool starting =
      phase_ == Phase::kGathering || (phase_ == Phase::kAssigning && !rounds_.parked());
  if (starting && now - started_ > absl::Milliseconds(cluster().start_timeout_ms())) {
    StopAll(absl::DeadlineExceededError(
        absl::StrFormat("the job did not start within start_timeout_ms %d; %s",
                        cluster().start_timeout_ms(), Awaited())));
    return;
  }
  if (restoring_) TryGeneration();
  if (orphans_since_.has_value() &&
      now - *orphans_since_ > absl::Milliseconds(cluster().start_timeout_ms())) {
    StopAll(absl::UnavailableError(absl::StrCat(
        verdict_.has_value() ? verdict_->message() : "all workers are dead",
        "; no other worker came within start_timeout_ms ", cluster().start_timeout_ms())));
    return;
  }
  if (phase_ == Phase::kTraining) JudgeSpeed();
}

std::string SchedulerNode::Impl::Awaited() {
  std::string missing = members_.Missing();
  if (!missing.empty()) return "missing: " + missing;
  if (phase_ == Phase::kGathering) {
    for (Member* worker : members_.workers()) {
      if (!worker->ready) {
        absl::StrAppend(&missing, missing.empty() ? "still loading: " : ", ",
                        worker->Describe(false));
      }
    }
    return missing;
  }
  for (const auto& [node, call] : rounds_.awaited()) {
    const Member* server = members_.Find(node);
    if (server == nullptr) continue;
    absl::StrAppend(&missing, missing.empty() ? "still preparing: " : ", ", server->Describe(true));
  }
  return missing;
}

// Where the job stands and what is awaited, to complete an error line.
std::string SchedulerNode::Impl::Where() {
  if (phase_ == Phase::kCounting) return "after training, while the servers were counting";
  if (phase_ != Phase::kTraining) return absl::StrCat("before training; ", Awaited());
  const RunProgress progress = MakeProgress();
  const std::string text =
      absl::StrFormat("in epoch %d at step %d", progress.epoch + 1, progress.step);
  for (const auto& [rank, beat] : rank_beats_) {
    // What a dead one last said is no news.
    const Member* node = members_.Find(beat.first);
    const bool living = node != nullptr && node->last_heard != absl::InfiniteDuration();
    if (!living || beat.second.waiting_for().empty()) continue;
    return absl::StrCat(text, "; worker ", rank, " waits for ", beat.second.waiting_for());
  }
  return text;
}

RunProgress SchedulerNode::Impl::MakeProgress() {
  std::vector<pb::Heartbeat> beats(cluster().workers());
  for (const auto& [rank, beat] : rank_beats_) beats[rank] = beat.second;
  return tally_.ProgressOf(beats, tables_.train_samples(), env_->Now() - training_since_);
}

void SchedulerNode::Impl::OnProgress() {
  if (phase_ == Phase::kStopping) return;
  if (phase_ == Phase::kTraining) observer_->OnProgress(MakeProgress());
  progress_timer_ = env_->After(options_.progress_period, [this] { OnProgress(); });
}

SchedulerNode::SchedulerNode(Env* env, Transport* transport, Options options, RunObserver* observer,
                             absl::AnyInvocable<void(absl::Status)> done)
    : impl_(std::make_unique<Impl>(env, transport, std::move(options), observer, std::move(done))) {
}
SchedulerNode::~SchedulerNode() = default;
void SchedulerNode::Start() { impl_->Start(); }
void SchedulerNode::Stop(const absl::Status& status) { impl_->Stop(status); }
void SchedulerNode::RequestCheckpoint() { impl_->RequestCheckpoint(); }
bool SchedulerNode::owns_state() const { return impl_->owns_state(); }

}  // namespace parley
