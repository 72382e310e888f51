// Supervisor: holds a group of child processes together from start to end.
//
// The first child added is the leader (the scheduler): it is told of an interrupt and tells the
// others. One failure ends them all: the rest get time to end by themselves, since the leader will
// notice and stop them cleanly; then SIGTERM; then SIGKILL. However Run returns, and however this
// process dies, no child is left.
//
//   state        event                               next
//   running      all children ended, all with code 0 done, ok
//   running      a child failed                      failing: wait `grace`
//   running      SIGINT, SIGTERM or SIGHUP           interrupted: SIGTERM to the leader, wait
//                                                    `interrupt_grace`
//   running      the leader ended well               ending: wait `grace` for the rest
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
  };
  struct Failure {
    pid_t pid = 0;
    bool leader = false;
    bool killed = false;  // by a signal that was not ours
    std::string text;     // one line: which child, how it ended, its last words, where its log is
    std::string log;      // that file
  };
  struct Outcome {
    bool ok = false;
    bool interrupted = false;
    // Who ended badly, in the order in which it was seen. The first is not always the cause: a
    // node that tells the scheduler of its trouble may end after those that are stopped for it.
    std::vector<Failure> failures;
  };

  // Blocks the signals for this thread; the destructor unblocks them.
  static absl::StatusOr<std::unique_ptr<Supervisor>> Create(Options options);
  ~Supervisor();  // kills what still lives
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;

  absl::Status Start(ChildSpec spec);

  // Until the file exists and is not empty; returns its first line. Its directory must exist.
  // kAborted: a child ended or a signal came meanwhile (Run then says which); kDeadlineExceeded.
  absl::StatusOr<std::string> WaitForFile(const std::string& path, absl::Duration timeout);

  // Until all children have ended.
  Outcome Run();

 private:
  struct Child {
    ChildSpec spec;
    pid_t pid = 0;
    std::optional<int> ended;  // waitpid's status
    bool stopped_by_us = false;
    bool lingered = false;  // had to be stopped although all went well
  };
  Supervisor(Options options, int signal_fd) : options_(options), signal_fd_(signal_fd) {}

  // Sleeps until a signal, `extra_fd` or the deadline (monotonic); then takes in what happened.
  void WaitUntil(absl::Duration deadline, int extra_fd = -1);
  void TakeSignals();
  void Reap();
  void SignalAll(int signal);
  bool AllEnded() const;
  std::string DescribeEnd(const Child& child) const;
  Outcome MakeOutcome() const;

  const Options options_;
  const int signal_fd_;
  std::vector<Child> children_;
  std::vector<size_t> failed_;  // children that failed, in order
  int signals_ = 0;             // interrupts received
};

// The failure that the others follow from: a kill first; then whom the leader's own account of the
// end names; then the leader, if it has an account; then who failed first, the leader last. Null if
// there is none.
const Supervisor::Failure* FindCause(const std::vector<Supervisor::Failure>& failures,
                                     const std::string& leaders_reason);

// One line for people: what happened, and the log to look into. The leader's account if the end was
// its decision, else what was seen of the cause. Empty without failures.
std::string DescribeCause(const std::vector<Supervisor::Failure>& failures,
                          const std::string& leaders_reason);

}  // namespace parley

#endif  // PARLEY_TOOLS_PARLEY_SUPERVISOR_H_
