#include "scheduler/checkpoint_coordinator.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/checkpoint/checkpoint_files.h"
#include "ps/net/scheduler_link.h"

namespace parley {
namespace {

// A checkpoint may be asked for long before its step comes: parked, and asked again now and then.
constexpr absl::Duration kAnswerDeadline = absl::Hours(24 * 365);
// After a failure, before the next that nobody is waiting for: whatever is wrong may last.
constexpr absl::Duration kRest = absl::Seconds(10);
constexpr uint32_t kMargin = 2, kMaxMargin = 1 << 20;

}  // namespace

CheckpointCoordinator::CheckpointCoordinator(Env* env, Rpc* rpc, Options options, Handlers handlers)
    : env_(env),
      rpc_(rpc),
      options_(std::move(options)),
      handlers_(std::move(handlers)),
      alive_(std::make_shared<bool>(true)) {}

CheckpointCoordinator::~CheckpointCoordinator() {
  *alive_ = false;
  env_->Cancel(timer_);
  env_->Cancel(rest_timer_);
  for (const auto& [node, call] : attempt_.calls) rpc_->Cancel(call);
}

void CheckpointCoordinator::Resume(bool generation_begins) {
  if (!enabled()) return;
  if (generation_begins) {
    base_.reset();
    written_.reset();
    passed_ = 0;
    exact_step_.reset();
    exact_.clear();
  }
  active_ = true;
  if (timer_ == kNoTimer) ArmTimer();
  Arm();
}

void CheckpointCoordinator::NoteWritten(uint64_t step) {
  written_ = step;
  passed_ = std::max(passed_, step);
}

void CheckpointCoordinator::AfterCommit(absl::AnyInvocable<void()> then) {
  if (stage_ != Stage::kCommitting) return then();
  after_commit_ = std::move(then);
}

void CheckpointCoordinator::ArmTimer() {
  if (options_.config.every_minutes() == 0) return;
  timer_ = env_->After(absl::Minutes(options_.config.every_minutes()), [this] {
    due_ = true;
    ArmTimer();
    Arm();
  });
}

void CheckpointCoordinator::Pause() {
  active_ = false;
  Abandon();
}

void CheckpointCoordinator::Abandon() {
  if (stage_ == Stage::kNone || stage_ == Stage::kCommitting) return;  // committing ends by itself
  for (const auto& [node, call] : attempt_.calls) rpc_->Cancel(call);
  // Who has answered is past the step, or holds its file for another map.
  if (!attempt_.files.empty()) passed_ = std::max(passed_, attempt_.step);
  stage_ = Stage::kNone;
  attempt_ = {};
}

void CheckpointCoordinator::Stop(const absl::Status& reason) {
  Pause();
  env_->Cancel(timer_);
  timer_ = kNoTimer;
  std::vector<Written> waiting = std::move(requests_);
  for (Written& written : exact_) waiting.push_back(std::move(written));
  requests_.clear();
  exact_.clear();
  exact_step_.reset();
  due_ = false;
  for (Written& written : waiting) written(reason);
}

void CheckpointCoordinator::Request(Written written) {
  if (!enabled()) {
    written(absl::FailedPreconditionError(
        "this job has no directory for checkpoints: set checkpoints.directory"));
    return;
  }
  if (requests_.size() >= kMaxRequests) {
    written(absl::FailedPreconditionError(
        absl::StrFormat("%d requests for one wait already, and no more are taken", kMaxRequests)));
    return;
  }
  requests_.push_back(std::move(written));
  Arm();
}

void CheckpointCoordinator::RequestStep(uint64_t step, Written written) {
  if (written_ == step ||
      (base_.has_value() && base_step_ == step && stage_ != Stage::kCommitting)) {
    written(step);
    return;
  }
  exact_step_ = step;
  exact_.push_back(std::move(written));
  Arm();
}

std::optional<uint64_t> CheckpointCoordinator::NextPeriodic(const View& view) const {
  const uint64_t every = options_.config.every_steps();
  if (every == 0 || resting_) return std::nullopt;
  const uint64_t step = (std::max(view.furthest, passed_) / every + 1) * every;
  if (view.steps != 0 && step > view.steps) return std::nullopt;
  return step;
}

std::optional<uint64_t> CheckpointCoordinator::NextRequested(const View& view) const {
  if (requests_.empty() && (!due_ || resting_)) return std::nullopt;
  uint64_t step = std::max(view.furthest + std::max(margin_, kMargin), passed_ + 1);
  if (view.steps != 0) step = std::min(step, view.steps);
  return step;
}

void CheckpointCoordinator::Arm() {
  if (!active_ || stage_ == Stage::kCommitting) return;
  if (exact_step_.has_value()) {
    if (stage_ != Stage::kNone && attempt_.step == *exact_step_) {
      attempt_.exact = true;  // it is the one that is under way
      return;
    }
    Abandon();
    Begin(*exact_step_, false, false, true);
    return;
  }
  const View view = handlers_.view();
  const std::optional<uint64_t> periodic = NextPeriodic(view), requested = NextRequested(view);
  if (stage_ != Stage::kNone) {
    if (!requested.has_value()) return;
    // One that has begun, or is as near, answers the request as well.
    if (attempt_.requested || !attempt_.files.empty() || attempt_.step <= *requested) {
      attempt_.requested = true;
      return;
    }
    Abandon();
  }
  if (!periodic.has_value() && !requested.has_value()) return;
  const bool by_steps = periodic.has_value() && (!requested.has_value() || *periodic <= *requested);
  Begin(by_steps ? *periodic : *requested, by_steps, requested.has_value(), false);
}

void CheckpointCoordinator::Begin(uint64_t step, bool periodic, bool requested, bool exact) {
  attempt_ = {};
  attempt_.id = next_id_++;
  attempt_.step = step;
  attempt_.periodic = periodic;
  attempt_.requested = requested;
  attempt_.exact = exact;
  attempt_.began = env_->Now();
  const bool full = !options_.chains || !base_.has_value() ||
                    base_->chain() + 1 >= std::max(1u, options_.config.full_every());
  attempt_.chain = full ? 0 : base_->chain() + 1;
  stage_ = Stage::kPreparing;
  auto status = std::make_shared<absl::Status>();
  env_->Offload([files = options_.files, directory = PendingDirectory(options_.root, step),
                 status] { *status = files->MakeDirectory(directory); },
                [this, alive = alive_, id = attempt_.id, status] {
                  if (!*alive || attempt_.id != id || stage_ != Stage::kPreparing) return;
                  if (!status->ok()) return Fail(*status);
                  Ask();
                });
}

void CheckpointCoordinator::Ask() {
  stage_ = Stage::kWriting;
  const View view = handlers_.view();
  attempt_.partitions = view.partitions;
  pb::CheckpointRequest request;
  request.set_step(attempt_.step);
  request.set_directory(PendingDirectory(options_.root, attempt_.step));
  request.set_full(attempt_.chain == 0);
  if (attempt_.chain > 0) request.set_since(base_step_);
  request.set_generation(view.generation);
  for (const Rounds::Target& server : view.servers) {
    Frame frame;
    frame.header.set_kind(pb::CHECKPOINT);
    frame.header.set_body(request.SerializeAsString());
    CallOptions call{
        .deadline = kAnswerDeadline,
        .attempt = absl::Milliseconds(500),
        .what = absl::StrCat("checkpoint of step ", attempt_.step, " of ", server.name)};
    attempt_.calls[server.node] =
        rpc_->Call(server.node, std::move(frame), std::move(call),
                   [this, node = server.node, id = attempt_.id](absl::StatusOr<Frame> answer) {
                     if (attempt_.id == id) OnFile(node, answer);
                   });
  }
}

void CheckpointCoordinator::OnFile(NodeId node, const absl::StatusOr<Frame>& answer) {
  attempt_.calls.erase(node);
  absl::Status status = answer.status();
  pb::CheckpointFile file;
  if (status.ok()) status = ParseBody(*answer, &file);
  if (absl::IsOutOfRange(status)) {
    // Too late for this step. What heartbeats tell is a little old: look further ahead each time.
    margin_ = std::min(2 * std::max(margin_, kMargin), kMaxMargin);
    if (attempt_.exact) return Fail(status);
    const uint64_t step = attempt_.step;
    Abandon();
    passed_ = std::max(passed_, step);
    Arm();
    return;
  }
  if (!status.ok()) return Fail(status);
  attempt_.bytes += file.bytes();
  // Without a name: a server with nothing to save.
  if (!file.name().empty()) attempt_.files.push_back(std::move(file));
  if (!attempt_.calls.empty()) return;
  if (absl::Status whole = CheckFiles(); !whole.ok()) return Fail(whole);
  Commit();
}

absl::Status CheckpointCoordinator::CheckFiles() const {
  std::set<std::string> names;
  std::set<std::pair<uint32_t, uint32_t>> partitions;
  for (const pb::CheckpointFile& file : attempt_.files) {
    if (file.name().find('/') != std::string::npos || !names.insert(file.name()).second) {
      return absl::InternalError(absl::StrCat("the file name '", file.name(),
                                              "' has a slash, or two servers have written it"));
    }
    for (const pb::CheckpointPartition& partition : file.partition()) {
      if (!partitions.emplace(partition.table(), partition.partition()).second) {
        return absl::InternalError(absl::StrFormat("partition %d of table %d was written twice",
                                                   partition.partition(), partition.table()));
      }
    }
  }
  if (partitions.size() == attempt_.partitions) return absl::OkStatus();
  return absl::InternalError(absl::StrFormat("%d partitions were written, the job has %d",
                                             partitions.size(), attempt_.partitions));
}

void CheckpointCoordinator::Commit() {
  stage_ = Stage::kCommitting;
  pb::CheckpointManifest manifest = handlers_.manifest(attempt_.step);
  manifest.set_step(attempt_.step);
  bool changes = false;
  for (pb::CheckpointFile& file : attempt_.files) {
    file.set_step(attempt_.step);
    for (const pb::CheckpointPartition& partition : file.partition()) {
      changes |= partition.state().changes_only();
    }
    *manifest.add_file() = file;
  }
  std::string base;
  if (changes && base_.has_value()) {
    base = CheckpointDirectory(options_.root, base_step_);
    for (const pb::CheckpointFile& file : base_->file()) *manifest.add_file() = file;
  }
  if (changes && !base_.has_value()) {
    stage_ = Stage::kWriting;
    return Fail(absl::InternalError("a server saved changes though all was asked for"));
  }
  // Changes that follow build on all of it, even if this one was to hold everything.
  attempt_.chain = changes ? std::max(1u, attempt_.chain) : 0;
  manifest.set_chain(attempt_.chain);
  base_ = manifest;
  base_step_ = attempt_.step;
  commit_ = [this, base, manifest = std::move(manifest)]() mutable {
    auto committed = std::make_shared<absl::Status>();
    env_->Offload(
        [files = options_.files, root = options_.root, base, manifest = std::move(manifest),
         committed] { *committed = CommitCheckpoint(files, root, base, manifest); },
        [this, alive = alive_, committed] {
          if (!*alive) return;
          OnCommitted(attempt_, *committed);
          if (*alive && after_commit_) std::exchange(after_commit_, nullptr)();
        });
  };
  // What is newest, and so stays, is not to change while others are removed.
  if (!pruning_) std::exchange(commit_, nullptr)();
}

void CheckpointCoordinator::OnCommitted(const Attempt& done, const absl::Status& status) {
  const Attempt attempt = done;
  if (!status.ok()) {
    base_.reset();
    stage_ = Stage::kWriting;
    Fail(status);
    return;
  }
  stage_ = Stage::kNone;
  attempt_ = {};
  passed_ = std::max(passed_, attempt.step);
  handlers_.event(absl::StrFormat("checkpoint of step %d: %d files, %.1f MiB%s, written in %.2f s",
                                  attempt.step, attempt.files.size(), attempt.bytes / 0x1p20,
                                  attempt.chain > 0 ? " of changes" : "",
                                  absl::ToDoubleSeconds(env_->Now() - attempt.began)));
  handlers_.committed(attempt.step);
  Finish(attempt, attempt.step);
}

void CheckpointCoordinator::Prune() {
  // Otherwise it is done after the commit that is under way.
  if (pruning_ || stage_ == Stage::kCommitting) return;
  pruning_ = true;
  auto pruned = std::make_shared<absl::Status>();
  env_->Offload([files = options_.files, root = options_.root, keep = options_.config.keep(),
                 pruned] { *pruned = PruneCheckpoints(files, root, std::max(1u, keep)); },
                [this, alive = alive_, pruned] {
                  if (!*alive) return;
                  pruning_ = false;
                  if (!pruned->ok()) {
                    handlers_.event(absl::StrCat("older checkpoints could not be removed: ",
                                                 std::string(pruned->message())));
                  }
                  if (commit_) std::exchange(commit_, nullptr)();
                });
}

void CheckpointCoordinator::Fail(const absl::Status& status) {
  const Attempt attempt = attempt_;
  for (const auto& [node, call] : attempt_.calls) rpc_->Cancel(call);
  stage_ = Stage::kNone;
  attempt_ = {};
  passed_ = std::max(passed_, attempt.step);
  // Servers may have marked what they saved: the next one holds everything.
  base_.reset();
  resting_ = true;
  env_->Cancel(rest_timer_);
  rest_timer_ = env_->After(kRest, [this] {
    resting_ = false;
    Arm();
  });
  handlers_.event(absl::StrCat("the checkpoint of step ", attempt.step,
                               " failed, training goes on: ", status.message()));
  Finish(attempt, status);
}

// Who waited is told, and the next is begun.
void CheckpointCoordinator::Finish(const Attempt& attempt, const absl::StatusOr<uint64_t>& result) {
  std::vector<Written> waiting;
  if (attempt.requested) {
    waiting = std::move(requests_);
    requests_.clear();
    due_ = false;
    margin_ = 0;
  }
  if (attempt.exact || (exact_step_.has_value() && *exact_step_ == attempt.step)) {
    for (Written& written : exact_) waiting.push_back(std::move(written));
    exact_.clear();
    exact_step_.reset();
  }
  for (Written& written : waiting) written(result);
  Arm();
}

}  // namespace parley
