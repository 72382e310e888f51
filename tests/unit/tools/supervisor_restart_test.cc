#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "tools/parley/supervisor.h"

namespace parley {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::MatchesRegex;
using ::testing::SizeIs;

constexpr char kForever[] = "exec sleep 1000";

class SupervisorRestartTest : public testing::Test {
 protected:
  SupervisorRestartTest()
      : dir_(absl::StrCat(testing::TempDir(), "/parley_restarts_", getpid(), "_",
                          testing::UnitTest::GetInstance()->current_test_info()->name())) {
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
    Make(3);
  }
  ~SupervisorRestartTest() override {
    supervisor_.reset();
    std::filesystem::remove_all(dir_);
  }

  void Make(uint32_t max_restarts) {
    supervisor_.reset();
    auto created =
        Supervisor::Create({.grace = absl::Milliseconds(300),
                            .kill_after = absl::Milliseconds(200),
                            .interrupt_grace = absl::Milliseconds(500),
                            .restarted_grace = absl::Milliseconds(50),
                            .max_restarts = max_restarts,
                            .back_off = absl::Milliseconds(1),
                            .back_off_after_error = absl::Milliseconds(1),
                            .back_off_max = absl::Milliseconds(10),
                            .tell = [this](const std::string& line) { told_.push_back(line); }});
    ASSERT_TRUE(created.ok()) << created.status();
    supervisor_ = *std::move(created);
  }

  void Start(const std::string& name, const std::string& script) {
    const absl::Status started = supervisor_->Start(
        {name, "/bin/sh", {"-c", script}, absl::StrCat(dir_, "/", name, ".log")});
    ASSERT_TRUE(started.ok()) << started;
  }

  // Runs `first` the first `times` times, then `then`. It marks each beginning in file `name`.
  std::string Times(int times, const std::string& name, const std::string& first,
                    const std::string& then) {
    const std::string file = absl::StrCat("'", dir_, "/", name, "'");
    return absl::StrCat("echo x >> ", file, "; if [ $(wc -l < ", file, ") -le ", times, " ]; then ",
                        first, "; fi; ", then);
  }
  // Ends well as soon as file `name` has so many lines.
  std::string Until(const std::string& name, int lines) {
    const std::string file = absl::StrCat("'", dir_, "/", name, "'");
    return absl::StrCat("touch ", file, "; while [ $(wc -l < ", file, ") -lt ", lines,
                        " ]; do sleep 0.02; done; exit 0");
  }
  size_t Lines(const std::string& name) {
    std::ifstream file(dir_ + "/" + name);
    return static_cast<size_t>(
        std::count(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>(), '\n'));
  }

  const std::string dir_;
  std::vector<std::string> told_;
  std::unique_ptr<Supervisor> supervisor_;
};

TEST_F(SupervisorRestartTest, WhoIsKilledIsStartedAgain) {
  Start("scheduler", Until("worker", 2));
  Start("worker 0", Times(1, "worker", "kill -9 $$", "exit 0"));
  const Supervisor::Outcome outcome = supervisor_->Run();
  EXPECT_TRUE(outcome.ok);
  EXPECT_EQ(Lines("worker"), 2);
  EXPECT_THAT(told_, ElementsAre(MatchesRegex(
                         "worker 0 \\(pid [0-9]+\\) was killed by signal 9 \\(Killed\\); started "
                         "again as pid [0-9]+, restart 1 of 3")));
}

TEST_F(SupervisorRestartTest, WhoFindsOutThatItWasGivenUpIsStartedAgain) {
  Start("scheduler", Until("worker", 3));
  Start("worker 0", Times(2, "worker", "exit 1", "exit 0"));
  EXPECT_TRUE(supervisor_->Run().ok);
  EXPECT_THAT(told_, ElementsAre(HasSubstr("exited with code 1; started again"),
                                 HasSubstr("restart 2 of 3")));
}

TEST_F(SupervisorRestartTest, AUsageErrorStaysOne) {
  Start("scheduler", kForever);
  Start("worker 0", "echo unknown flag; exit 2");
  const Supervisor::Outcome outcome = supervisor_->Run();
  EXPECT_FALSE(outcome.ok);
  EXPECT_THAT(FindCause(outcome.failures, "")->text, HasSubstr("exited with code 2"));
  EXPECT_THAT(told_, IsEmpty());
}

TEST_F(SupervisorRestartTest, RestartsAreBounded) {
  Start("scheduler", kForever);
  Start("worker 0", absl::StrCat("echo x >> '", dir_, "/worker'; kill -9 $$"));
  const Supervisor::Outcome outcome = supervisor_->Run();
  EXPECT_FALSE(outcome.ok);
  EXPECT_EQ(Lines("worker"), 4);
  EXPECT_THAT(told_, SizeIs(3));
  EXPECT_THAT(FindCause(outcome.failures, "")->text, HasSubstr("was killed by signal 9"));
}

TEST_F(SupervisorRestartTest, NoneAtAllIfNotAskedFor) {
  Make(0);
  Start("scheduler", kForever);
  Start("worker 0", Times(1, "worker", "kill -9 $$", "exit 0"));
  EXPECT_FALSE(supervisor_->Run().ok);
  EXPECT_EQ(Lines("worker"), 1);
}

TEST_F(SupervisorRestartTest, TheLeaderIsStartedAgainWithItsNewArguments) {
  Start("scheduler", "kill -9 $$");
  supervisor_->SetLeaderArgs({"-c", Times(0, "again", "true", Until("worker", 1))});
  Start("worker 0", absl::StrCat("while [ ! -e '", dir_, "/again' ]; do sleep 0.02; done; ",
                                 Times(0, "worker", "true", "exit 0")));
  EXPECT_TRUE(supervisor_->Run().ok);
  EXPECT_EQ(Lines("again"), 1);
}

TEST_F(SupervisorRestartTest, ALeaderThatEndsWithAnErrorEndsTheJob) {
  Start("scheduler", "echo x >> '" + dir_ + "/leader'; exit 1");
  Start("worker 0", kForever);
  const Supervisor::Outcome outcome = supervisor_->Run();
  EXPECT_FALSE(outcome.ok);
  EXPECT_EQ(Lines("leader"), 1);
  EXPECT_THAT(told_, IsEmpty());
}

TEST_F(SupervisorRestartTest, ADeathAtTheEndOfAGoodJobDoesNotMatter) {
  // Whether it is seen ahead of the scheduler's end or behind it.
  Start("scheduler",
        absl::StrCat("while [ ! -e '", dir_, "/ready' ]; do sleep 0.01; done; exit 0"));
  Start("worker 0", absl::StrCat("touch '", dir_, "/ready'; sleep 0.02; kill -9 $$"));
  const Supervisor::Outcome outcome = supervisor_->Run();
  EXPECT_TRUE(outcome.ok) << outcome.failures.front().text;
}

TEST_F(SupervisorRestartTest, WhoCameBackTooLateIsStopped) {
  Start("scheduler", Until("worker", 2));
  Start("worker 0", Times(1, "worker", "kill -9 $$", kForever));
  EXPECT_TRUE(supervisor_->Run().ok);
}

TEST_F(SupervisorRestartTest, ADeathThatTheLeaderNamesIsTheCauseThoughItWasMended) {
  Start("scheduler", Until("worker", 2));
  Start("worker 0", Times(1, "worker", "kill -9 $$", "exit 0"));
  const Supervisor::Outcome outcome = supervisor_->Run();
  ASSERT_THAT(outcome.failures, SizeIs(1));
  const Supervisor::Failure& death = outcome.failures.front();
  EXPECT_TRUE(death.mended);
  const Supervisor::Failure leader{10, true, false, "leader", "10.log"};
  EXPECT_EQ(FindCause({leader, death}, "out of checkpoints")->text, "leader");
  EXPECT_EQ(
      FindCause({leader, death}, absl::StrCat("worker 0 (host:", death.pid, ") is dead"))->text,
      death.text);
  EXPECT_EQ(FindCause({death}, ""), nullptr);
}

TEST_F(SupervisorRestartTest, AnInterruptEndsRestarts) {
  Make(1000000);
  Start("scheduler", "trap 'exit 1' TERM; while :; do sleep 0.02; done");
  Start("worker 0", absl::StrCat("kill -INT ", getpid(), "; kill -9 $$"));
  const Supervisor::Outcome outcome = supervisor_->Run();
  EXPECT_TRUE(outcome.interrupted);
}

TEST_F(SupervisorRestartTest, AWishForACheckpointGoesToTheLeader) {
  Start("scheduler", absl::StrCat("trap 'exit 0' USR1; sleep 0.6; while :; do kill -USR1 ",
                                  getpid(), "; sleep 0.02; done"));
  EXPECT_TRUE(supervisor_->Run().ok);
}

// It may come before the leader could know what it means.
TEST_F(SupervisorRestartTest, AnEarlyWishForACheckpointIsNotForgotten) {
  Start("scheduler", absl::StrCat("trap 'exit 0' USR1; kill -USR1 ", getpid(),
                                  "; for i in $(seq 200); do sleep 0.02; done; exit 3"));
  EXPECT_TRUE(supervisor_->Run().ok);
}

}  // namespace
}  // namespace parley
