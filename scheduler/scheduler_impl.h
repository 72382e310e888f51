// The state and the handlers of SchedulerNode, in four files: scheduler_node.cc has what nodes ask
// and say, scheduler_moves.cc who dies and what moves then, scheduler_generations.cc the first
// assignment, roll-backs and resumption, scheduler_end.cc counting, stopping and command line
// tools.
#ifndef PARLEY_SCHEDULER_SCHEDULER_IMPL_H_
#define PARLEY_SCHEDULER_SCHEDULER_IMPL_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "ps/net/rpc.h"
#include "scheduler/checkpoint_coordinator.h"
#include "scheduler/failure_detector.h"
#include "scheduler/journal.h"
#include "scheduler/membership.h"
#include "scheduler/planner.h"
#include "scheduler/rounds.h"
#include "scheduler/run_tally.h"
#include "scheduler/scheduler_node.h"
#include "scheduler/slow_workers.h"

namespace parley {

inline constexpr uint32_t kSchedulerStateFormat = 1;

// Phases; each failure that nothing makes up for goes to kStopping:
//   kOpening    the state of an earlier scheduler is looked for, and the checkpoint to begin from
//   kGathering  nodes join; workers say which tables they need
//   kAssigning  every server is told its partitions, for the first time
//   kTraining   workers train, until all have finished; nodes die and come, partitions move
//   kCounting   servers say what they have counted
//   kStopping   everybody is told to stop
class SchedulerNode::Impl {
 public:
  Impl(Env* env, Transport* transport, Options options, RunObserver* observer,
       absl::AnyInvocable<void(absl::Status)> done);
  ~Impl();

  void Start();
  void Stop(const absl::Status& status) { StopAll(status); }
  void RequestCheckpoint();
  bool owns_state() const { return owns_state_; }

 private:
  enum class Phase { kOpening, kGathering, kAssigning, kTraining, kCounting, kStopping };

  const pb::Cluster& cluster() const { return options_.experiment.cluster(); }
  absl::Duration Watch() const { return absl::Milliseconds(cluster().heartbeat_ms()); }
  void Event(const std::string& line) { observer_->OnEvent(line); }
  bool Running() const { return phase_ == Phase::kTraining || phase_ == Phase::kCounting; }

  // scheduler_node.cc
  absl::Status Admission(NodeId from, const pb::FrameHeader& header);
  void OnHello(NodeId from, const Frame& request);
  void Refuse(NodeId from, const Frame& request, const std::string& name,
              const absl::Status& status);
  void OnRegister(NodeId from, const Frame& request);
  bool CanAnswerRegister() const {
    return Running() && published_.map().epoch() > 0 && !restoring_;
  }
  void AnswerRegister(const Member& worker, const pb::FrameHeader& request);
  void OnHeartbeat(NodeId from, const Frame& request);
  void NoteBeat(NodeId from, const pb::Heartbeat& beat);
  void OnReport(NodeId from, const Frame& request);
  void OnFinished(NodeId from, const Frame& request);
  // The logical worker that a REPORT or FINISHED of `member` speaks for.
  template <typename Message>
  absl::StatusOr<uint32_t> RankOf(const Member& member, const Message& message) const;
  void OnFailed(NodeId from, const Frame& request);
  void OnWatch();
  std::string Awaited();
  std::string Where();
  RunProgress MakeProgress();
  void OnProgress();

  // scheduler_moves.cc
  void OnGone(NodeId node);  // its connection broke, and it does not answer
  // `verdict` is how the job ends if nothing makes up for it; its message begins with who it is.
  void OnDead(NodeId node, const std::string& cause, const absl::Status& verdict);
  void OnDeadWorker(Member worker, const std::string& cause, const absl::Status& verdict);
  void OnDeadServer(Member server, const std::string& cause, const absl::Status& verdict);
  // False: it has died too often without getting anywhere.
  bool NoteFailure(uint32_t rank);
  void OnBackupNews(NodeId from, const Frame& request);
  // The node's process goes from members and from all that is awaited of it.
  void Forget(const Member& member);
  bool Endures() const;  // deaths do not end the job
  PlanInput MakePlanInput();
  bool Exact() const;  // a logical worker can be moved without changing what is computed
  void RequestRound(bool urgent);
  // Also one that is still being saved.
  void CancelRound();
  void PlanRound();
  void Apply(const Plan& plan);
  void RunRound(bool generation);
  void OnServersReady(const pb::Assignment& assignment);
  std::vector<Rounds::Target> WorkersToTell();
  void OnRoundDone(absl::Duration took);
  void OnRoundError(NodeId node, const absl::Status& status);
  void OnLacks(NodeId node, const pb::Assigned& answer);
  void UpdateSpares();
  void OnSettled();
  void JudgeSpeed();

  // scheduler_generations.cc
  void OnOpened(absl::StatusOr<std::optional<std::string>> found);
  void FindRestore();
  void ReadRestore();
  void BeginGathering();
  void GoOn(const pb::SchedulerState& state);
  std::string SaveState();
  absl::Status CheckRestore() const;
  void TryAssign();
  void RollBack(const absl::Status& verdict, const std::string& reason);
  void FindCheckpointForRollBack();
  void OnCheckpointsUnreachable(const absl::Status& status);
  void TryGeneration();
  void BeginGeneration();
  std::vector<Member*> CompleteServers();

  // scheduler_end.cc
  CheckpointCoordinator::View CheckpointView();
  pb::CheckpointManifest Manifest(uint64_t step) const;
  void OnCheckpointCommitted(uint64_t step);
  void MaybeFinish();
  void WriteEnd(absl::Duration since);
  void CollectCounts();
  void StopAll(const absl::Status& status);
  void TellStop();
  void Finish();
  void End();
  void OnDeposed(const absl::Status& status);
  void OnControl(NodeId from, const Frame& request);
  using ControlKey = std::pair<NodeId, uint64_t>;  // who asks, and its request id
  void AnswerControl(ControlKey key, const absl::StatusOr<pb::ControlAnswer>& answer);
  absl::Status CheckResize(uint32_t servers);
  bool MakeRoomForControl();

  // Constant after construction.
  Env* const env_;
  Transport* const transport_;
  const Options options_;
  FileSystem* const files_;
  RunObserver* const observer_;
  absl::AnyInvocable<void(absl::Status)> done_;
  const uint64_t job_id_;
  std::shared_ptr<bool> alive_;  // false once this is gone: offloaded work may end later

  // Owned by the loop.
  Rpc rpc_;
  Membership members_;
  RunTally tally_;
  FailureDetector detector_;
  Rounds rounds_;
  Journal journal_;
  CheckpointCoordinator checkpoints_;
  SlowWorkers slow_;
  Phase phase_ = Phase::kOpening;
  absl::Duration started_, training_since_, last_watch_;
  absl::Duration last_refusal_ = -absl::InfiniteDuration();  // that was told
  pb::Register tables_;  // what the first worker needs; all must agree
  bool have_tables_ = false;
  uint32_t servers_wanted_;                       // processes that shall hold partitions
  std::map<NodeId, pb::FrameHeader> registered_;  // parked REGISTERs, to be answered with a map
  std::set<NodeId> registering_;  // are answered once it is saved that they are ready
  std::set<NodeId> unanswered_;   // have registered here, and got no answer yet
  pb::Assignment assignment_;     // of the newest round, complete or not; epoch 0: none yet
  pb::Assignment published_;      // of the newest that all servers follow: what workers may know
  std::optional<pb::Restore> resumed_from_;  // what the first generation began from
  std::optional<pb::CheckpointManifest> restored_manifest_;
  std::vector<uint64_t> committed_;  // steps of this job's checkpoints, ascending
  std::map<uint32_t, std::pair<NodeId, pb::Heartbeat>> rank_beats_;  // the newest, and from whom

  // Moves.
  bool round_wanted_ = false;
  bool round_open_ = false;        // begun, and not everybody has heard of it yet
  bool generation_round_ = false;  // the round under way begins a generation
  // Who was to take these over has nothing to begin with (Assigned.lacks); for the next plan.
  std::set<std::pair<size_t, uint32_t>> vacant_;
  TimerId round_timer_ = kNoTimer;
  uint64_t round_ = 0;  // counts rounds, so that what is late can be told
  std::optional<absl::Duration> orphans_since_;
  std::vector<std::string> round_news_;  // told when the round is done
  bool unsettled_ = false;
  uint32_t server_deaths_ = 0;  // since the round before
  absl::Duration longest_round_;
  uint32_t moved_ = 0;
  std::set<NodeId> let_go_;              // servers that have handed over all they had
  std::optional<absl::Status> verdict_;  // of the newest death
  struct Failures {
    uint32_t count = 0;
    uint64_t tick = 0;
  };
  std::map<uint32_t, Failures> failures_;  // of logical workers, without a step in between

  // Roll-back.
  bool restoring_ = false;      // broken off; nothing is planned until all begin again
  bool restore_found_ = false;  // it is known from what
  absl::Duration restoring_since_;
  std::optional<pb::Restore> restore_;
  std::string restore_reason_;

  // The end.
  bool end_asked_ = false, end_written_ = false;  // the checkpoint at the end, or why it is not
  absl::Status end_failure_;
  TimerId write_end_timer_ = kNoTimer;
  uint64_t counting_ = 0;     // counts attempts
  std::set<NodeId> counted_;  // servers whose counts are in the tally
  absl::Status result_;
  bool goes_on_ = false;     // with the job of a scheduler before this one
  bool owns_state_ = false;  // what the store holds, if anything, is this job's and readable
  bool stop_told_ = false;
  size_t stops_open_ = 0;
  bool ended_ = false;
  std::map<ControlKey, std::optional<absl::StatusOr<pb::ControlAnswer>>> controls_;
  std::deque<ControlKey> control_order_;
  std::vector<ControlKey> resizers_;
  TimerId watch_timer_ = kNoTimer, progress_timer_ = kNoTimer, end_timer_ = kNoTimer;
};

}  // namespace parley

#endif  // PARLEY_SCHEDULER_SCHEDULER_IMPL_H_
