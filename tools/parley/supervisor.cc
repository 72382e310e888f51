#include "tools/parley/supervisor.h"

#include <poll.h>
#include <signal.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace parley {
namespace {

absl::Duration Monotonic() {
  return absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

sigset_t WatchedSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (int signal : {SIGCHLD, SIGINT, SIGTERM, SIGUSR1}) sigaddset(&set, signal);
  // Unless it is ignored, as under nohup: a blocked signal would be queued all the same.
  struct sigaction hangup;
  if (sigaction(SIGHUP, nullptr, &hangup) == 0 && hangup.sa_handler != SIG_IGN) {
    sigaddset(&set, SIGHUP);
  }
  return set;
}

// A program that has just been started may not know SIGUSR1 yet, and would die of it.
constexpr absl::Duration kKnowsSignals = absl::Milliseconds(500);

bool Failed(int wait_status) { return !(WIFEXITED(wait_status) && WEXITSTATUS(wait_status) == 0); }

std::string FirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Supervisor>> Supervisor::Create(Options options) {
  const sigset_t set = WatchedSignals();
  sigprocmask(SIG_BLOCK, &set, nullptr);
  const int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  if (fd < 0) return absl::ErrnoToStatus(errno, "signalfd");
  return std::unique_ptr<Supervisor>(new Supervisor(std::move(options), fd));
}

Supervisor::~Supervisor() {
  SignalAll(SIGKILL);
  for (Child& child : children_) {
    if (!child.ended) waitpid(child.pid, nullptr, 0);
  }
  close(signal_fd_);
  const sigset_t set = WatchedSignals();
  sigprocmask(SIG_UNBLOCK, &set, nullptr);
}

absl::Status Supervisor::Start(ChildSpec spec) {
  Child child;
  child.spec = std::move(spec);
  absl::Status status = Launch(&child);
  if (status.ok()) children_.push_back(std::move(child));
  return status;
}

absl::Status Supervisor::Launch(Child* child) {
  absl::StatusOr<pid_t> pid = StartChild(child->spec);
  if (!pid.ok()) return pid.status();
  child->pid = *pid;
  child->ended.reset();
  child->started = Monotonic();
  return absl::OkStatus();
}

void Supervisor::WaitUntil(absl::Duration deadline, int extra_fd) {
  const absl::Duration left = std::min(deadline, UserSignalDue()) - Monotonic();
  const int64_t ms = std::clamp<int64_t>(absl::ToInt64Milliseconds(left) + 1, 0, 3600 * 1000);
  // A negative descriptor is passed over by poll.
  pollfd fds[2] = {{signal_fd_, POLLIN, 0}, {extra_fd, POLLIN, 0}};
  poll(fds, 2, left <= absl::ZeroDuration() ? 0 : static_cast<int>(ms));
  TakeSignals();
  Reap();
  PassUserSignal();
}

void Supervisor::WaitForAll(absl::Duration deadline, int signals) {
  while (!AllEnded() && signals_ == signals && Monotonic() < deadline) WaitUntil(deadline);
}

void Supervisor::TakeSignals() {
  signalfd_siginfo info;
  while (read(signal_fd_, &info, sizeof(info)) == sizeof(info)) {
    if (info.ssi_signo == SIGUSR1) {
      user_signal_ = true;
    } else if (info.ssi_signo != SIGCHLD) {
      ++signals_;
    }
  }
}

// When the leader may be given it.
absl::Duration Supervisor::UserSignalDue() const {
  if (!user_signal_ || !running_ || children_.front().ended) return absl::InfiniteDuration();
  return children_.front().started + kKnowsSignals;
}

void Supervisor::PassUserSignal() {
  if (Monotonic() < UserSignalDue()) return;
  user_signal_ = false;
  kill(children_.front().pid, SIGUSR1);
}

void Supervisor::Reap() {
  for (size_t i = 0; i < children_.size(); ++i) {
    Child& child = children_[i];
    int status;
    if (child.ended || waitpid(child.pid, &status, WNOHANG) != child.pid) continue;
    child.ended = status;
    if (!Failed(status) || child.stopped_by_us || NotMissed(child)) continue;
    if (MayRestart(child)) {
      PlanRestart(&child);
    } else {
      failed_.push_back(i);
    }
  }
}

// Killed after the job was done: it would have been started again before, and nothing is left to
// do.
bool Supervisor::NotMissed(const Child& child) const {
  return options_.max_restarts > 0 && WIFSIGNALED(*child.ended) && LeaderEnded() &&
         !Failed(*children_.front().ended);
}

bool Supervisor::MayRestart(const Child& child) const {
  if (!running_ || child.restarts >= options_.max_restarts) return false;
  if (WIFSIGNALED(*child.ended)) return true;
  return WEXITSTATUS(*child.ended) == 1 && &child != &children_.front();
}

void Supervisor::PlanRestart(Child* child) {
  const absl::Duration now = Monotonic();
  child->quick_deaths = now - child->started < options_.calm ? child->quick_deaths + 1 : 0;
  absl::Duration wait = absl::ZeroDuration();
  if (child->quick_deaths > 0) {
    wait = options_.back_off * (1u << std::min(child->quick_deaths - 1, 16u));
  }
  if (!WIFSIGNALED(*child->ended)) wait = std::max(wait, options_.back_off_after_error);
  child->restart_at = now + std::min(wait, options_.back_off_max);
}

void Supervisor::RestartDue() {
  for (size_t i = 0; i < children_.size(); ++i) {
    Child& child = children_[i];
    if (!child.restart_at || *child.restart_at > Monotonic()) continue;
    child.restart_at.reset();
    Failure death = MakeFailure(child, i == 0);
    const std::string end =
        absl::StrCat(child.spec.name, " (pid ", child.pid, ") ", DescribeWaitStatus(*child.ended));
    ++child.restarts;
    if (absl::Status status = Launch(&child); !status.ok()) {
      failed_.push_back(i);
      continue;
    }
    death.mended = true;
    child.mended = std::move(death);
    if (options_.tell) {
      options_.tell(absl::StrCat(end, "; started again as pid ", child.pid, ", restart ",
                                 child.restarts, " of ", options_.max_restarts));
    }
  }
}

absl::Duration Supervisor::NextRestart() const {
  absl::Duration next = Monotonic() + absl::Hours(1);
  for (const Child& child : children_) {
    if (child.restart_at) next = std::min(next, *child.restart_at);
  }
  return next;
}

// The job is over. Who is dead is not started again: if the leader ended well it was not missed.
void Supervisor::GiveUpRestarts() {
  const Child& leader = children_.front();
  const bool ended_well = leader.ended && !leader.restart_at && !Failed(*leader.ended);
  for (size_t i = 0; i < children_.size(); ++i) {
    if (!children_[i].restart_at) continue;
    children_[i].restart_at.reset();
    if (!ended_well) failed_.push_back(i);
  }
}

void Supervisor::SignalAll(int signal) {
  for (Child& child : children_) {
    if (child.ended) continue;
    child.stopped_by_us = true;
    kill(child.pid, signal);
  }
}

void Supervisor::StopRestarted() {
  for (Child& child : children_) {
    if (child.ended || child.restarts == 0) continue;
    child.stopped_by_us = true;
    kill(child.pid, SIGTERM);
  }
}

bool Supervisor::LeaderEnded() const {
  return !children_.empty() && children_.front().ended && !children_.front().restart_at;
}

bool Supervisor::AllEnded() const {
  return std::all_of(children_.begin(), children_.end(), [](const Child& child) {
    return child.ended.has_value() && !child.restart_at;
  });
}

absl::StatusOr<std::string> Supervisor::WaitForFile(const std::string& path,
                                                    absl::Duration timeout) {
  const std::string directory = std::filesystem::path(path).parent_path().string();
  const int notify = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
  if (notify < 0 ||
      inotify_add_watch(notify, directory.c_str(), IN_CLOSE_WRITE | IN_MOVED_TO) < 0) {
    const int error = errno;
    if (notify >= 0) close(notify);
    return absl::ErrnoToStatus(error, absl::StrCat("directory '", directory, "'"));
  }
  const absl::Duration deadline = Monotonic() + timeout;
  absl::StatusOr<std::string> result = absl::DeadlineExceededError(
      absl::StrCat("'", path, "' did not appear within ", absl::FormatDuration(timeout)));
  while (true) {
    // The watch was there first, so that a file written in between is not missed.
    if (std::string line = FirstLine(path); !line.empty()) {
      result = std::move(line);
      break;
    }
    const bool somebody_ended = std::any_of(children_.begin(), children_.end(),
                                            [](const Child& c) { return c.ended.has_value(); });
    if (somebody_ended || signals_ > 0) {
      result = absl::AbortedError("ended before it was ready");
      break;
    }
    if (Monotonic() >= deadline) break;
    WaitUntil(deadline, notify);
    char events[4096];
    while (read(notify, events, sizeof(events)) > 0) {
    }
  }
  close(notify);
  return result;
}

Supervisor::Outcome Supervisor::Run() {
  RunUntilSomethingEnds();
  if (signals_ > 0) {
    // The leader alone: it tells the others, and they end in order.
    if (!children_.empty() && !children_.front().ended) {
      kill(children_.front().pid, SIGTERM);
    } else {
      SignalAll(SIGTERM);
    }
    WaitForAll(Monotonic() + options_.interrupt_grace, 1);
  } else {
    EndAll();
  }
  SignalAll(SIGKILL);
  while (!AllEnded()) WaitUntil(Monotonic() + absl::Hours(1));
  return MakeOutcome();
}

void Supervisor::RunUntilSomethingEnds() {
  running_ = true;
  while (!AllEnded() && failed_.empty() && signals_ == 0 && !LeaderEnded()) {
    WaitUntil(NextRestart());
    // Not after the leader's end: it tells the others first, and may be seen last.
    if (signals_ == 0 && !LeaderEnded()) RestartDue();
  }
  running_ = false;
  GiveUpRestarts();
}

void Supervisor::EndAll() {
  const absl::Duration since = Monotonic();
  // Who was started again lately may look for a scheduler that is gone.
  if (options_.max_restarts > 0) WaitForAll(since + options_.restarted_grace, 0);
  if (LeaderEnded()) StopRestarted();
  WaitForAll(since + options_.grace, 0);
  if (signals_ == 0 && failed_.empty()) {
    for (size_t i = 0; i < children_.size(); ++i) {
      if (children_[i].ended) continue;
      children_[i].lingered = true;
      failed_.push_back(i);
    }
  }
  SignalAll(SIGTERM);
  WaitForAll(Monotonic() + options_.kill_after, 0);
}

std::string Supervisor::DescribeEnd(const Child& child) const {
  std::string text =
      absl::StrCat(child.spec.name, " (pid ", child.pid, ")",
                   child.lingered ? " did not end and was stopped"
                                  : absl::StrCat(" ", DescribeWaitStatus(*child.ended)));
  const std::string last = LastLine(child.spec.log);
  if (!last.empty()) absl::StrAppend(&text, "; last line of its log: ", last);
  return absl::StrCat(text, "; log: ", child.spec.log);
}

Supervisor::Failure Supervisor::MakeFailure(const Child& child, bool leader) const {
  return {child.pid, leader, !child.lingered && WIFSIGNALED(*child.ended), DescribeEnd(child),
          child.spec.log};
}

Supervisor::Outcome Supervisor::MakeOutcome() const {
  Outcome outcome;
  outcome.interrupted = signals_ > 0;
  outcome.ok = !outcome.interrupted && failed_.empty();
  for (size_t index : failed_) {
    outcome.failures.push_back(MakeFailure(children_[index], index == 0));
  }
  for (const Child& child : children_) {
    if (child.mended) outcome.failures.push_back(*child.mended);
  }
  return outcome;
}

const Supervisor::Failure* FindCause(const std::vector<Supervisor::Failure>& failures,
                                     const std::string& leaders_reason) {
  // Nobody is killed because of somebody else's failure.
  for (const Supervisor::Failure& failure : failures) {
    if (failure.killed && !failure.mended) return &failure;
  }
  // Nodes call themselves "host:pid".
  for (const Supervisor::Failure& failure : failures) {
    if (leaders_reason.find(absl::StrCat(":", failure.pid, ")")) != std::string::npos) {
      return &failure;
    }
  }
  // It ended by its own decision, for a reason that is none of the others: "worker 1 is missing".
  for (const Supervisor::Failure& failure : failures) {
    if (failure.leader && !failure.mended && !leaders_reason.empty()) return &failure;
  }
  // The leader ends with an error whenever another does.
  for (const Supervisor::Failure& failure : failures) {
    if (!failure.leader && !failure.mended) return &failure;
  }
  for (const Supervisor::Failure& failure : failures) {
    if (!failure.mended) return &failure;
  }
  return nullptr;
}

std::string DescribeCause(const std::vector<Supervisor::Failure>& failures,
                          const std::string& leaders_reason) {
  const Supervisor::Failure* cause = FindCause(failures, leaders_reason);
  if (cause == nullptr) return "";
  // A leader that had to be stopped knows only that.
  const bool leader_ended =
      std::any_of(failures.begin(), failures.end(),
                  [](const Supervisor::Failure& f) { return f.leader && !f.mended; });
  if (cause->killed || leaders_reason.empty() || !leader_ended) return cause->text;
  return absl::StrCat(absl::StrReplaceAll(leaders_reason, {{"\n", " "}}), "; log: ", cause->log);
}

}  // namespace parley
