#include "benchmarks/limits/two_processes.h"

#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "benchmarks/limits/stopwatch.h"

namespace parley {
namespace {

constexpr double kEndSeconds = 10;
constexpr char kFailed[] = "FAILED ";

// One line of what comes; empty at the end of the file.
std::string ReadLine(int fd) {
  std::string line;
  for (char c; read(fd, &c, 1) == 1 && c != '\n';) line.push_back(c);
  return line;
}

[[noreturn]] void Serve(const std::function<absl::Status(Announce)>& serve, int fd, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);  // it died before the line above
  const absl::Status status = serve(Announce(fd));
  if (!status.ok()) Announce{fd}(absl::StrCat(kFailed, status.message()));
  _exit(status.ok() ? 0 : 1);
}

absl::Status WaitForEnd(pid_t child, bool kill_it) {
  if (kill_it) kill(child, SIGKILL);
  const Stopwatch watch;
  for (int wait_status = 0;;) {
    const pid_t ended = waitpid(child, &wait_status, WNOHANG);
    if (ended == child) {
      if (kill_it || wait_status == 0) return absl::OkStatus();
      return absl::InternalError("the second process of a measurement failed");
    }
    if (watch.Seconds() > kEndSeconds) {
      kill(child, SIGKILL);
      waitpid(child, &wait_status, 0);
      return absl::DeadlineExceededError("the second process of a measurement did not end");
    }
    poll(nullptr, 0, 1);
  }
}

}  // namespace

void Announce::operator()(const std::string& line) {
  const std::string text = line + "\n";
  // A pipe takes so little as a whole; a parent that is gone needs no line.
  if (write(fd_, text.data(), text.size()) < 0) _exit(1);
}

absl::Status WithSecondProcess(
    const std::function<absl::Status(Announce announce)>& serve,
    const std::function<absl::Status(const std::string& line)>& measure) {
  int fds[2];
  if (pipe(fds) != 0) return absl::ErrnoToStatus(errno, "pipe");
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child == 0) {
    close(fds[0]);
    Serve(serve, fds[1], parent);
  }
  close(fds[1]);
  if (child < 0) {
    close(fds[0]);
    return absl::ErrnoToStatus(errno, "fork");
  }
  absl::string_view line;
  const std::string announced = ReadLine(fds[0]);
  line = announced;
  absl::Status status;
  if (absl::ConsumePrefix(&line, kFailed)) {
    status = absl::InternalError(line);
  } else {
    status = measure(announced);
  }
  const absl::Status end = WaitForEnd(child, !status.ok());
  // The child's own words, if it failed after it had begun.
  const std::string last = ReadLine(fds[0]);
  close(fds[0]);
  if (!status.ok()) return status;
  if (!end.ok() && !last.empty()) return absl::InternalError(last);
  return end;
}

}  // namespace parley
