// SchedulerNode: checkpoints' facts, counting, the end, and what command line tools ask.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/config/copied_partitions.h"
#include "ps/net/scheduler_link.h"
#include "scheduler/scheduler_impl.h"

namespace parley {
namespace {

// How long the end of a job waits for each node's answer to STOP: a dead one gives none.
constexpr absl::Duration kStopDeadline = absl::Seconds(3);
// The checkpoint at the end: how long one attempt may take, in start_timeout_ms, for which it is
// tried again; and the pause in between.
constexpr int kEndPatience = 10;
constexpr absl::Duration kEndPause = absl::Seconds(2);
// Between the last answer and the end of this node, so that it gets out.
constexpr absl::Duration kLinger = absl::Milliseconds(200);
// For the last state to be saved.
constexpr absl::Duration kSaveDeadline = absl::Seconds(5);
// Requests of command line tools that are remembered, so that each is answered as often as it is
// asked and done once.
constexpr size_t kMaxControls = 64;

}  // namespace

CheckpointCoordinator::View SchedulerNode::Impl::CheckpointView() {
  CheckpointCoordinator::View view;
  for (const Member* server : CompleteServers()) {
    if (Rounds::OwnsAny(assignment_, server->node)) {
      view.servers.push_back({server->node, server->Describe(true)});
    }
  }
  for (const auto& [rank, beat] : rank_beats_) {
    view.furthest = std::max<uint64_t>(view.furthest, beat.second.tick());
  }
  view.furthest = std::max<uint64_t>(view.furthest, assignment_.restore().step());
  // Workers with their own part of the data have their own number of steps.
  if (options_.experiment.data().sharding() == pb::Data::GLOBAL_BATCH) {
    view.steps = tally_.PlannedSteps(tables_.train_samples());
  }
  view.generation = assignment_.generation();
  for (const pb::TableMap& table : assignment_.map().table()) {
    view.partitions += table.owner_size();
  }
  return view;
}

pb::CheckpointManifest SchedulerNode::Impl::Manifest(uint64_t step) const {
  pb::CheckpointManifest manifest;
  manifest.set_job(options_.job);
  const uint64_t steps = tally_.PlannedSteps(tables_.train_samples());
  const uint64_t batch = std::max<uint64_t>(1, options_.experiment.training().global_batch());
  const uint64_t per_epoch = (tables_.train_samples() + batch - 1) / batch;
  if (steps > 0 && per_epoch > 0) manifest.set_data_epoch(step / per_epoch);
  manifest.set_workers(cluster().workers());
  *manifest.mutable_experiment() = options_.experiment;
  *manifest.mutable_table() = tables_.table();
  manifest.set_tally(tally_.Save(step).SerializeAsString());
  return manifest;
}

void SchedulerNode::Impl::OnCheckpointCommitted(uint64_t step) {
  tally_.CountCheckpoint();
  // Those after it are of a future that was rolled back.
  std::erase_if(committed_, [step](uint64_t other) { return other >= step; });
  committed_.push_back(step);
  const size_t keep = std::max(1u, options_.experiment.checkpoints().keep());
  if (committed_.size() > keep) {
    committed_.erase(committed_.begin(), committed_.end() - static_cast<ptrdiff_t>(keep));
  }
  // Not before it is known for sure what is there in place of them.
  journal_.Save([this] { checkpoints_.Prune(); });
}

void SchedulerNode::Impl::RequestCheckpoint() {
  checkpoints_.Request([this](const absl::StatusOr<uint64_t>& written) {
    // What became of an attempt is told already.
    if (absl::IsFailedPrecondition(written.status())) {
      Event(absl::StrCat("no checkpoint: ", written.status().message()));
    }
  });
}

// When all have finished and nothing moves: the checkpoint at the end, then the counts.
void SchedulerNode::Impl::MaybeFinish() {
  if (phase_ != Phase::kTraining || restoring_ || round_open_ || round_wanted_ ||
      !tally_.all_finished()) {
    return;
  }
  if (options_.experiment.checkpoints().at_end() && checkpoints_.enabled() && !end_written_) {
    if (std::exchange(end_asked_, true)) return;
    WriteEnd(env_->Now());
    return;
  }
  checkpoints_.Stop(absl::AbortedError("the job has come to its end"));
  for (const EpochMetrics& metrics : tally_.TakeIncomplete()) observer_->OnEpoch(metrics);
  CollectCounts();
}

// The checkpoint at the end is what somebody wants of this job: it is tried for a while, and a job
// without it has not succeeded.
void SchedulerNode::Impl::WriteEnd(absl::Duration since) {
  const absl::Duration patience = absl::Milliseconds(cluster().start_timeout_ms());
  const uint64_t generation = assignment_.generation();
  const auto over = [this, generation] {
    return generation != assignment_.generation() || restoring_ || end_written_ ||
           phase_ != Phase::kTraining;
  };
  const auto end_with = [this, over](const absl::Status& status) {
    if (over()) return;
    env_->Cancel(write_end_timer_);
    end_failure_ = status.ok()
                       ? status
                       : absl::DataLossError(absl::StrCat(
                             "the checkpoint at the end was not written: ", status.message()));
    end_written_ = true;
    MaybeFinish();
  };
  env_->Cancel(write_end_timer_);
  write_end_timer_ = env_->After(kEndPatience * patience, [end_with, patience] {
    end_with(absl::DeadlineExceededError(absl::StrCat(
        "no server said what became of it within ", absl::FormatDuration(kEndPatience * patience),
        " (", kEndPatience, " times start_timeout_ms)")));
  });
  checkpoints_.RequestStep(tally_.finished_steps(), [this, since, patience, over, end_with](
                                                        const absl::StatusOr<uint64_t>& step) {
    if (step.ok() || env_->Now() - since >= patience) return end_with(step.status());
    env_->After(kEndPause, [this, alive = alive_, since, over] {
      if (*alive && !over()) WriteEnd(since);
    });
  });
}

// Everything is done: what the servers have counted completes the summary. Asked for apart from
// STOP, because a node that has been stopped goes away and cannot repeat an answer that was lost.
void SchedulerNode::Impl::CollectCounts() {
  phase_ = Phase::kCounting;
  const uint64_t counting = ++counting_;
  tally_.ForgetCounts();
  counted_.clear();
  std::vector<const Member*> servers;
  for (const pb::ShardAddress& shard : assignment_.map().shard()) {
    if (const Member* member = members_.Find(NodeId{shard.node()})) servers.push_back(member);
  }
  const size_t wanted = servers.size();
  for (const Member* member : servers) {
    Frame frame;
    frame.header.set_kind(pb::COUNT);
    CallOptions call{.deadline = absl::Milliseconds(cluster().progress_timeout_ms()),
                     .attempt = absl::Milliseconds(300),
                     .what = "counts of " + member->Describe(true)};
    rpc_.Call(member->node, std::move(frame), std::move(call),
              [this, node = member->node, counting, wanted](absl::StatusOr<Frame> answer) {
                if (counting != counting_ || phase_ != Phase::kCounting) return;
                pb::ServerCounts counts;
                absl::Status status = answer.ok() ? ParseBody(*answer, &counts) : answer.status();
                if (!status.ok()) {
                  StopAll(status);
                  return;
                }
                tally_.AddCounts(node, counts);
                counted_.insert(node);
                if (counted_.size() == wanted) StopAll(end_failure_);
              });
  }
}

// Tells everybody, and then ends. The first reason counts.
void SchedulerNode::Impl::StopAll(const absl::Status& status) {
  if (phase_ == Phase::kStopping) return;
  phase_ = Phase::kStopping;
  result_ = status;
  CancelRound();
  checkpoints_.Stop(absl::AbortedError("the job is ending"));
  env_->Cancel(watch_timer_);
  env_->Cancel(progress_timer_);
  for (const ControlKey& key : std::exchange(resizers_, {})) {
    AnswerControl(key, absl::AbortedError("the job is ending"));
  }
  // Another job's state, or none that can be read, is left for whoever knows what it is.
  if (!owns_state_) return TellStop();
  // Nodes go as soon as they are told: a scheduler that comes after this one has to know that, or
  // it waits for them in vain. And if that one is there already, it is not for this one to tell
  // them. But not at any price.
  end_timer_ = env_->After(kSaveDeadline, [this] { TellStop(); });
  journal_.Save([this] { TellStop(); });
}

void SchedulerNode::Impl::TellStop() {
  if (std::exchange(stop_told_, true)) return;
  env_->Cancel(end_timer_);
  // After a good end every node must hear of it, or it would take the scheduler for dead; after a
  // failure the living answer soon, and the dead are not worth more.
  const absl::Duration deadline =
      result_.ok() ? absl::Milliseconds(cluster().node_timeout_ms()) : kStopDeadline;
  for (Member* member : members_.all()) {
    pb::Stop stop;
    stop.set_ok(result_.ok());
    stop.set_reason(std::string(result_.message()));
    Frame frame;
    frame.header.set_kind(pb::STOP);
    frame.header.set_body(stop.SerializeAsString());
    if (member->last_heard == absl::InfiniteDuration()) {
      // Gone, as far as is known: not waited for. If it only stood still, it learns why it ends.
      rpc_.Tell(member->node, std::move(frame));
      continue;
    }
    CallOptions call{.deadline = deadline,
                     .attempt = absl::Milliseconds(150),
                     .max_attempt = absl::Milliseconds(600),
                     .what = "stop of " + member->Describe(true)};
    ++stops_open_;
    // No answer is no news: a node that has stopped does not answer again.
    rpc_.Call(member->node, std::move(frame), std::move(call), [this](absl::StatusOr<Frame>) {
      if (--stops_open_ == 0) Finish();
    });
  }
  if (stops_open_ == 0) Finish();
}

void SchedulerNode::Impl::Finish() {
  RunSummary summary = tally_.Summary(env_->Now() - started_);
  if (!result_.ok()) {
    summary.ok = false;
    summary.reason = std::string(result_.message());
  } else if (!summary.ok) {
    result_ = absl::DataLossError(summary.reason);
  }
  observer_->OnFinish(summary);
  ended_ = true;
  if (!owns_state_) {
    end_timer_ = env_->After(kLinger, [this] { End(); });
    return;
  }
  // That nothing is left to do is to be known to the next scheduler; but not at any price.
  end_timer_ = env_->After(kSaveDeadline, [this] { End(); });
  journal_.Save([this] {
    env_->Cancel(end_timer_);
    end_timer_ = env_->After(kLinger, [this] { End(); });
  });
}

void SchedulerNode::Impl::End() {
  if (done_) std::exchange(done_, nullptr)(result_);
}

// The job is another scheduler's: nobody is told to stop.
void SchedulerNode::Impl::OnDeposed(const absl::Status& status) {
  owns_state_ = false;  // it is the other's now, and not to be removed
  if (stop_told_) return;
  env_->Cancel(end_timer_);
  stop_told_ = true;  // by the other, if at all
  phase_ = Phase::kStopping;
  result_ = status;
  CancelRound();
  checkpoints_.Stop(status);
  env_->Cancel(watch_timer_);
  env_->Cancel(progress_timer_);
  Event(absl::StrCat("this scheduler leads the job no more: ", status.message()));
  end_timer_ = env_->After(kLinger, [this] { End(); });
}

void SchedulerNode::Impl::OnControl(NodeId from, const Frame& request) {
  const ControlKey key{from, request.header.request_id()};
  if (auto known = controls_.find(key); known != controls_.end()) {
    if (known->second.has_value()) {
      AnswerControl(key, *known->second);
    } else {
      rpc_.ReplyParked(from, request.header, "the job to get there");
    }
    return;
  }
  pb::Control control;
  absl::Status status = ParseBody(request, &control);
  if (status.ok() && control.checkpoint() == control.has_servers()) {
    status = absl::InvalidArgumentError("one of `checkpoint` and `servers` is to be asked for");
  }
  if (status.ok() && phase_ != Phase::kTraining) {
    status = absl::FailedPreconditionError(absl::StrFormat(
        "job '%s' %s: ask while it trains", options_.job,
        phase_ == Phase::kStopping || phase_ == Phase::kCounting ? "is ending"
                                                                 : "has not begun yet"));
  }
  if (status.ok() && control.has_servers()) status = CheckResize(control.servers());
  if (status.ok() && !MakeRoomForControl()) {
    status = absl::FailedPreconditionError(
        absl::StrFormat("%d requests wait already, and no more are taken", kMaxControls));
  }
  if (!status.ok()) {
    rpc_.ReplyError(from, request.header, status);
    return;
  }
  controls_[key] = std::nullopt;
  control_order_.push_back(key);
  rpc_.ReplyParked(from, request.header, "the job to get there");
  if (control.has_servers()) {
    Event(absl::StrFormat("%d servers shall hold the partitions; so far it was %d",
                          control.servers(), servers_wanted_));
    servers_wanted_ = control.servers();
    moved_ = 0;
    longest_round_ = absl::ZeroDuration();
    resizers_.push_back(key);
    return RequestRound(false);
  }
  checkpoints_.Request([this, key](const absl::StatusOr<uint64_t>& written) {
    if (!written.ok()) return AnswerControl(key, written.status());
    pb::ControlAnswer answer;
    answer.set_text(
        absl::StrFormat("checkpoint of step %d written in %s", *written, options_.checkpoint_root));
    AnswerControl(key, answer);
  });
}

// What was answered first is forgotten first. False: all of them still wait.
bool SchedulerNode::Impl::MakeRoomForControl() {
  if (control_order_.size() < kMaxControls) return true;
  auto answered =
      std::find_if(control_order_.begin(), control_order_.end(),
                   [this](const ControlKey& key) { return controls_[key].has_value(); });
  if (answered == control_order_.end()) return false;
  controls_.erase(*answered);
  control_order_.erase(answered);
  return true;
}

void SchedulerNode::Impl::AnswerControl(ControlKey key,
                                        const absl::StatusOr<pb::ControlAnswer>& answer) {
  // What sounds temporary, as a full disk does, the asker's rpc would take for no answer at all.
  if (absl::IsResourceExhausted(answer.status()) || absl::IsUnavailable(answer.status())) {
    return AnswerControl(key, absl::InternalError(answer.status().message()));
  }
  if (auto known = controls_.find(key); known != controls_.end()) known->second = answer;
  pb::FrameHeader request;
  request.set_request_id(key.second);
  if (!answer.ok()) {
    rpc_.ReplyError(key.first, request, answer.status());
    return;
  }
  Frame frame;
  frame.header.set_body(answer->SerializeAsString());
  rpc_.Reply(key.first, request, std::move(frame));
}

absl::Status SchedulerNode::Impl::CheckResize(uint32_t servers) {
  if (const std::string why = WhyPartitionsStay(options_.experiment); !why.empty()) {
    return absl::FailedPreconditionError(
        absl::StrFormat("%d servers were asked for, but partitions cannot move while this "
                        "experiment trains: it has "
                        "%s. Stop it, and go on from a checkpoint on other servers (--resume)",
                        servers, why));
  }
  std::set<uint64_t> processes;
  for (const Member* server : CompleteServers()) processes.insert(server->process);
  const uint32_t least = cluster().replicas() + 1;
  if (servers >= least && servers <= processes.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "%d servers were asked for; allowed are %d (replicas and one more) to %d (those that are "
      "there, with spares: start more with parley-server)",
      servers, least, processes.size()));
}

}  // namespace parley
