#include "ps/checkpoint/checkpoint_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "ps/base/sim_file_system.h"
#include "ps/checkpoint/file_hash.h"
#include "ps/checkpoint/manifest.h"
#include "tests/unit/checkpoint/checkpoint_maker.h"

namespace parley {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr char kRoot[] = "/run/checkpoints";

class CheckpointFiles : public testing::Test {
 protected:
  absl::StatusOr<FoundCheckpoint> Find() {
    skipped_.clear();
    return FindCheckpoint(&disk_, kRoot,
                          [&](const std::string& line) { skipped_.push_back(line); });
  }
  // "" if the newest checkpoint is that of this chain of steps, and whole.
  std::string NotFoundAs(const std::vector<uint64_t>& chain) {
    absl::StatusOr<FoundCheckpoint> found = Find();
    return found.ok() ? Mismatch(&disk_, *found, chain) : found.status().ToString();
  }
  void Make(uint64_t step, uint64_t base = 0) {
    const absl::Status status = WriteCheckpoint(&disk_, kRoot, step, base);
    ASSERT_TRUE(status.ok()) << status;
  }

  SimFileSystem disk_{1};
  std::vector<std::string> skipped_;
};

TEST_F(CheckpointFiles, ThereIsNoneAtFirst) {
  EXPECT_THAT(*ListCheckpoints(&disk_, kRoot), IsEmpty());
  const absl::Status none = Find().status();
  EXPECT_EQ(none.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(none.message(), "no checkpoint in '/run/checkpoints'");
  EXPECT_TRUE(PruneCheckpoints(&disk_, kRoot, 1).ok());
}

TEST_F(CheckpointFiles, WhatWasSavedIsRead) {
  Make(10);
  Make(20, 10);
  Make(30, 20);
  EXPECT_THAT(*ListCheckpoints(&disk_, kRoot), ElementsAre(10, 20, 30));
  EXPECT_EQ(NotFoundAs({10, 20, 30}), "");
  EXPECT_THAT(skipped_, IsEmpty());
  const pb::CheckpointManifest manifest = Find()->manifest;
  EXPECT_EQ(manifest.job(), "job");
  EXPECT_EQ(manifest.tally(), std::string("\0\xFF tally", 8));
  EXPECT_EQ(manifest.experiment().seed(), 0xFFFFFFFFFFFFFFFF);
  EXPECT_EQ(manifest.experiment().data().mean(), 0.28604060411453247f);
  EXPECT_THAT(*disk_.List(CheckpointDirectory(kRoot, 30)),
              ElementsAre("manifest.json", "server-0-0.safetensors",
                          "server-0-0.step-000000000010.safetensors",
                          "server-0-0.step-000000000020.safetensors", "server-1-0.safetensors",
                          "server-1-0.step-000000000010.safetensors",
                          "server-1-0.step-000000000020.safetensors"));
  // A checkpoint's own directory will do.
  absl::StatusOr<FoundCheckpoint> one =
      FindCheckpoint(&disk_, CheckpointDirectory(kRoot, 20), nullptr);
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_EQ(Mismatch(&disk_, *one, {10, 20}), "");
}

TEST_F(CheckpointFiles, TheRealDiskGivesTheSame) {
  const std::string root = testing::TempDir() + "/checkpoint_files_test/checkpoints";
  FileSystem* const files = FileSystem::Posix();
  ASSERT_TRUE(files->Remove(root).ok());
  ASSERT_TRUE(WriteCheckpoint(files, root, 10).ok());
  ASSERT_TRUE(WriteCheckpoint(files, root, 20, 10).ok());
  ASSERT_TRUE(WriteCheckpoint(files, root, 20, 10).ok()) << "again";
  ASSERT_TRUE(PruneCheckpoints(files, root, 1).ok());
  absl::StatusOr<FoundCheckpoint> found = FindCheckpoint(files, root, nullptr);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(Mismatch(files, *found, {10, 20}), "");
  EXPECT_THAT(*files->List(root), ElementsAre("step-000000000020"));
  ASSERT_TRUE(files->Remove(root).ok());
}

TEST_F(CheckpointFiles, FilesAreSafetensors) {
  Make(10);
  const std::string path = CheckpointDirectory(kRoot, 10) + "/server-0-0.safetensors";
  const std::string bytes = *disk_.ReadWhole(path);
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<uint8_t>(bytes[i]);
  ASSERT_LE(8 + length, bytes.size());
  EXPECT_EQ(length % 8, 0u);
  EXPECT_EQ(bytes[8], '{');
  const auto head = nlohmann::json::parse(bytes.substr(8, length));
  std::map<uint64_t, uint64_t> ranges;
  for (const auto& [name, tensor] : head.items()) {
    if (name == "__metadata__") continue;
    const uint64_t begin = tensor["data_offsets"][0], end = tensor["data_offsets"][1];
    uint64_t size = DtypeBytes(tensor["dtype"].get<std::string>());
    EXPECT_EQ(begin % size, 0u) << name << " is not aligned";
    for (const uint64_t n : tensor["shape"]) size *= n;
    EXPECT_EQ(end - begin, size) << name;
    EXPECT_TRUE(ranges.emplace(begin, end).second) << name;
  }
  uint64_t at = 0;
  for (const auto& [begin, end] : ranges) {
    EXPECT_EQ(begin, at) << "no holes, no overlaps";
    at = end;
  }
  EXPECT_EQ(8 + length + at, bytes.size());
  // By table, partition and array; of the server's own, and of a worker.
  const TableState state = StateOf(10, kSparse, 2, false);
  const auto& rows = head["emb/2/rows"];
  EXPECT_EQ(rows["dtype"], "F16");
  EXPECT_EQ(rows["shape"], nlohmann::json({7, kDim}));
  EXPECT_EQ(bytes.substr(8 + length + rows["data_offsets"][0].get<uint64_t>(), 7 * kDim * 2),
            state.Find("rows")->view());
  EXPECT_TRUE(head.contains("model/0/server_state"));
  EXPECT_TRUE(head.contains("/worker/2/slot0"));
  EXPECT_FALSE(head.contains("emb/1/rows")) << "the other server's";
}

TEST_F(CheckpointFiles, TheManifestIsJsonAndItsChecksumIsOfTheTextBeforeIt) {
  Make(10);
  const std::string text = *disk_.ReadWhole(CheckpointDirectory(kRoot, 10) + "/manifest.json");
  const auto json = nlohmann::json::parse(text);
  EXPECT_EQ(json["format"], 1);
  EXPECT_EQ(json["step"], "10") << "64 bits are text in protobuf's JSON";
  EXPECT_EQ(json["file"].size(), kServers);
  EXPECT_THAT(json["written"].get<std::string>(), testing::MatchesRegex("2...-..-..T..:..:..Z"));
  FileHash hash;
  hash.Add(absl::string_view(text).substr(0, text.find(",\n \"checksum\"")));
  EXPECT_EQ(json["checksum"], hash.Hex());
}

TEST_F(CheckpointFiles, AHashIsBlake2b) {
  FileHash hash;  // the values of b2sum -l 256, and of python's zlib.crc32
  hash.Add("ab");
  hash.Add("");
  hash.Add("c");
  EXPECT_EQ(hash.Hex(), "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319");
  const std::string text = "123456789";
  EXPECT_EQ(Crc32({reinterpret_cast<const std::byte*>(text.data()), text.size()}), 0xCBF43926u);
  EXPECT_EQ(Crc32({}), 0u);
}

TEST_F(CheckpointFiles, PruningKeepsTheNewestAndTheFilesTheyShare) {
  Make(10);
  Make(20, 10);
  Make(30, 20);
  ASSERT_TRUE(PruneCheckpoints(&disk_, kRoot, 2).ok());
  EXPECT_THAT(*ListCheckpoints(&disk_, kRoot), ElementsAre(20, 30));
  ASSERT_TRUE(PruneCheckpoints(&disk_, kRoot, 0).ok()) << "as 1";
  EXPECT_THAT(*disk_.List(kRoot), ElementsAre("step-000000000030"));
  EXPECT_EQ(NotFoundAs({10, 20, 30}), "");
}

TEST_F(CheckpointFiles, PruningRemovesWhatAttemptsLeftBehindBelowTheNewest) {
  Make(10);
  ASSERT_TRUE(WriteFiles(&disk_, kRoot, 15, nullptr).ok());
  Make(20);
  ASSERT_TRUE(WriteFiles(&disk_, kRoot, 25, nullptr).ok());
  for (const char* name : {"removed-000000000005", "replaced-000000000010", "somebody's", "step-20",
                           "pending-0000000000015", "step-0000000000xx"}) {
    ASSERT_TRUE(disk_.MakeDirectory(absl::StrCat(kRoot, "/", name, "/inner")).ok());
  }
  ASSERT_TRUE(PruneCheckpoints(&disk_, kRoot, 5).ok());
  EXPECT_THAT(*disk_.List(kRoot),
              ElementsAre("pending-0000000000015", "pending-000000000025", "somebody's",
                          "step-000000000010", "step-000000000020", "step-0000000000xx", "step-20"))
      << "an attempt that may go on, and what is not ours, stay";
  EXPECT_EQ(NotFoundAs({20}), "");
}

TEST_F(CheckpointFiles, ACheckpointOfTheSameStepIsReplaced) {
  Make(10);
  Make(20);
  ASSERT_TRUE(
      disk_.WriteWhole(PendingDirectory(kRoot, 20) + "/server-9-0.safetensors", "").code() ==
      absl::StatusCode::kNotFound);
  ASSERT_TRUE(disk_.MakeDirectory(PendingDirectory(kRoot, 20)).ok());
  ASSERT_TRUE(
      disk_.WriteWhole(PendingDirectory(kRoot, 20) + "/server-9-0.safetensors", "an attempt").ok());
  Make(20, 10);
  EXPECT_EQ(NotFoundAs({10, 20}), "");
  EXPECT_THAT(*disk_.List(kRoot), ElementsAre("step-000000000010", "step-000000000020"));
  EXPECT_FALSE(disk_.Exists(CheckpointDirectory(kRoot, 20) + "/server-9-0.safetensors"));
}

TEST_F(CheckpointFiles, WhereTheJobWentBackFromIsNotItsPast) {
  Make(10);
  Make(20);
  Make(30);
  disk_.FlipRandomBit(CheckpointDirectory(kRoot, 30));
  EXPECT_EQ(NotFoundAs({20}), "");
  EXPECT_THAT(skipped_, ElementsAre(AllOf(HasSubstr("step-000000000030"), HasSubstr("not used"))));
  Make(25);
  EXPECT_EQ(NotFoundAs({25}), "");
  EXPECT_THAT(skipped_, IsEmpty());
  // With 30 still there, this would have removed the only good one.
  ASSERT_TRUE(PruneCheckpoints(&disk_, kRoot, 1).ok());
  EXPECT_EQ(NotFoundAs({25}), "");
  EXPECT_TRUE(disk_.Exists(std::string(kRoot) + "/abandoned-000000000030")) << "to be looked at";
  Make(35);
  ASSERT_TRUE(PruneCheckpoints(&disk_, kRoot, 1).ok());
  EXPECT_THAT(*disk_.List(kRoot), ElementsAre("step-000000000035"));
}

TEST_F(CheckpointFiles, WhatIsNotThereCannotBeCommitted) {
  absl::StatusOr<pb::CheckpointManifest> manifest = WriteFiles(&disk_, kRoot, 10, nullptr);
  ASSERT_TRUE(manifest.ok());
  const std::string path = PendingDirectory(kRoot, 10) + "/server-1-0.safetensors";
  disk_.Content(path)->pop_back();
  absl::Status status = CommitCheckpoint(&disk_, kRoot, "", *manifest);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path));
  ASSERT_TRUE(disk_.Remove(path).ok());
  EXPECT_EQ(CommitCheckpoint(&disk_, kRoot, "", *manifest).code(), absl::StatusCode::kNotFound);
  manifest->mutable_file(0)->set_step(5);
  EXPECT_EQ(CommitCheckpoint(&disk_, kRoot, kRoot, *manifest).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Find().status().code(), absl::StatusCode::kNotFound);
}

TEST_F(CheckpointFiles, ManifestsThatCannotBeAreRefused) {
  absl::StatusOr<pb::CheckpointManifest> good = WriteFiles(&disk_, kRoot, 10, nullptr);
  ASSERT_TRUE(good.ok());
  ASSERT_TRUE(CheckManifest(*good).ok());
  const auto refused = [&](const std::function<void(pb::CheckpointManifest*)>& change) {
    pb::CheckpointManifest bad = *good;
    change(&bad);
    const absl::Status status = CheckManifest(bad);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_FALSE(ManifestText(bad).ok());
    return std::string(status.message());
  };
  using M = pb::CheckpointManifest*;
  for (const char* name : {"", "../x.safetensors", "/x.safetensors", ".safetensors", "x"}) {
    EXPECT_THAT(refused([&](M m) { m->mutable_file(0)->set_name(name); }),
                HasSubstr("allowed: a plain name"));
  }
  EXPECT_THAT(refused([](M m) { m->mutable_file(0)->set_name(m->file(1).name()); }),
              HasSubstr("listed twice"));
  EXPECT_THAT(refused([](M m) { m->mutable_file(0)->set_step(11); }), HasSubstr("allowed: up to"));
  EXPECT_THAT(refused([](M m) { m->mutable_file(0)->mutable_partition(0)->add_offset(0); }),
              HasSubstr("offsets"));
  EXPECT_THAT(refused([](M m) { m->mutable_file(0)->mutable_partition(0)->clear_crc32(); }),
              HasSubstr("checksums"));
  EXPECT_THAT(refused([](M m) { m->mutable_file(0)->mutable_partition(0)->set_offset(0, -8); }),
              HasSubstr("bytes at"));
  EXPECT_THAT(refused([](M m) { m->mutable_file(0)->mutable_partition(0)->set_partition(2); }),
              HasSubstr("there twice"));
  EXPECT_THAT(refused([](M m) { *m->mutable_file(0)->add_worker() = m->file(0).worker(0); }),
              HasSubstr("there twice"));
  EXPECT_THAT(refused([](M m) {
                m->mutable_file(0)->mutable_worker(0)->mutable_state()->mutable_array(0)->set_shape(
                    0, uint64_t{1} << 63);
              }),
              HasSubstr("worker 2"));
  // Arrays over each other are memory for bytes that are not there.
  EXPECT_THAT(refused([](M m) {
                auto* saved = m->mutable_file(1)->mutable_partition(0);
                for (int i = 0; i < 99; ++i) {
                  pb::StateArray* array = saved->mutable_state()->add_array();
                  *array = saved->state().array(0);
                  array->set_name(absl::StrCat("again", i));
                  saved->add_offset(saved->offset(0));
                  saved->add_crc32(saved->crc32(0));
                }
              }),
              HasSubstr("allowed: the file's"));
}

TEST_F(CheckpointFiles, AnotherFormatIsSaidToBeOne) {
  Make(10);
  const std::string path = CheckpointDirectory(kRoot, 10) + "/manifest.json";
  std::string text = *disk_.ReadWhole(path);
  text.replace(text.find("\"format\": 1"), 11, "\"format\": 2, \"new\": 1");
  const size_t end = text.find(",\n \"checksum\"");
  FileHash hash;
  hash.Add(absl::string_view(text).substr(0, end));
  text = text.substr(0, end) + ",\n \"checksum\": \"" + hash.Hex() + "\"\n}\n";
  ASSERT_TRUE(disk_.WriteWhole(path, text).ok());
  const absl::Status status = ReadManifest(&disk_, CheckpointDirectory(kRoot, 10)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("has format 2; allowed: 1"));
}

TEST_F(CheckpointFiles, PartitionsAreReadWithCare) {
  Make(10);
  Make(20, 10);
  BufferPool pool;
  const std::string directory = CheckpointDirectory(kRoot, 20);
  pb::CheckpointManifest manifest = *ReadManifest(&disk_, directory);
  EXPECT_EQ(ReadPartition(&disk_, directory, manifest, kDense, 4, &pool).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(ReadPartition(&disk_, directory, manifest, 2, 0, &pool).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(ReadWorker(&disk_, directory, manifest, 1, &pool).status().code(),
            absl::StatusCode::kNotFound);
  // Damage that came after the checkpoint was verified.
  const pb::CheckpointPartition& saved = manifest.file(2).partition(0);
  std::string* content = disk_.Content(directory + "/" + manifest.file(2).name());
  (*content)[saved.offset(1)] ^= 1;
  absl::Status status =
      ReadPartition(&disk_, directory, manifest, saved.table(), saved.partition(), &pool).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("not those that were written"));
  content->pop_back();
  EXPECT_EQ(ReadPartition(&disk_, directory, manifest, kDense, 0, &pool).status().code(),
            absl::StatusCode::kDataLoss);
  // Changes without what they change.
  manifest.mutable_file()->DeleteSubrange(0, 2);
  EXPECT_EQ(ReadPartition(&disk_, directory, manifest, kSparse, 1, &pool).status().code(),
            absl::StatusCode::kDataLoss);
}

TEST_F(CheckpointFiles, WhatCannotBeWrittenIsNamed) {
  ASSERT_TRUE(disk_.MakeDirectory("/d").ok());
  PartitionRecord record{"emb", kSparse, 3, StateOf(1, kSparse, 3, false), ""};
  const auto write = [&](absl::Span<const PartitionRecord> records) {
    return WriteCheckpointFile(&disk_, "/d", "x.safetensors", records, {}).status();
  };
  ASSERT_TRUE(write({record}).ok());
  EXPECT_THAT(
      std::string(write({record, record}).message()),
      AllOf(HasSubstr("'/d/x.safetensors'"), HasSubstr("'emb/3/keys'"), HasSubstr("twice")));
  record.table_name = "\xFF";
  EXPECT_THAT(std::string(write({record}).message()), HasSubstr("UTF-8"));
  record.table_name = "emb";
  record.state.bytes.pop_back();
  EXPECT_EQ(write({record}).code(), absl::StatusCode::kInvalidArgument);
  disk_.SetFaults({.capacity_bytes = 100});
  record.state = StateOf(1, kSparse, 3, false);
  const absl::Status full = write({record});
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(full.message()), HasSubstr("'/d/x.safetensors'"));
}

}  // namespace
}  // namespace parley
