#include "tools/parley/supervisor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace parley {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;

// Long enough to tell "ended by itself" from "was ended".
constexpr char kForever[] = "exec sleep 1000";

std::string Cause(const Supervisor::Outcome& outcome, const std::string& leaders_reason = "") {
  const Supervisor::Failure* cause = FindCause(outcome.failures, leaders_reason);
  return cause ? cause->text : "none";
}

class SupervisorTest : public testing::Test {
 protected:
  SupervisorTest()
      : dir_(absl::StrCat(testing::TempDir(), "/parley_supervisor_", getpid(), "_",
                          testing::UnitTest::GetInstance()->current_test_info()->name())) {
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
    auto created = Supervisor::Create({.grace = absl::Milliseconds(200),
                                       .kill_after = absl::Milliseconds(200),
                                       .interrupt_grace = absl::Milliseconds(500)});
    EXPECT_TRUE(created.ok());
    supervisor_ = *std::move(created);
  }
  ~SupervisorTest() override {
    supervisor_.reset();
    std::filesystem::remove_all(dir_);
  }

  ChildSpec Shell(const std::string& name, const std::string& script) {
    return {name, "/bin/sh", {"-c", script}, absl::StrCat(dir_, "/", name, ".log")};
  }
  void Start(const std::string& name, const std::string& script) {
    const absl::Status started = supervisor_->Start(Shell(name, script));
    ASSERT_TRUE(started.ok()) << started;
  }

  const std::string dir_;
  std::unique_ptr<Supervisor> supervisor_;
};

TEST_F(SupervisorTest, AllWell) {
  Start("scheduler", "exit 0");
  Start("worker 0", "exit 0");
  const Supervisor::Outcome outcome = supervisor_->Run();
  EXPECT_TRUE(outcome.ok);
  EXPECT_TRUE(outcome.failures.empty());
  EXPECT_FALSE(outcome.interrupted);
}

TEST_F(SupervisorTest, NamesTheChildThatFailedAndEndsTheRest) {
  Start("scheduler", kForever);
  Start("server 0", kForever);
  Start("worker 0", "echo first; echo data file is missing >&2; exit 3");
  const Supervisor::Outcome outcome = supervisor_->Run();
  EXPECT_FALSE(outcome.ok);
  EXPECT_THAT(Cause(outcome), MatchesRegex("worker 0 \\(pid [0-9]+\\) exited with code 3; last "
                                           "line of its log: data file is missing; log: .*/worker "
                                           "0.log"));
}

TEST_F(SupervisorTest, NamesTheSignalAndNotWhoFollowed) {
  // The leader notices a little later and ends with an error of its own.
  Start("scheduler", absl::StrCat("while [ ! -e '", dir_, "/gone' ]; do sleep 0.02; done; exit 1"));
  Start("worker 0", kForever);
  Start("worker 1", absl::StrCat("touch '", dir_, "/gone'; kill -9 $$"));
  const Supervisor::Outcome outcome = supervisor_->Run();
  EXPECT_THAT(Cause(outcome),
              MatchesRegex("worker 1 .* was killed by signal 9 \\(Killed\\); log: .*"));
}

TEST_F(SupervisorTest, KillsWhoIgnoresSigterm) {
  Start("scheduler", "exit 1");
  Start("worker 0", "trap '' TERM; while :; do sleep 0.05; done");
  const Supervisor::Outcome outcome = supervisor_->Run();
  EXPECT_THAT(Cause(outcome), MatchesRegex("scheduler .* exited with code 1; log.*"));
}

TEST_F(SupervisorTest, NamesWhoDoesNotLeaveAtTheEnd) {
  Start("scheduler", "exit 0");
  Start("worker 0", kForever);
  const Supervisor::Outcome outcome = supervisor_->Run();
  EXPECT_FALSE(outcome.ok);
  EXPECT_THAT(Cause(outcome), MatchesRegex("worker 0 .* did not end and was stopped; log.*"));
}

TEST_F(SupervisorTest, AnInterruptGoesToTheLeaderFirst) {
  Start("scheduler", absl::StrCat("trap 'touch \"", dir_, "/told\"; exit 1' TERM; echo ready > '",
                                  dir_, "/ready'; while :; do ", "sleep 0.02; done"));
  Start("worker 0", absl::StrCat("while [ ! -e '", dir_, "/told' ]; do sleep 0.02; done; touch '",
                                 dir_, "/clean'"));
  ASSERT_TRUE(supervisor_->WaitForFile(dir_ + "/ready", absl::Seconds(20)).ok());
  kill(getpid(), SIGINT);
  const Supervisor::Outcome outcome = supervisor_->Run();
  EXPECT_TRUE(outcome.interrupted);
  EXPECT_FALSE(outcome.ok);
  // The worker ended by itself, because of what the leader did.
  EXPECT_TRUE(std::filesystem::exists(dir_ + "/clean"));
}

TEST_F(SupervisorTest, AnInterruptThatNobodyHeedsKills) {
  Start("scheduler", "trap '' TERM; while :; do sleep 0.05; done");
  kill(getpid(), SIGTERM);
  EXPECT_TRUE(supervisor_->Run().interrupted);
}

TEST_F(SupervisorTest, WaitsForAFile) {
  const std::string path = dir_ + "/endpoint";
  Start("scheduler", absl::StrCat("sleep 0.05; echo tcp://127.0.0.1:5 > '", path, "'"));
  absl::StatusOr<std::string> line = supervisor_->WaitForFile(path, absl::Seconds(20));
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(*line, "tcp://127.0.0.1:5");
  EXPECT_TRUE(supervisor_->Run().ok);
}

TEST_F(SupervisorTest, StopsWaitingForTheFileOfADeadChild) {
  Start("scheduler", "echo port in use; exit 1");
  EXPECT_EQ(supervisor_->WaitForFile(dir_ + "/endpoint", absl::Seconds(20)).status().code(),
            absl::StatusCode::kAborted);
  EXPECT_THAT(Cause(supervisor_->Run()), HasSubstr("port in use"));
}

TEST_F(SupervisorTest, TheWaitForAFileHasADeadline) {
  Start("scheduler", kForever);
  const auto line = supervisor_->WaitForFile(dir_ + "/endpoint", absl::Milliseconds(20));
  EXPECT_EQ(line.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(line.status().message()), HasSubstr("endpoint"));
}

TEST_F(SupervisorTest, SaysWhichProgramCannotBeStarted) {
  ChildSpec spec = Shell("server 0", "");
  spec.program = dir_ + "/no-such-program";
  const absl::Status status = supervisor_->Start(spec);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no-such-program"));
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
}

TEST_F(SupervisorTest, ChildrenDieWithTheParentEvenByKill) {
  // A process in between starts a child and is killed; the child must be gone.
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  const pid_t parent = fork();
  if (parent == 0) {
    close(fds[0]);
    absl::StatusOr<pid_t> child = StartChild(Shell("orphan", kForever));
    const pid_t pid = child.ok() ? *child : 0;
    [[maybe_unused]] const ssize_t written = write(fds[1], &pid, sizeof(pid));
    raise(SIGKILL);
  }
  close(fds[1]);
  pid_t child = 0;
  ASSERT_EQ(read(fds[0], &child, sizeof(child)), static_cast<ssize_t>(sizeof(child)));
  close(fds[0]);
  waitpid(parent, nullptr, 0);
  ASSERT_GT(child, 0);
  // Readable as soon as it has ended, whoever its parent is by now.
  const int pidfd = static_cast<int>(syscall(SYS_pidfd_open, child, 0));
  const bool gone_already = pidfd < 0 && errno == ESRCH;
  pollfd ended = {pidfd, POLLIN, 0};
  EXPECT_TRUE(gone_already || poll(&ended, 1, 20000) == 1);
  if (pidfd >= 0) close(pidfd);
}

TEST(FindCause, PrefersAKillThenWhomTheLeaderNames) {
  const Supervisor::Failure leader{10, true, false, "leader", "10.log"},
      told{12, false, false, "told", "12.log"}, cause{13, false, false, "cause", "13.log"},
      killed{14, false, true, "killed", "14.log"};
  EXPECT_EQ(FindCause({leader, told, cause, killed}, "worker 0 (host:13) failed")->text, "killed");
  EXPECT_EQ(FindCause({leader, told, cause}, "worker 0 (host:13) failed: no data")->text, "cause");
  EXPECT_EQ(FindCause({leader, told, cause}, "worker 0 (host:1) failed")->text, "leader");
  EXPECT_EQ(FindCause({leader, told, cause}, "")->text, "told");
  EXPECT_EQ(FindCause({leader}, "")->text, "leader");
  EXPECT_EQ(FindCause({}, ""), nullptr);
}

TEST(DescribeCause, PrefersTheLeadersAccountIfItDecided) {
  const Supervisor::Failure leader{10, true, false, "leader", "10.log"},
      told{12, false, false, "told", "12.log"}, cause{13, false, false, "cause", "13.log"},
      killed{14, false, true, "killed", "14.log"};
  EXPECT_EQ(DescribeCause({told, cause, leader}, "worker 0 (host:13) failed:\nno data"),
            "worker 0 (host:13) failed: no data; log: 13.log");
  EXPECT_EQ(DescribeCause({told, leader}, "worker 1 is missing"),
            "worker 1 is missing; log: 10.log");
  EXPECT_EQ(DescribeCause({told, leader, killed}, "worker 2 (host:14) is dead"), "killed");
  EXPECT_EQ(DescribeCause({leader}, ""), "leader");
  // The leader is not among those that failed by themselves: it was stopped in the end.
  EXPECT_EQ(DescribeCause({told}, "stopped by SIGTERM"), "told");
  EXPECT_EQ(DescribeCause({}, ""), "");
}

TEST(LastLine, PassesOverBlanksAndControlCharacters) {
  const std::string path = testing::TempDir() + "/parley_last_line.log";
  std::ofstream(path) << std::string(20000, 'x') << "\nthe \x1b[1m end\n\n  \n";
  EXPECT_EQ(LastLine(path), "the ?[1m end");
  EXPECT_EQ(LastLine(path, 3), "the");
  EXPECT_EQ(LastLine(path + ".none"), "");
}

}  // namespace
}  // namespace parley
