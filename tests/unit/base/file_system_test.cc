// What every FileSystem promises, and what the simulated one does to those who rely on more.
#include "ps/base/file_system.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <set>
#include <string>

#include "ps/base/sim_file_system.h"

namespace parley {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

absl::Span<const std::byte> Bytes(absl::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

absl::Status Write(FileSystem* files, const std::string& path, absl::string_view text, bool sync) {
  absl::StatusOr<std::unique_ptr<WritableFile>> file = files->Create(path);
  if (!file.ok()) return file.status();
  absl::Status status = (*file)->Append(Bytes(text));
  if (status.ok() && sync) status = (*file)->Sync();
  return status;
}

class AnyFileSystem : public testing::TestWithParam<bool> {
 protected:
  AnyFileSystem() {
    if (GetParam()) {
      root_ = testing::TempDir() + "/file_system_" +
              testing::UnitTest::GetInstance()->current_test_info()->name();
      for (char& c : root_) c = c == '/' && &c > root_.data() + 5 ? '_' : c;
      std::filesystem::remove_all(root_);
      files_ = FileSystem::Posix();
    } else {
      root_ = "/root";
      files_ = &sim_;
    }
    EXPECT_TRUE(files_->MakeDirectory(root_).ok());
  }
  ~AnyFileSystem() override { EXPECT_TRUE(files_->Remove(root_).ok()); }
  std::string At(const std::string& name) const { return root_ + "/" + name; }

  SimFileSystem sim_{1};
  FileSystem* files_ = nullptr;
  std::string root_;
};

TEST_P(AnyFileSystem, WhatIsWrittenIsRead) {
  absl::StatusOr<std::unique_ptr<WritableFile>> file = files_->Create(At("a"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE((*file)->Append(Bytes("hello ")).ok());
  EXPECT_TRUE((*file)->Append({}).ok());
  EXPECT_TRUE((*file)->Append(Bytes("world")).ok());
  EXPECT_TRUE((*file)->Sync().ok());
  EXPECT_EQ(*files_->ReadWhole(At("a")), "hello world");
  EXPECT_EQ(*files_->Size(At("a")), 11u);
  char part[5];
  EXPECT_TRUE(files_->Read(At("a"), 6, 5, reinterpret_cast<std::byte*>(part)).ok());
  EXPECT_EQ(absl::string_view(part, 5), "world");
  const absl::Status short_read = files_->Read(At("a"), 7, 5, reinterpret_cast<std::byte*>(part));
  EXPECT_EQ(short_read.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(short_read.message()), HasSubstr(At("a")));
}

TEST_P(AnyFileSystem, WhatIsMissingIsNamed) {
  for (const absl::Status& status :
       {files_->ReadWhole(At("no")).status(), files_->Size(At("no")).status(),
        files_->List(At("no")).status(), files_->Rename(At("no"), At("b")),
        files_->Link(At("no"), At("b")), files_->SyncDirectory(At("no")),
        files_->Create(At("no/file")).status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(At("no")));
    EXPECT_THAT(std::string(status.message()), HasSubstr("No such file"));
  }
  EXPECT_FALSE(files_->Exists(At("no")));
  EXPECT_TRUE(files_->Remove(At("no")).ok());
  EXPECT_TRUE(files_->Remove(At("no/more")).ok());
}

TEST_P(AnyFileSystem, DirectoriesComeWithTheirParentsAndGoWithWhatIsInThem) {
  EXPECT_TRUE(files_->MakeDirectory(At("x/y/z")).ok());
  EXPECT_TRUE(files_->MakeDirectory(At("x/y/z/")).ok());
  ASSERT_TRUE(files_->WriteWhole(At("x/y/file"), "1").ok());
  EXPECT_THAT(*files_->List(At("x/y")), ElementsAre("file", "z"));
  EXPECT_EQ(files_->MakeDirectory(At("x/y/file")).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_FALSE(files_->Size(At("x/y")).ok());
  EXPECT_FALSE(files_->Create(At("x/y/z")).ok());
  ASSERT_TRUE(files_->MakeDirectory(At("other/inner")).ok());
  EXPECT_FALSE(files_->Rename(At("x"), At("other")).ok()) << "it is not empty";
  EXPECT_TRUE(files_->Rename(At("x"), At("moved")).ok());
  EXPECT_EQ(*files_->ReadWhole(At("moved/y/file")), "1");
  EXPECT_TRUE(files_->Remove(At("moved")).ok());
  EXPECT_FALSE(files_->Exists(At("moved")));
}

TEST_P(AnyFileSystem, ASecondNameKeepsTheBytes) {
  ASSERT_TRUE(files_->WriteWhole(At("a"), "old").ok());
  ASSERT_TRUE(files_->Link(At("a"), At("b")).ok());
  EXPECT_EQ(files_->Link(At("a"), At("b")).code(), absl::StatusCode::kAlreadyExists);
  ASSERT_TRUE(Write(files_, At("a"), "new", false).ok());
  EXPECT_EQ(*files_->ReadWhole(At("b")), "old") << "a new file is not the old one, emptied";
  ASSERT_TRUE(files_->Remove(At("a")).ok());
  EXPECT_EQ(*files_->ReadWhole(At("b")), "old");
}

TEST_P(AnyFileSystem, WriteWholeReplacesAndLeavesNothingElse) {
  ASSERT_TRUE(files_->WriteWhole(At("a"), "one").ok());
  ASSERT_TRUE(files_->WriteWhole(At("a"), "").ok());
  EXPECT_EQ(*files_->ReadWhole(At("a")), "");
  ASSERT_TRUE(files_->WriteWhole(At("a"), std::string("\0two", 4)).ok());
  EXPECT_EQ(*files_->ReadWhole(At("a")), std::string("\0two", 4));
  EXPECT_THAT(*files_->List(root_), ElementsAre("a"));
}

INSTANTIATE_TEST_SUITE_P(FileSystems, AnyFileSystem, testing::Bool(),
                         [](const auto& info) { return info.param ? "Posix" : "Sim"; });

// Seed 19750: a directory of checkpoints whose name was never synced went with all that was in it.
TEST(SimFileSystem, ADirectoryWhoseSyncFailedSurvivesOnceItIsMadeAgain) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    SimFileSystem disk(seed);
    disk.SetFaults({.write_error = 0.5});
    disk.MakeDirectory("/a").IgnoreError();
    while (!disk.MakeDirectory("/a/b/c").ok()) {
    }
    disk.SetFaults({});
    disk.Crash();
    EXPECT_TRUE(disk.Exists("/a/b/c")) << seed;
  }
}

TEST(SimFileSystem, ACrashLeavesWhatWasSyncedAndSomeOfTheRest) {
  std::set<std::string> seen;
  const std::string tail(2000, 'x');
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SimFileSystem disk(seed);
    ASSERT_TRUE(disk.MakeDirectory("/d").ok());
    auto file = disk.Create("/d/f");
    ASSERT_TRUE((*file)->Append(Bytes("synced")).ok());
    ASSERT_TRUE((*file)->Sync().ok());
    ASSERT_TRUE(disk.SyncDirectory("/d").ok());
    ASSERT_TRUE((*file)->Append(Bytes(tail)).ok());
    ASSERT_TRUE(Write(&disk, "/d/unnamed", "u", true).ok());
    disk.Crash();
    const std::string content = *disk.ReadWhole("/d/f");
    ASSERT_EQ(content.substr(0, 6), "synced");
    const std::string rest = content.substr(6);
    const bool zeros = rest.find('\0') != std::string::npos;
    seen.insert(rest.empty()                ? "lost"
                : zeros                     ? "torn"
                : rest.size() < tail.size() ? "beginning"
                                            : "kept");
    seen.insert(disk.Exists("/d/unnamed") ? "named" : "unnamed");
    EXPECT_FALSE((*file)->Append(Bytes("more")).ok()) << "it was open";
  }
  EXPECT_THAT(seen, ElementsAre("beginning", "kept", "lost", "named", "torn", "unnamed"));
}

// A path that nobody can look up, root no more than others: one that leads back to itself.
TEST(PosixFileSystem, WhatCannotBeSeenIsNotTakenForMissing) {
  FileSystem* const files = FileSystem::Posix();
  const std::string root = testing::TempDir() + "/file_system_loop";
  ASSERT_TRUE(files->MakeDirectory(root).ok());
  const std::string loop = root + "/loop";
  std::filesystem::create_symlink("loop", loop);
  EXPECT_TRUE(files->Exists(loop));
  EXPECT_TRUE(files->Exists(loop + "/file"));
  const absl::Status made = files->MakeDirectory(loop + "/directory");
  EXPECT_THAT(std::string(made.message()), HasSubstr("Too many levels"));
  ASSERT_TRUE(files->WriteWhole(root + "/file", "").ok());
  EXPECT_FALSE(files->Exists(root + "/no"));
  EXPECT_FALSE(files->Exists(root + "/file/no")) << "a file has nothing in it";
  EXPECT_TRUE(files->Remove(root).ok());
}

TEST(SimFileSystem, WriteWholeIsOldOrNewWhereverTheMachineStops) {
  std::set<std::string> seen;
  for (uint64_t seed = 0; seed < 400; ++seed) {
    SimFileSystem disk(seed);
    ASSERT_TRUE(disk.WriteWhole("/f", "old content").ok());
    disk.HaltAfter(seed % 6);
    const absl::Status status = disk.WriteWhole("/f", "new content");
    disk.Crash();
    const std::string content = *disk.ReadWhole("/f");
    ASSERT_TRUE(content == "old content" || content == "new content") << content;
    if (status.ok()) {
      ASSERT_EQ(content, "new content");
    }
    seen.insert(content);
  }
  EXPECT_EQ(seen.size(), 2u);
}

TEST(SimFileSystem, ADiskThatLiesLosesWhatWasSynced) {
  int lost = 0;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    SimFileSystem disk(seed);
    ASSERT_TRUE(disk.WriteWhole("/f", "old content").ok());
    disk.SetFaults({.lost_sync = 1});
    ASSERT_TRUE(disk.WriteWhole("/f", "new content").ok());
    disk.Crash();
    if (*disk.ReadWhole("/f") != "new content") ++lost;
  }
  EXPECT_GT(lost, 20);
  EXPECT_LT(lost, 100);
}

TEST(SimFileSystem, AFullDiskTakesWhatFitsAndHasRoomAgain) {
  SimFileSystem disk(1);
  disk.SetFaults({.capacity_bytes = 10});
  const absl::Status full = Write(&disk, "/f", "twelve bytes", false);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(*disk.Size("/f"), 10u);
  ASSERT_TRUE(disk.Remove("/f").ok());
  EXPECT_EQ(disk.used_bytes(), 0u);
  EXPECT_TRUE(Write(&disk, "/g", "ten bytes.", false).ok());
}

TEST(SimFileSystem, FaultsOnDemand) {
  SimFileSystem disk(1);
  ASSERT_TRUE(disk.WriteWhole("/d", std::string(64, '\0')).ok());
  EXPECT_EQ(disk.FlipRandomBit("/d"), "/d");
  int ones = 0;
  const std::string flipped = *disk.ReadWhole("/d");
  for (const char c : flipped) ones += __builtin_popcount(static_cast<uint8_t>(c));
  EXPECT_EQ(ones, 1);
  disk.SetFaults({.read_error = 1});
  EXPECT_EQ(disk.ReadWhole("/d").status().code(), absl::StatusCode::kUnknown);
  disk.SetFaults({.write_error = 1});
  EXPECT_FALSE(disk.WriteWhole("/e", "x").ok());
  disk.SetFaults({});
  disk.HaltAfter(0);
  EXPECT_EQ(disk.Create("/f").status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(disk.halted());
  EXPECT_FALSE(disk.ReadWhole("/d").ok());
  disk.Crash();
  EXPECT_TRUE(disk.ReadWhole("/d").ok());
}

TEST(SimFileSystem, OneSeedIsOneDisk) {
  const auto play = [](uint64_t seed) {
    SimFileSystem disk(seed);
    std::string all;
    for (int i = 0; i < 20; ++i) {
      EXPECT_TRUE(Write(&disk, "/f" + std::to_string(i), std::string(3000, 'a'), i % 2).ok());
      if (i % 5 == 4) disk.Crash();
    }
    for (const std::string& path : disk.Files("/")) all += path + *disk.ReadWhole(path);
    return all;
  };
  EXPECT_EQ(play(7), play(7));
  EXPECT_NE(play(7), play(8));
}

}  // namespace
}  // namespace parley
