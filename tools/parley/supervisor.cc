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
  for (int signal : {SIGCHLD, SIGINT, SIGTERM}) sigaddset(&set, signal);
  // Unless it is ignored, as under nohup: a blocked signal would be queued all the same.
  struct sigaction hangup;
  if (sigaction(SIGHUP, nullptr, &hangup) == 0 && hangup.sa_handler != SIG_IGN) {
    sigaddset(&set, SIGHUP);
  }
  return set;
}

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
  return std::unique_ptr<Supervisor>(new Supervisor(options, fd));
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
  absl::StatusOr<pid_t> pid = StartChild(spec);
  if (!pid.ok()) return pid.status();
  Child child;
  child.spec = std::move(spec);
  child.pid = *pid;
  children_.push_back(std::move(child));
  return absl::OkStatus();
}

void Supervisor::WaitUntil(absl::Duration deadline, int extra_fd) {
  const absl::Duration left = deadline - Monotonic();
  const int64_t ms = std::clamp<int64_t>(absl::ToInt64Milliseconds(left) + 1, 0, 3600 * 1000);
  // A negative descriptor is passed over by poll.
  pollfd fds[2] = {{signal_fd_, POLLIN, 0}, {extra_fd, POLLIN, 0}};
  poll(fds, 2, left <= absl::ZeroDuration() ? 0 : static_cast<int>(ms));
  TakeSignals();
  Reap();
}

void Supervisor::TakeSignals() {
  signalfd_siginfo info;
  while (read(signal_fd_, &info, sizeof(info)) == sizeof(info)) {
    if (info.ssi_signo != SIGCHLD) ++signals_;
  }
}

void Supervisor::Reap() {
  for (size_t i = 0; i < children_.size(); ++i) {
    Child& child = children_[i];
    int status;
    if (child.ended || waitpid(child.pid, &status, WNOHANG) != child.pid) continue;
    child.ended = status;
    if (Failed(status) && !child.stopped_by_us) failed_.push_back(i);
  }
}

void Supervisor::SignalAll(int signal) {
  for (Child& child : children_) {
    if (child.ended) continue;
    child.stopped_by_us = true;
    kill(child.pid, signal);
  }
}

bool Supervisor::AllEnded() const {
  return std::all_of(children_.begin(), children_.end(),
                     [](const Child& child) { return child.ended.has_value(); });
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
  // Running.
  while (!AllEnded() && failed_.empty() && signals_ == 0 && !children_.front().ended) {
    WaitUntil(Monotonic() + absl::Hours(1));
  }
  if (signals_ > 0) {
    // The leader alone: it tells the others, and they end in order.
    if (!children_.empty() && !children_.front().ended) kill(children_.front().pid, SIGTERM);
    const absl::Duration deadline = Monotonic() + options_.interrupt_grace;
    while (!AllEnded() && signals_ == 1 && Monotonic() < deadline) WaitUntil(deadline);
  } else {
    absl::Duration deadline = Monotonic() + options_.grace;
    while (!AllEnded() && signals_ == 0 && Monotonic() < deadline) WaitUntil(deadline);
    if (signals_ == 0 && failed_.empty()) {
      for (size_t i = 0; i < children_.size(); ++i) {
        if (children_[i].ended) continue;
        children_[i].lingered = true;
        failed_.push_back(i);
      }
    }
    SignalAll(SIGTERM);
    deadline = Monotonic() + options_.kill_after;
    while (!AllEnded() && signals_ == 0 && Monotonic() < deadline) WaitUntil(deadline);
  }
  SignalAll(SIGKILL);
  while (!AllEnded()) WaitUntil(Monotonic() + absl::Hours(1));
  return MakeOutcome();
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

Supervisor::Outcome Supervisor::MakeOutcome() const {
  Outcome outcome;
  outcome.interrupted = signals_ > 0;
  outcome.ok = !outcome.interrupted && failed_.empty();
  for (size_t index : failed_) {
    const Child& child = children_[index];
    outcome.failures.push_back({child.pid, index == 0, !child.lingered && WIFSIGNALED(*child.ended),
                                DescribeEnd(child), child.spec.log});
  }
  return outcome;
}

const Supervisor::Failure* FindCause(const std::vector<Supervisor::Failure>& failures,
                                     const std::string& leaders_reason) {
  // Nobody is killed because of somebody else's failure.
  for (const Supervisor::Failure& failure : failures) {
    if (failure.killed) return &failure;
  }
  // Nodes call themselves "host:pid".
  for (const Supervisor::Failure& failure : failures) {
    if (leaders_reason.find(absl::StrCat(":", failure.pid, ")")) != std::string::npos) {
      return &failure;
    }
  }
  // It ended by its own decision, for a reason that is none of the others: "worker 1 is missing".
  for (const Supervisor::Failure& failure : failures) {
    if (failure.leader && !leaders_reason.empty()) return &failure;
  }
  // The leader ends with an error whenever another does.
  for (const Supervisor::Failure& failure : failures) {
    if (!failure.leader) return &failure;
  }
  return failures.empty() ? nullptr : &failures.front();
}

std::string DescribeCause(const std::vector<Supervisor::Failure>& failures,
                          const std::string& leaders_reason) {
  const Supervisor::Failure* cause = FindCause(failures, leaders_reason);
  if (cause == nullptr) return "";
  // A leader that had to be stopped knows only that.
  const bool leader_ended = std::any_of(failures.begin(), failures.end(),
                                        [](const Supervisor::Failure& f) { return f.leader; });
  if (cause->killed || leaders_reason.empty() || !leader_ended) return cause->text;
  return absl::StrCat(absl::StrReplaceAll(leaders_reason, {{"\n", " "}}), "; log: ", cause->log);
}

}  // namespace parley
