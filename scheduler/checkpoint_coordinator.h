// CheckpointCoordinator: when a checkpoint is written, and of which step; asks all servers for
// their part, and makes it whole. Docs: decision 014, "Checkpoints".
//
// Wanted by steps, by minutes, on request, and at the end. One at a time: a request that is nearer
// takes the place of a step that is still far ahead. A failed attempt is an event and no more; what
// is wanted by steps or minutes is tried again at the next step or minute, and a request is
// answered with the error. Thread-safety: as Env, everything on the loop; files off it.
#ifndef PARLEY_SCHEDULER_CHECKPOINT_COORDINATOR_H_
#define PARLEY_SCHEDULER_CHECKPOINT_COORDINATOR_H_

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/checkpoint.pb.h"
#include "proto/cluster.pb.h"
#include "ps/base/env.h"
#include "ps/base/file_system.h"
#include "ps/net/rpc.h"
#include "scheduler/rounds.h"

namespace parley {

class CheckpointCoordinator {
 public:
  struct Options {
    std::string root;             // empty: no checkpoints
    FileSystem* files = nullptr;  // outlives this
    pb::Checkpoints config;       // resolved
    bool chains = false;          // tables have changes that can be saved alone
  };
  // How things stand.
  struct View {
    std::vector<Rounds::Target> servers;  // all that own partitions
    uint64_t furthest = 0;                // step that the furthest worker is at
    uint64_t steps = 0;                   // of the whole job; 0: not known
    uint64_t generation = 0;
    size_t partitions = 0;  // over all tables
  };
  struct Handlers {
    absl::AnyInvocable<View()> view;
    // All but files, step and chain.
    absl::AnyInvocable<pb::CheckpointManifest(uint64_t step)> manifest;
    absl::AnyInvocable<void(const std::string&)> event;
    absl::AnyInvocable<void(uint64_t step)> committed;
  };
  // The step that was written, or why not.
  using Written = absl::AnyInvocable<void(absl::StatusOr<uint64_t>)>;

  CheckpointCoordinator(Env* env, Rpc* rpc, Options options, Handlers handlers);
  ~CheckpointCoordinator();

  // The partitions are where the view says, and stay there until Pause. `generation_begins`: nobody
  // has saved anything yet; who has asked for an exact step is forgotten, and not told.
  void Resume(bool generation_begins);
  // What an earlier scheduler has written of this generation, the newest: it is not written again.
  void NoteWritten(uint64_t step);
  // Removes all but the newest that are to be kept; to be called when it is safe to.
  void Prune();
  // `then` runs when no checkpoint is being committed: soon after Pause, or at once.
  void AfterCommit(absl::AnyInvocable<void()> then);
  // Partitions move: an attempt under way is given up, and made again after Resume.
  void Pause();
  // Nothing more is wanted; who waits is told.
  void Stop(const absl::Status& reason);

  // As soon as may be. kFailedPrecondition: checkpoints have no directory, or kMaxRequests wait
  // already.
  void Request(Written written);
  // Of exactly this step, which all partitions have reached or will.
  void RequestStep(uint64_t step, Written written);

  bool enabled() const { return !options_.root.empty(); }

 private:
  static constexpr size_t kMaxRequests = 64;
  enum class Stage { kNone, kPreparing, kWriting, kCommitting };
  struct Attempt {
    uint64_t id = 0;
    uint64_t step = 0;
    uint32_t chain = 0;
    bool periodic = false, requested = false, exact = false;
    absl::Duration began;
    std::map<NodeId, CallId> calls;
    std::vector<pb::CheckpointFile> files;
    size_t partitions = 0;
    uint64_t bytes = 0;
  };

  void Arm();
  std::optional<uint64_t> NextPeriodic(const View& view) const;
  std::optional<uint64_t> NextRequested(const View& view) const;
  void Begin(uint64_t step, bool periodic, bool requested, bool exact);
  void Ask();
  void OnFile(NodeId node, const absl::StatusOr<Frame>& answer);
  absl::Status CheckFiles() const;
  void Commit();
  void OnCommitted(const Attempt& attempt, const absl::Status& status);
  void Abandon();
  void Fail(const absl::Status& status);
  void Finish(const Attempt& attempt, const absl::StatusOr<uint64_t>& result);
  void ArmTimer();

  Env* const env_;
  Rpc* const rpc_;
  const Options options_;
  Handlers handlers_;
  std::shared_ptr<bool> alive_;  // false once this is gone: offloaded work may end later

  bool active_ = false;
  Stage stage_ = Stage::kNone;
  Attempt attempt_;
  uint64_t next_id_ = 1;
  uint64_t passed_ = 0;     // no periodic step up to this is tried (again)
  uint64_t base_step_ = 0;  // newest checkpoint of this generation
  std::optional<pb::CheckpointManifest> base_;
  std::optional<uint64_t> written_;    // NoteWritten
  absl::AnyInvocable<void()> commit_;  // waits for `pruning_` to end
  absl::AnyInvocable<void()> after_commit_;
  bool pruning_ = false;
  uint32_t margin_ = 0;  // steps past the furthest worker for a request; 0: the usual
  bool due_ = false;     // by minutes
  std::vector<Written> requests_;
  std::optional<uint64_t> exact_step_;
  std::vector<Written> exact_;
  bool resting_ = false;  // after a failure
  TimerId timer_ = kNoTimer, rest_timer_ = kNoTimer;
};

}  // namespace parley

#endif  // PARLEY_SCHEDULER_CHECKPOINT_COORDINATOR_H_
