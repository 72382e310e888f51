#include "scheduler/disk_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "ps/base/sim_file_system.h"
#include "tests/unit/scheduler/store_testing.h"

namespace parley {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class DiskStoreTest : public testing::Test {
 protected:
  DiskStoreTest()
      : dir_(absl::StrCat(testing::TempDir(), "/parley_disk_store_", getpid(), "/",
                          testing::UnitTest::GetInstance()->current_test_info()->name())) {
    std::filesystem::remove_all(dir_);
  }
  ~DiskStoreTest() override { std::filesystem::remove_all(dir_); }

  std::string Read() {
    std::ifstream file(dir_ + "/state", std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  void Write(const std::string& content) {
    std::ofstream(dir_ + "/state", std::ios::binary) << content;
  }
  absl::Status OpenAnew() {
    DiskStore store({.directory = dir_});
    return OpenAndWait(&store).status();
  }
  // Leaves `state` there, as a scheduler that died.
  void Leave(const std::string& state) {
    DiskStore store({.directory = dir_});
    ASSERT_TRUE(OpenAndWait(&store).ok());
    ASSERT_TRUE(SaveAndWait(&store, state).ok());
  }

  const std::string dir_;
};

TEST_F(DiskStoreTest, KeepsWhatWasSavedLast) {
  const std::string binary("one\0\n\xff", 6);
  {
    DiskStore store({.directory = dir_});
    auto opened = OpenAndWait(&store);
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ(*opened, std::nullopt);
    ASSERT_TRUE(SaveAndWait(&store, "zero").ok());
    ASSERT_TRUE(SaveAndWait(&store, binary).ok());
    // Once more, on another loop: what is saved by now.
    EXPECT_EQ(OpenAndWait(&store).value(), binary);
  }
  DiskStore store({.directory = dir_});
  EXPECT_EQ(OpenAndWait(&store).value(), binary);
}

TEST_F(DiskStoreTest, AnEmptyStateIsAState) {
  Leave("");
  DiskStore store({.directory = dir_});
  EXPECT_EQ(OpenAndWait(&store).value(), "");
}

TEST_F(DiskStoreTest, SavesThatWaitAreDoneAsOne) {
  DiskStore store({.directory = dir_});
  ASSERT_TRUE(OpenAndWait(&store).ok());
  std::vector<std::string> told;
  OnALoop(&store, [&](LoopEnv* env) {
    for (const char* state : {"a", "b", "c"}) {
      store.Save(state, [&, state, env](absl::Status saved) {
        EXPECT_TRUE(saved.ok()) << saved;
        told.push_back(absl::StrCat(state, " with ", Read().back() == 'a' ? "a" : "c"));
        if (told.size() == 3) env->Stop();
      });
    }
  });
  // The first is under way when the others come; nothing is told before it is on the disk.
  EXPECT_EQ(told.size(), 3);
  EXPECT_THAT(told[1], "b with c");
  EXPECT_THAT(told[2], "c with c");
}

TEST_F(DiskStoreTest, ASaveFromTheCallbackOfAnother) {
  DiskStore store({.directory = dir_});
  ASSERT_TRUE(OpenAndWait(&store).ok());
  OnALoop(&store, [&](LoopEnv* env) {
    store.Save("first", [&, env](absl::Status) {
      store.Save("second", [env](absl::Status) { env->Stop(); });
    });
  });
  EXPECT_THAT(Read(), testing::EndsWith("second"));
}

TEST_F(DiskStoreTest, TwoSchedulersCannotBothHaveIt) {
  DiskStore first({.directory = dir_});
  ASSERT_TRUE(OpenAndWait(&first).ok());
  const absl::Status second = OpenAnew();
  EXPECT_EQ(second.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.message()),
              AllOf(HasSubstr(dir_), HasSubstr("belongs to another scheduler that is running"),
                    HasSubstr("allowed: ")));
}

TEST_F(DiskStoreTest, TheLockGoesWithItsProcess) {
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  const pid_t child = fork();
  if (child == 0) {
    DiskStore store({.directory = dir_});
    const char good = OpenAndWait(&store).ok() && SaveAndWait(&store, "left").ok() ? 'y' : 'n';
    [[maybe_unused]] const ssize_t written = write(fds[1], &good, 1);
    raise(SIGKILL);
  }
  char good = 0;
  ASSERT_EQ(read(fds[0], &good, 1), 1);
  EXPECT_EQ(good, 'y');
  waitpid(child, nullptr, 0);
  close(fds[0]);
  close(fds[1]);
  DiskStore store({.directory = dir_});
  EXPECT_EQ(OpenAndWait(&store).value(), "left");
}

TEST_F(DiskStoreTest, ForgetsAndLetsGo) {
  DiskStore first({.directory = dir_});
  ASSERT_TRUE(OpenAndWait(&first).ok());
  ASSERT_TRUE(SaveAndWait(&first, "over").ok());
  EXPECT_TRUE(first.Forget().ok());
  EXPECT_FALSE(std::filesystem::exists(dir_));
  DiskStore second({.directory = dir_});
  EXPECT_EQ(OpenAndWait(&second).value(), std::nullopt);
  // What is not the store's own stays.
  std::ofstream(dir_ + "/notes") << "mine";
  EXPECT_TRUE(second.Forget().ok());
  EXPECT_TRUE(std::filesystem::exists(dir_ + "/notes"));
}

TEST_F(DiskStoreTest, EveryTruncationIsFound) {
  Leave("some state");
  const std::string whole = Read();
  for (size_t size = 0; size < whole.size(); ++size) {
    Write(whole.substr(0, size));
    const absl::Status status = OpenAnew();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << size;
    EXPECT_THAT(std::string(status.message()), HasSubstr(dir_ + "/state' is ")) << size;
  }
}

TEST_F(DiskStoreTest, EveryFlippedBitIsFound) {
  Leave("some state");
  const std::string whole = Read();
  for (size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    std::string flipped = whole;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    Write(flipped);
    // The first of its words says whose file it is.
    EXPECT_EQ(OpenAnew().code(), bit / 8 < strlen("parley-scheduler-state ")
                                     ? absl::StatusCode::kInvalidArgument
                                     : absl::StatusCode::kDataLoss)
        << bit;
  }
}

// Codes that mean something else to whoever opens and saves.
TEST_F(DiskStoreTest, AnErrorOfTheDiskIsNoOtherScheduler) {
  DiskStore store({.directory = dir_});
  ASSERT_TRUE(OpenAndWait(&store).ok());
  std::filesystem::create_directory(dir_ + "/state");  // EISDIR
  const absl::Status saved = SaveAndWait(&store, "state");
  EXPECT_EQ(saved.code(), absl::StatusCode::kUnavailable) << saved;
  EXPECT_THAT(std::string(saved.message()), HasSubstr(dir_ + "/state'"));
}

// A network file system whose server has lost the directory: it was tried again in silence.
TEST(DiskStore, AStaleDirectoryIsAnError) {
  class Stale : public FileSystem {
   public:
    absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string&) override {
      return Error();
    }
    absl::StatusOr<uint64_t> Size(const std::string&) override { return Error(); }
    absl::Status Read(const std::string&, uint64_t, uint64_t, std::byte*) override {
      return Error();
    }
    absl::StatusOr<std::vector<std::string>> List(const std::string&) override { return Error(); }
    bool Exists(const std::string&) override { return true; }
    absl::Status MakeDirectory(const std::string&) override { return made; }
    absl::Status Rename(const std::string&, const std::string&) override { return Error(); }
    absl::Status Link(const std::string&, const std::string&) override { return Error(); }
    absl::Status Remove(const std::string&) override { return Error(); }
    absl::Status SyncDirectory(const std::string&) override { return Error(); }
    static absl::Status Error() { return absl::ErrnoToStatus(ESTALE, "a name"); }
    absl::Status made;
  } files;
  DiskStore store({.directory = "state", .files = &files, .lock = false});
  EXPECT_EQ(OpenAndWait(&store).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(SaveAndWait(&store, "state").code(), absl::StatusCode::kUnavailable);
  files.made = Stale::Error();
  EXPECT_EQ(OpenAndWait(&store).status().code(), absl::StatusCode::kUnavailable);
}

// The machine stops within each operation of a save in turn.
TEST(DiskStore, ACrashLeavesTheOldStateOrTheNew) {
  size_t olds = 0, news = 0, halts = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    for (uint64_t operation = 0;; ++operation) {
      SimFileSystem disk(seed);
      absl::Status saved;
      {
        DiskStore store({.directory = "job/state", .files = &disk, .lock = false});
        ASSERT_TRUE(OpenAndWait(&store).ok());
        ASSERT_TRUE(SaveAndWait(&store, "old").ok());
        disk.HaltAfter(operation);
        saved = SaveAndWait(&store, "new");
      }
      const bool halted = disk.halted();
      disk.Crash();
      DiskStore store({.directory = "job/state", .files = &disk, .lock = false});
      absl::StatusOr<std::optional<std::string>> found = OpenAndWait(&store);
      ASSERT_TRUE(found.ok()) << found.status() << " seed " << seed << " operation " << operation;
      ASSERT_TRUE(*found == "old" || *found == "new") << seed << " " << operation;
      if (saved.ok()) {
        EXPECT_EQ(*found, "new") << seed << " " << operation;
      }
      (*found == "old" ? olds : news) += 1;
      halts += halted;
      if (!halted) break;
    }
  }
  EXPECT_GT(olds, 20u);
  EXPECT_GT(news, 20u);
  EXPECT_GT(halts, 60u);
}

TEST_F(DiskStoreTest, AForeignFileIsRefusedAndLeftAlone) {
  std::filesystem::create_directories(dir_);
  Write("my diary\n");
  const absl::Status status = OpenAnew();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument)
      << "not torn: --anew leaves it alone";
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("is no state of a scheduler"), HasSubstr("allowed: ")));
  EXPECT_EQ(Read(), "my diary\n");
}

TEST_F(DiskStoreTest, ADirectoryThatCannotBe) {
  std::filesystem::create_directories(std::filesystem::path(dir_).parent_path());
  std::ofstream(dir_) << "a file";
  EXPECT_THAT(std::string(OpenAnew().message()), HasSubstr(dir_));
}

}  // namespace
}  // namespace parley
