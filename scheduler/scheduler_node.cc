#include "scheduler/scheduler_node.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/net/admission.h"
#include "ps/net/rpc.h"
#include "ps/net/scheduler_link.h"
#include "scheduler/assignment.h"
#include "scheduler/membership.h"
#include "scheduler/run_tally.h"

namespace parley {
namespace {

constexpr absl::Duration kProgressPeriod = absl::Milliseconds(200);
// How long the end of a job waits for each node's answer to STOP: a dead one gives none.
constexpr absl::Duration kStopDeadline = absl::Seconds(3);
// Between the last answer and the end of this node, so that it gets out.
constexpr absl::Duration kLinger = absl::Milliseconds(200);

}  // namespace

// Phases, in order; each failure goes to kStopping:
//   kGathering  nodes join; workers say which tables they need
//   kAssigning  every server is told its partitions
//   kTraining   workers train, until all have finished
//   kCounting   servers say what they have counted
//   kStopping   everybody is told to stop
class SchedulerNode::Impl {
 public:
  Impl(Env* env, Transport* transport, Options options, RunObserver* observer,
       absl::AnyInvocable<void(absl::Status)> done)
      : env_(env),
        options_(std::move(options)),
        observer_(observer),
        done_(std::move(done)),
        job_id_(JobId(options_.job)),
        rpc_(env, transport),
        members_(options_.job, options_.experiment.cluster()),
        tally_(options_.experiment) {}

  ~Impl() {
    env_->Cancel(watch_timer_);
    env_->Cancel(progress_timer_);
    env_->Cancel(end_timer_);
  }

  void Start() {
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
    observer_->OnStart(options_.job, options_.experiment);
    watch_timer_ = env_->After(Watch(), [this] { OnWatch(); });
  }

  void Stop(const absl::Status& status) { StopAll(status); }

 private:
  enum class Phase { kGathering, kAssigning, kTraining, kCounting, kStopping };

  const pb::Cluster& cluster() const { return options_.experiment.cluster(); }
  absl::Duration Watch() const { return absl::Milliseconds(cluster().heartbeat_ms()); }

  // Only members may ask for more than to be admitted.
  absl::Status Admission(NodeId from, const pb::FrameHeader& header) {
    absl::Status status = CheckAdmission(header, job_id_);
    if (!status.ok() || header.kind() == pb::HELLO || header.kind() == pb::FAILED) return status;
    if (members_.Find(from) == nullptr) {
      return absl::FailedPreconditionError(
          absl::StrFormat("this scheduler of job '%s' does not know node %s: it has to join first",
                          options_.job, ToString(from)));
    }
    return absl::OkStatus();
  }

  void OnHello(NodeId from, const Frame& request) {
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
    if (!status.ok()) {
      // A stranger that keeps asking must not fill the record.
      if (env_->Now() - last_refusal_ >= absl::Seconds(1)) {
        last_refusal_ = env_->Now();
        observer_->OnEvent(absl::StrFormat(
            "refused %s: %s", hello.node_name().substr(0, Membership::kMaxName), status.message()));
      }
      rpc_.ReplyError(from, request.header, status);
      return;
    }
    pb::Welcome welcome;
    welcome.set_rank(member->rank);
    welcome.set_incarnation(member->incarnation);
    welcome.set_job(options_.job);
    welcome.set_job_id(job_id_);
    *welcome.mutable_experiment() = options_.experiment;
    welcome.set_spare(member->spare);
    Frame answer;
    answer.header.set_body(welcome.SerializeAsString());
    rpc_.Reply(from, request.header, std::move(answer));
    if (!is_new) return;
    observer_->OnEvent(absl::StrCat(member->Describe(cluster().shards_per_server() > 1), " joined",
                                    member->spare ? "; all places are taken, it waits" : ""));
    TryAssign();
  }

  void OnRegister(NodeId from, const Frame& request) {
    pb::Register tables;
    absl::Status status = ParseBody(request, &tables);
    Member* member = members_.Find(from);
    if (status.ok() && (member->role != pb::WORKER || member->spare)) {
      status = absl::FailedPreconditionError("only a worker that has a place registers tables");
    }
    if (!status.ok()) {
      rpc_.ReplyError(from, request.header, status);
      return;
    }
    if (phase_ == Phase::kStopping) {
      rpc_.ReplyError(
          from, request.header,
          absl::FailedPreconditionError(absl::StrFormat("job '%s' is ending", options_.job)));
      return;
    }
    if (phase_ >= Phase::kTraining) {  // its answer was lost
      AnswerRegister(*member, request.header);
      return;
    }
    if (registered_.empty()) {
      tables_ = tables;
      tally_.SetTables(tables);
    } else if (!SameTables(tables, tables_)) {
      StopAll(absl::FailedPreconditionError(
          absl::StrCat(member->Describe(false),
                       " needs other tables or has other data than the workers before "
                       "it: do all hosts have the same data set and version?")));
      return;
    }
    if (!registered_.contains(from)) {
      observer_->OnEvent(absl::StrCat(member->Describe(false), " is ready on ", tables.device()));
    }
    registered_[from] = request.header;
    rpc_.ReplyParked(from, request.header, absl::StrCat("the other nodes (", Awaited(), ")"));
    TryAssign();
  }

  static bool SameTables(const pb::Register& a, const pb::Register& b) {
    pb::Register x = a, y = b;
    x.clear_device();
    y.clear_device();
    return x.SerializeAsString() == y.SerializeAsString();
  }

  std::string Awaited() {
    std::string missing = members_.Missing();
    if (!missing.empty()) return "missing: " + missing;
    if (phase_ == Phase::kGathering) {
      for (Member* worker : members_.workers()) {
        if (!registered_.contains(worker->node)) {
          absl::StrAppend(&missing, missing.empty() ? "still loading: " : ", ",
                          worker->Describe(false));
        }
      }
      return missing;
    }
    for (Member* server : members_.servers()) {
      if (!assigned_.contains(server->node)) {
        absl::StrAppend(&missing, missing.empty() ? "still preparing: " : ", ",
                        server->Describe(true));
      }
    }
    return missing;
  }

  void TryAssign() {
    if (phase_ != Phase::kGathering || !members_.servers_complete() ||
        !members_.workers_complete() || registered_.size() < members_.workers().size()) {
      return;
    }
    phase_ = Phase::kAssigning;
    absl::StatusOr<pb::Assignment> made =
        MakeAssignment(tables_, members_.servers(), members_.workers());
    if (!made.ok()) {
      StopAll(made.status());
      return;
    }
    assignment_ = *std::move(made);
    for (Member* server : members_.servers()) {
      Frame frame;
      frame.header.set_kind(pb::ASSIGN);
      frame.header.set_body(assignment_.SerializeAsString());
      CallOptions call{.deadline = absl::Milliseconds(cluster().start_timeout_ms()),
                       .what = "partition assignment to " + server->Describe(true)};
      rpc_.Call(server->node, std::move(frame), std::move(call),
                [this, node = server->node](absl::StatusOr<Frame> answer) {
                  OnAssigned(node, answer.status());
                });
    }
  }

  void OnAssigned(NodeId server, const absl::Status& status) {
    if (phase_ != Phase::kAssigning) return;
    if (!status.ok()) {
      StopAll(status);
      return;
    }
    assigned_.insert(server);
    if (assigned_.size() < members_.servers().size()) return;
    phase_ = Phase::kTraining;
    training_since_ = env_->Now();
    observer_->OnEvent(absl::StrFormat("training starts: %d servers, %d workers, %d samples",
                                       cluster().servers(), cluster().workers(),
                                       tables_.train_samples()));
    for (const auto& [node, request] : registered_) AnswerRegister(*members_.Find(node), request);
    progress_timer_ = env_->After(kProgressPeriod, [this] { OnProgress(); });
  }

  void AnswerRegister(const Member& worker, const pb::FrameHeader& request) {
    pb::Assignment assignment = assignment_;
    assignment.set_data_part(worker.rank);
    Frame answer;
    answer.header.set_body(assignment.SerializeAsString());
    rpc_.Reply(worker.node, request, std::move(answer));
  }

  void OnHeartbeat(NodeId from, const Frame& request) {
    pb::Heartbeat heartbeat;
    if (!ParseBody(request, &heartbeat).ok()) return;
    Member* member = members_.Find(from);
    member->last_heard = env_->Now();
    // Heartbeats may overtake each other; what a worker has done never shrinks.
    if (!member->heard_heartbeat || heartbeat.samples() >= member->heartbeat.samples()) {
      member->heartbeat = std::move(heartbeat);
      member->heard_heartbeat = true;
    }
    pb::HeartbeatAck ack;
    ack.set_epoch(assignment_.map().epoch());
    Frame answer;
    answer.header.set_body(ack.SerializeAsString());
    rpc_.Reply(from, request.header, std::move(answer));
  }

  void OnReport(NodeId from, const Frame& request) {
    pb::Report report;
    absl::Status status = ParseBody(request, &report);
    Member* member = members_.Find(from);
    if (status.ok() && (member->role != pb::WORKER || member->spare ||
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
    rpc_.Reply(from, request.header, Frame());
    if (std::optional<EpochMetrics> metrics = tally_.AddReport(member->rank, report)) {
      observer_->OnEpoch(*metrics);
    }
  }

  void OnFinished(NodeId from, const Frame& request) {
    pb::Finished finished;
    absl::Status status = ParseBody(request, &finished);
    Member* member = members_.Find(from);
    if (status.ok() && (member->role != pb::WORKER || member->spare)) {
      status = absl::InvalidArgumentError("only workers with a place finish");
    }
    if (!status.ok()) {
      rpc_.ReplyError(from, request.header, status);
      return;
    }
    rpc_.Reply(from, request.header, Frame());
    tally_.AddFinished(member->rank, finished);
    if (tally_.all_finished()) CollectCounts();
  }

  void OnFailed(NodeId from, const Frame& request) {
    pb::Stop reason;
    Member* member = members_.Find(from);
    // A stranger's failure is its own; so is a spare's.
    if (member == nullptr || member->spare || !ParseBody(request, &reason).ok()) return;
    member->last_heard = absl::InfiniteDuration();  // gone: not silent, and not to be waited for
    StopAll(absl::AbortedError(absl::StrCat(member->Describe(true), " failed: ", reason.reason())));
  }

  void OnWatch() {
    const absl::Duration now = env_->Now();
    const absl::Duration allowed = absl::Milliseconds(cluster().node_timeout_ms());
    if (Member* silent = members_.Silent(now, allowed)) {
      if (silent->spare) {
        // Nobody depends on it; it may come again under another name.
        observer_->OnEvent(silent->Describe(true) + " is silent; it is not waited for any more");
        members_.RemoveSpare(silent->node);
      } else {
        const absl::Duration silence = now - silent->last_heard;
        silent->last_heard = absl::InfiniteDuration();
        StopAll(absl::UnavailableError(
            absl::StrFormat("%s is dead: no heartbeat for %.1f s (node_timeout_ms is %d) %s",
                            silent->Describe(true), absl::ToDoubleSeconds(silence),
                            cluster().node_timeout_ms(), Where())));
        return;
      }
    }
    const bool starting = phase_ == Phase::kGathering || phase_ == Phase::kAssigning;
    if (starting && now - started_ > absl::Milliseconds(cluster().start_timeout_ms())) {
      StopAll(absl::DeadlineExceededError(
          absl::StrFormat("the job did not start within start_timeout_ms %d; %s",
                          cluster().start_timeout_ms(), Awaited())));
      return;
    }
    watch_timer_ = env_->After(Watch(), [this] { OnWatch(); });
  }

  // Where the job stands and what is awaited, to complete an error line.
  std::string Where() {
    if (phase_ == Phase::kCounting) return "after training, while the servers were counting";
    if (phase_ != Phase::kTraining) return absl::StrCat("before training; ", Awaited());
    const RunProgress progress = MakeProgress();
    std::string text = absl::StrFormat("in epoch %d at step %d", progress.epoch + 1, progress.step);
    for (Member* worker : members_.workers()) {
      // What a dead one last said is no news.
      const bool living = worker->last_heard != absl::InfiniteDuration();
      if (!living || worker->heartbeat.waiting_for().empty()) continue;
      return absl::StrCat(text, "; worker ", worker->rank, " waits for ",
                          worker->heartbeat.waiting_for());
    }
    return text;
  }

  RunProgress MakeProgress() {
    return tally_.Progress(members_.workers(), tables_.train_samples(),
                           env_->Now() - training_since_);
  }

  void OnProgress() {
    if (phase_ != Phase::kTraining) return;
    observer_->OnProgress(MakeProgress());
    progress_timer_ = env_->After(kProgressPeriod, [this] { OnProgress(); });
  }

  // Everything is done: what the servers have counted completes the summary. Asked for apart from
  // STOP, because a node that has been stopped goes away and cannot repeat an answer that was lost.
  void CollectCounts() {
    if (phase_ != Phase::kTraining) return;
    phase_ = Phase::kCounting;
    for (Member* member : members_.servers()) {
      Frame frame;
      frame.header.set_kind(pb::COUNT);
      CallOptions call{.deadline = absl::Milliseconds(cluster().progress_timeout_ms()),
                       .attempt = absl::Milliseconds(300),
                       .what = "counts of " + member->Describe(true)};
      rpc_.Call(member->node, std::move(frame), std::move(call),
                [this, node = member->node](absl::StatusOr<Frame> answer) {
                  pb::ServerCounts counts;
                  absl::Status status = answer.ok() ? ParseBody(*answer, &counts) : answer.status();
                  if (!status.ok()) {
                    StopAll(status);
                    return;
                  }
                  tally_.AddCounts(node, counts);
                  counted_.insert(node);
                  if (counted_.size() == members_.servers().size()) StopAll(absl::OkStatus());
                });
    }
  }

  // Tells everybody, and then ends. The first reason counts.
  void StopAll(const absl::Status& status) {
    if (phase_ == Phase::kStopping) return;
    phase_ = Phase::kStopping;
    result_ = status;
    env_->Cancel(watch_timer_);
    env_->Cancel(progress_timer_);
    // After a good end every node must hear of it, or it would take the scheduler for dead; after a
    // failure the living answer soon, and the dead are not worth more.
    const absl::Duration deadline =
        status.ok() ? absl::Milliseconds(cluster().node_timeout_ms()) : kStopDeadline;
    for (Member* member : members_.all()) {
      pb::Stop stop;
      stop.set_ok(status.ok());
      stop.set_reason(std::string(status.message()));
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

  void Finish() {
    RunSummary summary = tally_.Summary(env_->Now() - started_);
    if (!result_.ok()) {
      summary.ok = false;
      summary.reason = std::string(result_.message());
    } else if (!summary.ok) {
      result_ = absl::DataLossError(summary.reason);
    }
    observer_->OnFinish(summary);
    end_timer_ = env_->After(kLinger, [this] { done_(result_); });
  }

  // Constant after construction.
  Env* const env_;
  const Options options_;
  RunObserver* const observer_;
  absl::AnyInvocable<void(absl::Status)> done_;
  const uint64_t job_id_;

  // Owned by the loop.
  Rpc rpc_;
  Membership members_;
  RunTally tally_;
  Phase phase_ = Phase::kGathering;
  absl::Duration started_, training_since_;
  absl::Duration last_refusal_ = -absl::InfiniteDuration();  // that was told
  pb::Register tables_;  // what the first worker needs; all must agree
  std::map<NodeId, pb::FrameHeader>
      registered_;  // parked REGISTERs, to be answered with the assignment
  pb::Assignment assignment_;
  std::set<NodeId> assigned_;  // servers that hold their partitions
  std::set<NodeId> counted_;   // servers whose counts are in the tally
  absl::Status result_;
  size_t stops_open_ = 0;
  TimerId watch_timer_ = kNoTimer, progress_timer_ = kNoTimer, end_timer_ = kNoTimer;
};

SchedulerNode::SchedulerNode(Env* env, Transport* transport, Options options, RunObserver* observer,
                             absl::AnyInvocable<void(absl::Status)> done)
    : impl_(std::make_unique<Impl>(env, transport, std::move(options), observer, std::move(done))) {
}
SchedulerNode::~SchedulerNode() = default;
void SchedulerNode::Start() { impl_->Start(); }
void SchedulerNode::Stop(const absl::Status& status) { impl_->Stop(status); }

}  // namespace parley
