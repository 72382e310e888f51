// Checkpoints on disks that are damaged, that stop in the middle, that lie and that are full.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "ps/base/sim_file_system.h"
#include "ps/checkpoint/checkpoint_files.h"
#include "tests/unit/checkpoint/checkpoint_maker.h"

namespace parley {
namespace {

using testing::HasSubstr;

constexpr char kRoot[] = "/run/checkpoints";

std::map<std::string, std::string> Snapshot(SimFileSystem& disk, const std::string& directory) {
  std::map<std::string, std::string> content;
  for (const std::string& path : disk.Files(directory)) content[path] = *disk.Content(path);
  return content;
}

// Steps 5, 10, and 20 and 30 that build on 10 one after another.
const std::map<uint64_t, std::vector<uint64_t>> kChains = {
    {5, {5}}, {10, {10}}, {20, {10, 20}}, {30, {10, 20, 30}}};

void MakeAll(SimFileSystem& disk) {
  ASSERT_TRUE(WriteCheckpoint(&disk, kRoot, 5).ok());
  ASSERT_TRUE(WriteCheckpoint(&disk, kRoot, 10).ok());
  ASSERT_TRUE(WriteCheckpoint(&disk, kRoot, 20, 10).ok());
  ASSERT_TRUE(WriteCheckpoint(&disk, kRoot, 30, 20).ok());
}

// Damages one or two files below `directory`; says what it did.
std::string Damage(SimFileSystem& disk, const std::string& directory, std::mt19937_64& random) {
  const std::vector<std::string> paths = disk.Files(directory);
  const std::string path = paths[random() % paths.size()];
  std::string& bytes = *disk.Content(path);
  const uint64_t at = random() % bytes.size();
  switch (random() % 8) {
    case 0:
    case 1:
    case 2:
      bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8));
      return absl::StrCat("a bit of byte ", at, " of ", path, " flipped");
    case 3:
      bytes.resize(at);
      return absl::StrCat(path, " cut to ", at, " bytes");
    case 4:
      bytes.append(1 + random() % 100, static_cast<char>(random() % 3 * 16));  // zeros, blanks
      return absl::StrCat(path, " extended");
    case 5:
      EXPECT_TRUE(disk.Remove(path).ok());
      return absl::StrCat(path, " removed");
    case 6: {
      std::string& other = *disk.Content(paths[random() % paths.size()]);
      bytes.swap(other);
      return absl::StrCat(path, " swapped with another");
    }
    default: {
      // As a sector that was not written.
      const uint64_t size = std::min<uint64_t>(bytes.size() - at, 1 + random() % 512);
      std::fill_n(bytes.begin() + static_cast<int64_t>(at), size, '\0');
      return absl::StrCat(size, " zeros at ", at, " of ", path);
    }
  }
}

TEST(CheckpointDamage, EveryOneOfManyIsFoundAndThePreviousCheckpointUsed) {
  std::mt19937_64 random(1);
  std::map<uint64_t, int> found_instead;
  int damages = 0;
  for (int round = 0; damages < 250; ++round) {
    SCOPED_TRACE(absl::StrCat("round ", round));
    SimFileSystem disk(round);
    MakeAll(disk);
    const std::map<std::string, std::string> before = Snapshot(disk, kRoot);
    const std::string newest = CheckpointDirectory(kRoot, 30);
    const std::string what = Damage(disk, newest, random);
    SCOPED_TRACE(what);
    const std::map<std::string, std::string> after = Snapshot(disk, kRoot);
    if (before == after) continue;  // swapped with itself, zeros over zeros
    ++damages;
    // Files that checkpoints share are damaged in all of them.
    uint64_t expected = 0;
    for (const auto& [step, chain] : kChains) {
      const std::string directory = CheckpointDirectory(kRoot, step) + "/";
      bool same = true;
      for (const auto& [path, bytes] : before) {
        if (path.rfind(directory, 0) != 0) continue;
        same = same && after.count(path) != 0 && after.at(path) == bytes;
      }
      const absl::Status status =
          VerifyCheckpoint(&disk, CheckpointDirectory(kRoot, step), nullptr);
      EXPECT_EQ(status.ok(), same) << status << " at step " << step;
      if (!same) {
        EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
      }
      if (same) expected = step;
    }
    std::vector<std::string> skipped;
    absl::StatusOr<FoundCheckpoint> found =
        FindCheckpoint(&disk, kRoot, [&](const std::string& line) { skipped.push_back(line); });
    ASSERT_TRUE(found.ok()) << found.status();
    ASSERT_EQ(found->manifest.step(), expected);
    EXPECT_EQ(Mismatch(&disk, *found, kChains.at(expected)), "");
    ASSERT_FALSE(skipped.empty());
    EXPECT_THAT(skipped[0], HasSubstr(newest + "' is not used: '" + newest + "/"));
    ++found_instead[expected];
  }
  EXPECT_EQ(found_instead.count(30), 0u);
  EXPECT_GT(found_instead[20], 40) << "its own files, and the manifest";
  EXPECT_GT(found_instead[10], 20) << "files of step 20";
  EXPECT_GT(found_instead[5], 20) << "files of step 10";
}

TEST(CheckpointDamage, EveryBitOfAManifestCounts) {
  SimFileSystem disk(1);
  ASSERT_TRUE(WriteCheckpoint(&disk, kRoot, 5).ok());
  const std::string path = CheckpointDirectory(kRoot, 5) + "/manifest.json";
  const size_t bits = disk.Content(path)->size() * 8;
  for (size_t bit = 0; bit < bits; ++bit) {
    char& byte = (*disk.Content(path))[bit / 8];
    byte = static_cast<char>(byte ^ (1 << bit % 8));
    ASSERT_FALSE(ReadManifest(&disk, CheckpointDirectory(kRoot, 5)).ok()) << "bit " << bit;
    byte = static_cast<char>(byte ^ (1 << bit % 8));
  }
  EXPECT_TRUE(ReadManifest(&disk, CheckpointDirectory(kRoot, 5)).ok());
}

TEST(CheckpointDamage, WhenNoneIsWholeThereIsNone) {
  SimFileSystem disk(1);
  MakeAll(disk);
  for (const auto& [step, chain] : kChains) {
    ASSERT_TRUE(disk.Remove(CheckpointDirectory(kRoot, step) + "/manifest.json").ok());
  }
  const absl::Status none = FindCheckpoint(&disk, kRoot, nullptr).status();
  EXPECT_EQ(none.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(none.message()), HasSubstr("there are 4"));
}

TEST(CheckpointDamage, ADiskThatCannotReadIsNoReasonToUseWhatIsOnIt) {
  SimFileSystem disk(1);
  MakeAll(disk);
  disk.SetFaults({.read_error = 0.2});
  int failed = 0;
  for (int i = 0; i < 50; ++i) {
    absl::StatusOr<FoundCheckpoint> found = FindCheckpoint(&disk, kRoot, nullptr);
    if (!found.ok() || found->manifest.step() != 30) ++failed;
    if (found.ok()) {
      disk.SetFaults({});
      ASSERT_EQ(Mismatch(&disk, *found, kChains.at(found->manifest.step())), "");
      disk.SetFaults({.read_error = 0.2});
    }
  }
  EXPECT_GT(failed, 10);
}

// What a job does every so many steps, on a disk that may stop at any operation of it.
struct Attempt {
  const char* name;
  uint64_t step, base;
  uint32_t keep;
  std::vector<uint64_t> before, after;  // chains
};
const Attempt kAttempts[] = {
    {"the next, whole", 40, 0, 1, {10, 20, 30}, {40}},
    {"the next, changes", 40, 30, 1, {10, 20, 30}, {10, 20, 30, 40}},
    {"the next, all kept", 40, 30, 9, {10, 20, 30}, {10, 20, 30, 40}},
    {"the same step again", 30, 10, 1, {10, 20, 30}, {10, 30}},
};

absl::Status Try(SimFileSystem& disk, const Attempt& attempt, bool* committed) {
  absl::Status status = WriteCheckpoint(&disk, kRoot, attempt.step, attempt.base);
  if (!status.ok()) return status;
  *committed = true;
  return PruneCheckpoints(&disk, kRoot, attempt.keep);
}

TEST(CheckpointCrash, WhereverTheMachineStopsTheOldOrTheNewOneIsThere) {
  for (const Attempt& attempt : kAttempts) {
    SCOPED_TRACE(attempt.name);
    std::set<std::string> outcomes;
    bool over = false;
    for (uint64_t at = 0; !over; ++at) {
      for (uint64_t seed = 0; seed < 4; ++seed) {
        SCOPED_TRACE(absl::StrCat("operation ", at, ", seed ", seed));
        SimFileSystem disk(at * 100 + seed);
        MakeAll(disk);
        disk.HaltAfter(at);
        bool committed = false;
        over = Try(disk, attempt, &committed).ok();
        ASSERT_EQ(over, !disk.halted());
        disk.Crash();
        absl::StatusOr<FoundCheckpoint> found = FindCheckpoint(&disk, kRoot, nullptr);
        ASSERT_TRUE(found.ok()) << found.status();
        const std::string old_one = Mismatch(&disk, *found, attempt.before);
        const std::string new_one = Mismatch(&disk, *found, attempt.after);
        ASSERT_TRUE(old_one.empty() || new_one.empty())
            << found->directory << ": " << old_one << "; " << new_one;
        ASSERT_TRUE(!committed || new_one.empty()) << "it was said to be there: " << new_one;
        outcomes.insert(new_one.empty() ? "new" : "old");
        // The job goes on where it is, and comes by here again.
        if (new_one.empty()) continue;
        absl::StatusOr<pb::CheckpointManifest> manifest = WriteFiles(&disk, kRoot, 40, nullptr);
        ASSERT_TRUE(manifest.ok()) << manifest.status();
        const absl::Status again = CommitCheckpoint(&disk, kRoot, "", *manifest);
        ASSERT_TRUE(again.ok()) << again;
        const absl::Status pruned = PruneCheckpoints(&disk, kRoot, 1);
        ASSERT_TRUE(pruned.ok()) << pruned;
        EXPECT_THAT(*disk.List(kRoot), testing::ElementsAre("step-000000000040"));
        disk.Crash();
        found = FindCheckpoint(&disk, kRoot, nullptr);
        ASSERT_TRUE(found.ok()) << found.status();
        EXPECT_EQ(Mismatch(&disk, *found, {40}), "");
      }
    }
    EXPECT_EQ(outcomes.size(), 2u);
  }
}

TEST(CheckpointCrash, ADiskThatLiesIsFoundOut) {
  std::map<std::string, int> outcomes;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    SimFileSystem disk(seed);
    MakeAll(disk);
    disk.SetFaults({.lost_sync = seed % 2 == 0 ? 1 : 0.3});
    ASSERT_TRUE(WriteCheckpoint(&disk, kRoot, 40, 30).ok());
    disk.Crash();
    std::vector<std::string> skipped;
    absl::StatusOr<FoundCheckpoint> found =
        FindCheckpoint(&disk, kRoot, [&](const std::string& line) { skipped.push_back(line); });
    ASSERT_TRUE(found.ok()) << found.status();
    if (found->manifest.step() == 40) {
      EXPECT_EQ(Mismatch(&disk, *found, {10, 20, 30, 40}), "");
      ++outcomes["kept"];
    } else {
      EXPECT_EQ(Mismatch(&disk, *found, {10, 20, 30}), "");
      ++outcomes[skipped.empty() ? "no trace" : "damaged"];
    }
  }
  EXPECT_GT(outcomes["kept"], 20);
  EXPECT_GT(outcomes["damaged"], 20) << "named, but not whole: verification told";
  EXPECT_GT(outcomes["no trace"], 20);
}

TEST(CheckpointCrash, AFullDiskOrOneThatFailsLeavesTheOldOne) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SimFileSystem disk(seed);
    MakeAll(disk);
    const bool full = seed % 2 == 0;
    disk.SetFaults(full ? SimFileSystem::Faults{.capacity_bytes = disk.used_bytes() + seed * 20}
                        : SimFileSystem::Faults{.write_error = 0.05});
    const absl::Status status = WriteCheckpoint(&disk, kRoot, 40);
    if (full && seed < 150) {
      EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    }
    disk.SetFaults({});
    absl::StatusOr<FoundCheckpoint> found = FindCheckpoint(&disk, kRoot, nullptr);
    ASSERT_TRUE(found.ok()) << found.status();
    const std::vector<uint64_t> old_one = {10, 20, 30}, new_one = {40};
    EXPECT_EQ(Mismatch(&disk, *found, found->manifest.step() == 40 ? new_one : old_one), "");
    EXPECT_TRUE(!status.ok() || found->manifest.step() == 40);
  }
}

}  // namespace
}  // namespace parley
