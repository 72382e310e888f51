// Supervisor: holds a group of child processes together from start to end.
//
// The first child added is the leader (the scheduler): it is told of an interrupt and tells the
// others. A child that dies while the job runs is started again, if Options say so: whoever is
// killed, and whoever of the others ends with code 1 (a node that was given up, and found out). The
// leader's code is the job's end. A failure that is not put right ends them all: the rest get time
// to end by themselves, since the leader will notice and stop them cleanly; then SIGTERM; then
// SIGKILL. However Run returns, and however this process dies, no child is left.
//
//   state        event                               next
//   running      all children ended, all with code 0 done, ok
//   running      a child died, restarts are left     running: started again after its back-off
//   running      a child failed                      failing: wait `grace`
//   running      SIGINT, SIGTERM or SIGHUP           interrupted: SIGTERM to the leader (to all, if
//                                                    it is dead), wait `interrupt_grace`
//   running      SIGUSR1                             running: handed on to the leader
//   running      the leader ended well               ending: wait `grace` for the rest; who was
//                                                    started again lately may know of no job:
//                                                    SIGTERM after `restarted_grace`
//   failing,     all children ended                  done
//   ending       the wait is over                    SIGTERM to all, wait `kill_after`, SIGKILL
//   interrupted  all children ended                  done
//   interrupted  the wait is over, or another signal SIGKILL to all
//
// No threads and no polling: it sleeps in poll(2) on a signalfd (and an inotify descriptor).
// Not thread-safe; one per process, since it takes over SIGCHLD and the signals above.
#ifndef PARLEY_TOOLS_PARLEY_SUPERVISOR_H_
#define PARLEY_TOOLS_PARLEY_SUPERVISOR_H_

#include <sys/types.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "tools/parley/child_process.h"

namespace parley {

class Supervisor {
 public:
  struct Options {
    absl::Duration grace = absl::Seconds(8);
    absl::Duration kill_after = absl::Seconds(3);
    absl::Duration interrupt_grace = absl::Seconds(10);
    absl::Duration restarted_grace = absl::Seconds(1);

    // How often each child is started again; 0: the first death is a failure of the job.
    uint32_t max_restarts = 0;
    // Before a child is started again. One that lived for `calm` and was killed then starts at
    // once; each death sooner than that doubles the wait. One that ended with code 1 gets the
    // second at least: if that was the end of the job, the leader ends meanwhile.
    absl::Duration back_off = absl::Milliseconds(100);
    absl::Duration back_off_after_error = absl::Milliseconds(500);
    absl::Duration back_off_max = absl::Seconds(5);
    absl::Duration calm = absl::Seconds(2);
    // Gets a line for people about each death that is put right. Null: silent.
    std::function<void(const std::string&)> tell = nullptr;
  };
  struct Failure {
    pid_t pid = 0;
    bool leader = false;
    bool killed = false;  // by a signal that was not ours
    std::string text;     // one line: which child, how it ended, its last words, where its log is
    std::string log;      // that file
    bool mended = false;  // it was started again, or its loss came too late to matter
  };
  struct Outcome {
    bool ok = false;
    bool interrupted = false;
    // Who ended badly, in the order in which it was seen. The first is not always the cause: a
    // node that tells the scheduler of its trouble may end after those that are stopped for it. Of
    // those that were started again, each child's last death, behind the others.
    std::vector<Failure> failures;
  };

  // Blocks the signals for this thread; the destructor unblocks them.
  static absl::StatusOr<std::unique_ptr<Supervisor>> Create(Options options);
  ~Supervisor();  // kills what still lives
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;

  absl::Status Start(ChildSpec spec);

  // With what the leader is started again: where it listens now. REQUIRES: it was started.
  void SetLeaderArgs(std::vector<std::string> args) {
    children_.front().spec.args = std::move(args);
  }

  // Until the file exists and is not empty; returns its first line. Its directory must exist.
  // kAborted: a child ended or a signal came meanwhile (Run then says which); kDeadlineExceeded.
  absl::StatusOr<std::string> WaitForFile(const std::string& path, absl::Duration timeout);

  // Until all children have ended.
  Outcome Run();

 private:
  struct Child {
    ChildSpec spec;
    pid_t pid = 0;
    absl::Duration started;    // monotonic, like all times here
    std::optional<int> ended;  // waitpid's status
    bool stopped_by_us = false;
    bool lingered = false;  // had to be stopped although all went well
    uint32_t restarts = 0, quick_deaths = 0;
    std::optional<absl::Duration> restart_at;  // it is dead, and due then
    std::optional<Failure> mended;             // its last death that was put right
  };
  Supervisor(Options options, int signal_fd)
      : options_(std::move(options)), signal_fd_(signal_fd) {}

  absl::Status Launch(Child* child);
  // Sleeps until a signal, `extra_fd` or the deadline (monotonic); then takes in what happened.
  void WaitUntil(absl::Duration deadline, int extra_fd = -1);
  void WaitForAll(absl::Duration deadline, int signals);
  void TakeSignals();
  absl::Duration UserSignalDue() const;
  void PassUserSignal();
  void Reap();
  bool NotMissed(const Child& child) const;
  bool MayRestart(const Child& child) const;
  void PlanRestart(Child* child);
  void RestartDue();
  absl::Duration NextRestart() const;
  void GiveUpRestarts();
  void SignalAll(int signal);
  void StopRestarted();
  void RunUntilSomethingEnds();
  void EndAll();
  bool LeaderEnded() const;
  bool AllEnded() const;
  std::string DescribeEnd(const Child& child) const;
  Failure MakeFailure(const Child& child, bool leader) const;
  Outcome MakeOutcome() const;

  const Options options_;
  const int signal_fd_;
  std::vector<Child> children_;
  std::vector<size_t> failed_;  // children that failed, in order
  int signals_ = 0;             // interrupts received
  bool running_ = false;        // children that die are started again
  bool user_signal_ = false;    // SIGUSR1 that the leader has yet to be given
};

// The failure that the others follow from: a kill first; then whom the leader's own account of the
// end names; then the leader, if it has an account; then who failed first, the leader last. One
// that was started again is it only if the leader names it. Null if there is none.
const Supervisor::Failure* FindCause(const std::vector<Supervisor::Failure>& failures,
                                     const std::string& leaders_reason);

// One line for people: what happened, and the log to look into. The leader's account if the end was
// its decision, else what was seen of the cause. Empty without failures.
std::string DescribeCause(const std::vector<Supervisor::Failure>& failures,
                          const std::string& leaders_reason);

}  // namespace parley

#endif  // PARLEY_TOOLS_PARLEY_SUPERVISOR_H_
