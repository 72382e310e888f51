// Checkpoints on a bad disk, or of a stranger: manifest, verification, arrays, and the partitions
// that are made from them.
//
//   u8 mode, modulo 3
//   0: a manifest's text      u8 how (bit 0: it gets its checksum), then the text
//   1: a manifest's message   u8 how (bits: sizes and BLAKE2b; CRC-32 of arrays are made right),
//                             u8 kind of FuzzTable, u16 its size, the message, then the files'
//                             contents, in its order: u16 size, bytes
//   2: a good disk, damaged   u8 kind of FuzzTable, then edits: u8 file, u8 what, u16 where, u8
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "ps/base/sim_file_system.h"
#include "ps/checkpoint/checkpoint_files.h"
#include "ps/checkpoint/file_hash.h"
#include "ps/checkpoint/manifest.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/fuzz/fuzz_tables.h"
#include "tests/fuzz/good_disk.h"

namespace parley {
namespace {

constexpr const char* kRoot = GoodDisk::kRoot;
constexpr uint64_t kStep = GoodDisk::kStep;

bool IsRefusal(const absl::Status& status) {
  return (absl::IsDataLoss(status) || absl::IsInvalidArgument(status) ||
          absl::IsNotFound(status)) &&
         !status.message().empty();
}

absl::Span<const std::byte> BytesOf(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

std::string Hash(const std::string& text) {
  FileHash hash;
  hash.Add(text);
  return hash.Hex();
}

// The text up to where ManifestText puts the checksum, and it.
std::string WithChecksum(const std::string& body) {
  return body + ",\n \"checksum\": \"" + Hash(body) + "\"\n}\n";
}

void Put(SimFileSystem* disk, const std::string& path, const std::string& bytes) {
  Check(disk->WriteWhole(path, bytes).ok(), "a disk without faults takes a file");
}

// What a partition makes of what was saved: nothing, or one that can be saved and loaded again.
void LoadInto(FuzzTable* table, SavedPartition saved, uint64_t step) {
  const auto partition = table->Make();
  const absl::Status status = partition->LoadCheckpoint(std::move(saved.states), step);
  if (!status.ok()) {
    Check(IsRefusal(status), "what does not fit a partition is refused");
    return;
  }
  const auto again = table->Make();
  std::vector<TableState> states;
  states.push_back(partition->SaveCheckpoint(/*changes_only=*/false));
  Check(states[0].Check().ok(), "what is saved is whole");
  Check(again->LoadCheckpoint(std::move(states), step).ok(), "what was loaded can be saved");
  Check(again->Digest() == partition->Digest(), "and is the same then");
}

// All that can be asked of the checkpoint of kStep, whatever is in its directory.
void ReadEverything(SimFileSystem* disk, FuzzTable* table) {
  const std::string directory = CheckpointDirectory(kRoot, kStep);
  const absl::StatusOr<pb::CheckpointManifest> manifest = ReadManifest(disk, directory);
  const absl::Status verified = VerifyCheckpoint(disk, directory, nullptr);
  Check(manifest.ok() || !verified.ok(), "what has no manifest does not verify");
  const auto found = FindCheckpoint(disk, kRoot, [](const std::string&) {});
  Check(found.ok() == verified.ok(), "what verifies is found, and nothing else is");
  if (!manifest.ok()) {
    Check(IsRefusal(manifest.status()), "a manifest is refused, and why");
    return;
  }
  Check(CheckManifest(*manifest).ok(), "what is read keeps its promises");
  Check(ManifestText(*manifest).ok(), "and can be written again");
  uint64_t on_disk = 0;
  std::set<std::pair<uint32_t, uint32_t>> partitions;
  std::set<uint32_t> ranks;
  for (const pb::CheckpointFile& file : manifest->file()) {
    on_disk += disk->Size(directory + "/" + file.name()).value_or(0);
    for (const auto& saved : file.partition()) {
      partitions.emplace(saved.table(), saved.partition());
    }
    for (const auto& saved : file.worker()) ranks.insert(saved.rank());
  }
  uint64_t taken = 0;
  const auto take = [&](const TableState& state) {
    Check(state.bytes.size() == static_cast<size_t>(state.header.array_size()),
          "each array has its bytes");
    taken += state.total_bytes();
  };
  for (const auto& [id, index] : partitions) {
    auto read = ReadPartition(disk, directory, *manifest, id, index, table->pool());
    if (!read.ok()) {
      Check(IsRefusal(read.status()), "a partition is refused, and why");
      continue;
    }
    Check(!read->states.empty() && !read->states[0].header.changes_only(), "all comes first");
    for (const TableState& state : read->states) take(state);
    taken += read->server_state.size();
    LoadInto(table, *std::move(read), manifest->step());
  }
  for (const uint32_t rank : ranks) {
    const auto read = ReadWorker(disk, directory, *manifest, rank, table->pool());
    if (read.ok()) take(*read);
    Check(read.ok() || IsRefusal(read.status()), "a worker is refused, and why");
  }
  Check(taken <= on_disk, "memory is taken for bytes that are there, once");
}

void RunText(FuzzInput input) {
  const auto how = input.Take<uint8_t>();
  const std::string text(input.TakeRest());
  SimFileSystem disk(1);
  const std::string directory = CheckpointDirectory(kRoot, kStep);
  Check(disk.MakeDirectory(directory).ok(), "a directory can be made");
  Put(&disk, directory + "/" + kManifestName, how & 1 ? WithChecksum(text) : text);
  FuzzTable table(FuzzTable::kDense);
  ReadEverything(&disk, &table);
}

// What follows from the contents of `file`.
void MakeRight(uint8_t how, const std::string& content, pb::CheckpointFile* file) {
  if (how & 1) {
    file->set_bytes(content.size());
    file->set_blake2b(Hash(content));
  }
  if (!(how & 2)) return;
  const auto checksums = [&](const pb::TableState& state, uint64_t more, auto* saved) {
    for (int i = 0; i < saved->crc32_size() && i < saved->offset_size(); ++i) {
      uint64_t bytes = more;
      if (i < state.array_size() && !ArrayBytes(state.array(i), &bytes).ok()) continue;
      const uint64_t offset = saved->offset(i);
      if (bytes > content.size() || offset > content.size() - bytes) continue;
      saved->set_crc32(i, Crc32(BytesOf(content).subspan(offset, bytes)));
    }
  };
  for (auto& saved : *file->mutable_partition()) {
    checksums(saved.state(), saved.server_state_bytes(), &saved);
  }
  for (auto& saved : *file->mutable_worker()) checksums(saved.state(), 0, &saved);
}

void RunMessage(FuzzInput input) {
  const auto how = input.Take<uint8_t>();
  FuzzTable table(input.Take<uint8_t>());
  const auto size = input.Take<uint16_t>();
  pb::CheckpointManifest manifest;
  const std::string_view message = input.TakeBytes(size);
  if (!manifest.ParseFromArray(message.data(), static_cast<int>(message.size()))) return;
  SimFileSystem disk(1);
  const std::string directory = CheckpointDirectory(kRoot, kStep);
  Check(disk.MakeDirectory(directory).ok(), "a directory can be made");
  for (pb::CheckpointFile& file : *manifest.mutable_file()) {
    const auto bytes = input.Take<uint16_t>();
    const std::string content(input.TakeBytes(bytes));
    MakeRight(how, content, &file);
    const bool plain =
        !file.name().empty() && file.name()[0] != '.' && file.name().find('/') == std::string::npos;
    if (plain && !content.empty()) Put(&disk, directory + "/" + file.name(), content);
  }
  manifest.clear_checksum();
  if (how & 4) manifest.set_format(kCheckpointFormat);
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string text;
  if (!google::protobuf::util::MessageToJsonString(manifest, &text, options).ok()) return;
  if (text.size() > 2) text.pop_back();  // the brace, which comes behind the checksum
  Put(&disk, directory + "/" + kManifestName, WithChecksum(text));
  ReadEverything(&disk, &table);
}

void Edit(SimFileSystem* disk, const std::vector<std::string>& paths, FuzzInput* input) {
  const std::string& path = paths[input->Take<uint8_t>() % paths.size()];
  const auto what = input->Take<uint8_t>();
  const auto where = input->Take<uint16_t>();
  const auto value = input->Take<uint8_t>();
  std::string* content = disk->Content(path);
  if (content == nullptr) return;
  const size_t at = content->empty() ? 0 : where % content->size();
  switch (what % 6) {
    case 0:
      if (!content->empty()) (*content)[at] = static_cast<char>((*content)[at] ^ value);
      break;
    case 1:
      content->resize(at);
      break;
    case 2:
      content->append(1 + value, static_cast<char>(where));
      break;
    case 3:  // sectors that were never written
      std::fill(content->begin() + static_cast<ptrdiff_t>(at),
                content->begin() + static_cast<ptrdiff_t>(std::min(content->size(), at + value)),
                '\0');
      break;
    case 4:
      Check(disk->Remove(path).ok(), "a file can be removed");
      break;
    case 5:
      if (const std::string* other = disk->Content(paths[value % paths.size()])) {
        const std::string copy = *other;
        *disk->Content(path) = copy;
      }
      break;
  }
}

void RunDamage(FuzzInput input) {
  FuzzTable table(input.Take<uint8_t>());
  static std::map<uint8_t, GoodDisk::Contents> good_disks;
  GoodDisk::Contents& good = good_disks[table.kind()];
  if (good.empty()) good = GoodDisk::Make(&table);
  SimFileSystem disk(1);
  std::vector<std::string> paths;
  for (const auto& [path, content] : good) {
    paths.push_back(path);
    Check(disk.MakeDirectory(path.substr(0, path.rfind('/'))).ok(), "a directory can be made");
    Put(&disk, path, content);
  }
  for (int edits = 0; edits < 16 && input.left() > 0; ++edits) Edit(&disk, paths, &input);

  std::string newest;
  for (const uint64_t step : {GoodDisk::kEarlier, kStep}) {
    const std::string directory = CheckpointDirectory(kRoot, step);
    bool same = true;
    for (const auto& [path, content] : good) {
      if (path.compare(0, directory.size(), directory) != 0) continue;
      const std::string* now = disk.Content(path);
      same &= now != nullptr && *now == content;
    }
    const absl::Status verified = VerifyCheckpoint(&disk, directory, nullptr);
    // Or the other one, whole, in this one's place: its manifest says so.
    if (verified.ok() && !same) {
      const std::string other = CheckpointDirectory(kRoot, GoodDisk::kEarlier + kStep - step);
      const std::string name = std::string("/") + kManifestName;
      same = *disk.Content(directory + name) == good[other + name];
    }
    Check(verified.ok() == same, "a checkpoint verifies exactly if it is what was written");
    Check(same || IsRefusal(verified), "and else it is said why");
    if (same) newest = directory;
    const auto manifest = ReadManifest(&disk, directory);
    if (!manifest.ok()) continue;
    // Whoever reads a part of a file that nobody verified sees what was written, or an error.
    auto read = ReadPartition(&disk, directory, *manifest, 1, 0, table.pool());
    Check(read.ok() || (!same && IsRefusal(read.status())), "a partition is read, or refused");
    if (!read.ok()) continue;
    const auto partition = table.Make();
    Check(partition->LoadCheckpoint(std::move(read->states), step).ok(), "what was saved loads");
    if (!same) continue;
    LoadInto(&table, *ReadPartition(&disk, directory, *manifest, 1, 0, table.pool()), step);
  }
  int lines = 0;
  const auto found = FindCheckpoint(&disk, kRoot, [&](const std::string&) { ++lines; });
  Check(found.ok() == !newest.empty(), "a whole checkpoint is found");
  if (found.ok()) Check(found->directory == newest, "the newest that is whole");
  if (found.ok()) {
    Check((lines > 0) == (newest != CheckpointDirectory(kRoot, kStep)), "others are spoken of");
  }
}

}  // namespace
}  // namespace parley

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  parley::FuzzInput input(data, size);
  switch (input.Take<uint8_t>() % 3) {
    case 0:
      parley::RunText(input);
      break;
    case 1:
      parley::RunMessage(input);
      break;
    default:
      parley::RunDamage(input);
  }
  return 0;
}
