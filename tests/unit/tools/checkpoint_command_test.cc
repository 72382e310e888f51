// What `parley checkpoint` writes and says; exports are read back by numpy and by a reader in
// Python that knows nothing of this code.
#include "tools/parley/checkpoint_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <set>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "ps/base/sparse_layout.h"
#include "ps/checkpoint/checkpoint_files.h"

namespace parley {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// What the command of a shell prints; its exit code is 0, or the test fails.
std::string OutputOf(const std::string& command) {
  FILE* pipe = popen(command.c_str(), "r");
  std::string text;
  char chunk[4096];
  for (size_t n; (n = fread(chunk, 1, sizeof(chunk), pipe)) > 0;) text.append(chunk, n);
  EXPECT_EQ(pclose(pipe), 0) << command;
  return text;
}

struct Told {
  int code;
  std::string out, err;
};

Told Parley(const CommandArgs& args) {
  Told told;
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  told.code = CheckpointCommand(args, [](const CommandArgs&) { return kExitOk; });
  told.out = testing::internal::GetCapturedStdout();
  told.err = testing::internal::GetCapturedStderr();
  return told;
}

template <typename T>
Buffer BufferOf(const std::vector<T>& values) {
  Buffer buffer = Buffer::Allocate(values.size() * sizeof(T));
  if (!values.empty()) std::memcpy(buffer.mutable_data(), values.data(), buffer.size());
  return buffer;
}

template <typename T>
std::string Line(const std::string& name, const std::string& dtype,
                 const std::vector<uint64_t>& shape, const std::vector<T>& values) {
  const Buffer bytes = BufferOf(values);
  return absl::StrCat(name, " ", dtype, " ", absl::StrJoin(shape, "x"), " ",
                      absl::BytesToHexString(std::string(bytes.view())), "\n");
}

constexpr uint64_t kElements = 22;  // of "model": a [3, 5], b [7]; partitions of 8, 8 and 6

class CheckpointCommandTest : public testing::Test {
 protected:
  CheckpointCommandTest()
      : run_(absl::StrCat(testing::TempDir(), "/checkpoint_command_test")),
        root_(run_ + "/checkpoints") {
    EXPECT_TRUE(files_->Remove(run_).ok());
    for (uint64_t key = 0; keys_[0].size() < 3 || keys_[1].size() < 3; ++key) {
      auto& of_partition = keys_[KeyHash(key) >> 63];
      if (of_partition.size() < 3) of_partition.push_back(key);
    }
    Write(10, "");
    Write(20, CheckpointDirectory(root_, 10));
  }
  ~CheckpointCommandTest() override { EXPECT_TRUE(files_->Remove(run_).ok()); }

  static float Weight(uint64_t step, uint64_t i) { return static_cast<float>(step * 100 + i); }

  // A row of two values and its number of updates, by key; `step` says when it was last written.
  void AddRows(uint64_t step, const std::vector<uint64_t>& keys, TableState* state) {
    std::vector<uint16_t> rows;
    std::vector<uint32_t> updates;
    for (const uint64_t key : keys) {
      for (uint64_t i = 0; i < 2; ++i) rows.push_back(static_cast<uint16_t>(step + key * 2 + i));
      updates.push_back(static_cast<uint32_t>(step));
    }
    state->Add("keys", "U64", {keys.size()}, BufferOf(keys));
    state->Add("rows", "BF16", {keys.size(), 2}, BufferOf(rows));
    state->Add("updates", "U32", {keys.size()}, BufferOf(updates));
    state->Add("counters", "U64", {2}, BufferOf(std::vector<uint64_t>{step, 0}));
  }

  void Write(uint64_t step, const std::string& base) {
    pb::CheckpointManifest manifest;
    if (!base.empty()) *manifest.mutable_file() = ReadManifest(files_, base)->file();
    manifest.set_job("job");
    manifest.set_step(step);
    manifest.set_workers(4);
    manifest.set_chain(base.empty() ? 0 : 1);
    const auto add_dense =
        [&](uint32_t id, const std::string& name, uint64_t partition_elements,
            const std::vector<std::pair<std::string, std::vector<int>>>& tensors) {
          pb::TableSpec* table = manifest.add_table();
          table->set_id(id);
          table->set_name(name);
          table->set_partition_elements(partition_elements);
          for (const auto& [tensor_name, shape] : tensors) {
            pb::TensorSpec* tensor = table->add_tensor();
            tensor->set_name(tensor_name);
            for (const int n : shape) tensor->add_shape(static_cast<uint32_t>(n));
          }
        };
    add_dense(0, "model", 8, {{"a/weight", {3, 5}}, {"b", {7}}});
    add_dense(2, "head", 4, {{"b", {2}}});
    pb::TableSpec* sparse = manifest.add_table();
    sparse->set_id(1);
    sparse->set_name("emb");
    sparse->mutable_sparse()->set_dim(2);
    sparse->mutable_sparse()->set_partitions(2);

    std::vector<PartitionRecord> records;
    const auto dense = [&](const std::string& name, uint32_t id, uint32_t p, uint64_t begin,
                           uint64_t end) {
      std::vector<float> weights, slot;
      for (uint64_t i = begin; i < end; ++i) {
        weights.push_back(Weight(step, i + 50 * id));
        slot.push_back(-Weight(step, i + 50 * id));
      }
      PartitionRecord record{name, id, p, {}, "its own"};
      record.state.Add("weights", "F32", {end - begin}, BufferOf(weights));
      record.state.Add("slot0", "F32", {end - begin}, BufferOf(slot));
      records.push_back(std::move(record));
    };
    for (uint32_t p = 0; p < 3; ++p) dense("model", 0, p, p * 8, std::min(kElements, p * 8 + 8ul));
    dense("head", 2, 0, 0, 2);
    for (uint32_t p = 0; p < 2; ++p) {
      PartitionRecord record{"emb", 1, p, {}, ""};
      if (base.empty()) {
        AddRows(step, {keys_[p][0], keys_[p][1]}, &record.state);
      } else {
        // The second is written again, the third is new; the first is gone from one partition.
        record.state.header.set_changes_only(true);
        AddRows(step, {keys_[p][2], keys_[p][1]}, &record.state);
        const std::vector<uint64_t> removed(p == 0 ? 1 : 0, keys_[p][0]);
        record.state.Add("removed", "U64", {removed.size()}, BufferOf(removed));
      }
      records.push_back(std::move(record));
    }
    const std::string pending = PendingDirectory(root_, step);
    ASSERT_TRUE(files_->MakeDirectory(pending).ok());
    absl::StatusOr<pb::CheckpointFile> file =
        WriteCheckpointFile(files_, pending, "server-0-0.safetensors", records, {});
    ASSERT_TRUE(file.ok()) << file.status();
    file->set_step(step);
    *manifest.add_file() = *std::move(file);
    const absl::Status status = CommitCheckpoint(files_, root_, base, manifest);
    ASSERT_TRUE(status.ok()) << status;
  }

  // The lines that read_export.py prints of an export of step 20.
  std::string Expected(bool slots, bool npy) {
    std::set<std::string> lines;
    for (int sign = 1; sign >= (slots ? -1 : 1); sign -= 2) {
      const std::string slot = sign < 0 ? ".slot0" : "";
      std::vector<float> a, b, head;
      for (uint64_t i = 0; i < 15; ++i) a.push_back(sign * Weight(20, i));
      for (uint64_t i = 15; i < kElements; ++i) b.push_back(sign * Weight(20, i));
      for (uint64_t i = 0; i < 2; ++i) head.push_back(sign * Weight(20, 100 + i));
      lines.insert(Line(npy ? "a_weight" + slot : "a/weight" + slot, "F32", {3, 5}, a));
      lines.insert(Line("model.b" + slot, "F32", {7}, b));
      lines.insert(Line("head.b" + slot, "F32", {2}, head));
    }
    std::vector<uint64_t> keys = {keys_[0][1], keys_[0][2], keys_[1][0], keys_[1][1], keys_[1][2]};
    std::sort(keys.begin(), keys.end());
    std::vector<uint16_t> rows;
    std::vector<uint32_t> wide, updates;
    for (const uint64_t key : keys) {
      const uint64_t step = key == keys_[1][0] ? 10 : 20;
      for (uint64_t i = 0; i < 2; ++i) {
        rows.push_back(static_cast<uint16_t>(step + key * 2 + i));
        wide.push_back(uint32_t{rows.back()} << 16);
      }
      updates.push_back(static_cast<uint32_t>(step));
    }
    lines.insert(Line("emb.keys", "U64", {5}, keys));
    lines.insert(npy ? Line("emb.rows", "F32", {5, 2}, wide)
                     : Line("emb.rows", "BF16", {5, 2}, rows));
    if (slots) lines.insert(Line("emb.updates", "U32", {5}, updates));
    return absl::StrJoin(lines, "");
  }

  std::string ReadBack(const std::string& format, const std::string& path) {
    return OutputOf(
        absl::StrCat("/usr/bin/python3 tests/unit/tools/read_export.py ", format, " ", path));
  }

  FileSystem* const files_ = FileSystem::Posix();
  const std::string run_, root_;
  std::vector<uint64_t> keys_[2];  // of emb's partitions
};

TEST_F(CheckpointCommandTest, SafetensorsAreReadByTheFormatsDescription) {
  const std::string out = run_ + "/out.safetensors";
  Told told = Parley({"export", run_, "--out", out});
  EXPECT_EQ(told.code, kExitOk) << told.err;
  EXPECT_EQ(told.out, out + ": 5 tensors of step 20\n");
  EXPECT_EQ(ReadBack("safetensors", out), Expected(false, false));
  told = Parley({"export", "--slots", "--out=" + out, root_});
  EXPECT_EQ(told.code, kExitOk) << told.err;
  EXPECT_EQ(ReadBack("safetensors", out), Expected(true, false));
}

TEST_F(CheckpointCommandTest, SafetensorsAreReadByTheReaderFromNpm) {
  const std::string modules = "build/npm/node_modules";
  if (!files_->Exists(modules + "/safetensors")) {
    GTEST_SKIP() << "npm's safetensors is not in build/npm (tools/lib/install-npm)";
  }
  const std::string out = run_ + "/out.safetensors";
  const Told told = Parley({"export", "--slots", "--out=" + out, root_});
  EXPECT_EQ(told.code, kExitOk) << told.err;
  EXPECT_EQ(
      OutputOf(absl::StrCat("NODE_PATH=", modules, " node tests/unit/tools/read_export.js ", out)),
      Expected(true, false));
}

TEST_F(CheckpointCommandTest, NpyIsReadByNumpy) {
  const std::string out = run_ + "/out";
  const Told told =
      Parley({"export", "--format=npy", "--slots", "--out=" + out, CheckpointDirectory(root_, 20)});
  EXPECT_EQ(told.code, kExitOk) << told.err;
  EXPECT_EQ(ReadBack("npy", out), Expected(true, true));
}

TEST_F(CheckpointCommandTest, CheckpointFilesThemselvesAreSafetensors) {
  const std::string lines =
      ReadBack("safetensors", CheckpointDirectory(root_, 10) + "/server-0-0.safetensors");
  EXPECT_THAT(lines, AllOf(HasSubstr("emb/1/keys U64 2 "), HasSubstr("model/2/weights F32 6 "),
                           HasSubstr("head/0/server_state U8 7 ")));
}

TEST_F(CheckpointCommandTest, WhatIsThereIsTold) {
  Told told = Parley({"list", run_});
  EXPECT_EQ(told.code, kExitOk);
  EXPECT_THAT(told.out, testing::ContainsRegex(" 10 +[0-9]+ s +[0-9.]+ KiB +all +yes\n"));
  EXPECT_THAT(told.out, testing::ContainsRegex(" 20 +[0-9]+ s +[0-9.]+ KiB +changes +yes\n"));
  told = Parley({"inspect", run_, "--step=10"});
  EXPECT_EQ(told.code, kExitOk);
  EXPECT_THAT(told.out, AllOf(HasSubstr("job job, step 10, epoch 0, 4 workers, written 2"),
                              HasSubstr("table 'model': dense, 3 partitions\n"),
                              HasSubstr("[3, 5]\n"), HasSubstr("table 'emb': rows of 2, 2 part"),
                              HasSubstr("file server-0-0.safetensors ")));
  told = Parley({"verify", run_});
  EXPECT_EQ(told.code, kExitOk);
  EXPECT_EQ(told.out,
            CheckpointDirectory(root_, 10) + ": OK\n" + CheckpointDirectory(root_, 20) + ": OK\n");
}

TEST_F(CheckpointCommandTest, WhatIsWrongIsTold) {
  const std::string file = CheckpointDirectory(root_, 20) + "/server-0-0.safetensors";
  std::string bytes = *files_->ReadWhole(file);
  bytes[bytes.size() / 2] ^= 4;
  ASSERT_TRUE(files_->WriteWhole(file, bytes).ok());
  Told told = Parley({"verify", run_});
  EXPECT_EQ(told.code, kExitFailure);
  EXPECT_EQ(told.out, CheckpointDirectory(root_, 10) + ": OK\n");
  EXPECT_THAT(told.err, HasSubstr("parley: '" + file + "' is damaged: its BLAKE2b is "));
  EXPECT_EQ(Parley({"verify", run_, "--step=10"}).code, kExitOk);
  EXPECT_THAT(Parley({"list", run_}).out, HasSubstr("no: '" + file + "' is damaged"));
  told = Parley({"export", run_, "--out", run_ + "/out"});
  EXPECT_EQ(told.code, kExitOk) << "the one before is whole";
  EXPECT_EQ(told.out, run_ + "/out: 5 tensors of step 10\n");
  EXPECT_THAT(told.err, HasSubstr("is damaged"));
  EXPECT_EQ(Parley({"export", run_, "--out", run_ + "/out", "--step=20"}).code, kExitFailure);

  ASSERT_TRUE(files_->Remove(CheckpointDirectory(root_, 20) + "/manifest.json").ok());
  told = Parley({"verify", CheckpointDirectory(root_, 20) + "/"});
  EXPECT_EQ(told.code, kExitFailure);
  EXPECT_THAT(told.err, HasSubstr("manifest.json' is missing"));
}

TEST_F(CheckpointCommandTest, MistakesAreNamed) {
  const auto mistake = [](const CommandArgs& args) {
    const Told told = Parley(args);
    EXPECT_EQ(told.code, kExitUsage);
    return told.err;
  };
  EXPECT_THAT(mistake({}), HasSubstr("usage: parley checkpoint COMMAND"));
  EXPECT_THAT(mistake({"exprot"}), AllOf(HasSubstr("exprot"), HasSubstr("export")));
  EXPECT_THAT(mistake({"list"}), HasSubstr("DIR"));
  EXPECT_THAT(mistake({"list", run_ + "/no"}), HasSubstr("/no' does not exist; allowed: a run"));
  ASSERT_TRUE(files_->MakeDirectory(run_ + "/empty").ok());
  EXPECT_THAT(mistake({"verify", run_ + "/empty"}), HasSubstr("has no checkpoint; allowed"));
  EXPECT_THAT(mistake({"inspect", run_, "--step=15"}), HasSubstr("allowed: 10, 20"));
  EXPECT_THAT(mistake({"export", run_}), HasSubstr("--out"));
  EXPECT_THAT(mistake({"export", run_, "--out=x", "--format=pickle"}), HasSubstr("safetensors"));
  EXPECT_EQ(Parley({"export", run_, "--out", "/no/such/place/x"}).code, kExitFailure);
  EXPECT_EQ(Parley({"--help"}).code, kExitOk);
}

}  // namespace
}  // namespace parley
