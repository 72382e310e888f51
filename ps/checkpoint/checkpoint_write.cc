// Writing: one file of a checkpoint.
#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "ps/checkpoint/checkpoint_files.h"
#include "ps/checkpoint/file_hash.h"
#include "ps/checkpoint/manifest.h"
#include "ps/checkpoint/safetensors.h"

namespace parley {
namespace {

// The tensors of a file, with their bytes, and where each goes in its description.
class Arrays {
 public:
  // As many arrays as `state` has. The state outlives this.
  absl::Status Add(const TableState& state,
                   const std::function<std::string(absl::string_view)>& name,
                   google::protobuf::RepeatedField<uint64_t>* offsets,
                   google::protobuf::RepeatedField<uint32_t>* checksums) {
    if (absl::Status status = state.Check(); !status.ok()) return status;
    for (int i = 0; i < state.header.array_size(); ++i) {
      const pb::StateArray& array = state.header.array(i);
      const Buffer& buffer = state.bytes[i];
      AddOne(name(array.name()), array, {buffer.data(), buffer.size()}, offsets, checksums);
    }
    return absl::OkStatus();
  }

  void AddOne(std::string name, const pb::StateArray& array, absl::Span<const std::byte> bytes,
              google::protobuf::RepeatedField<uint64_t>* offsets,
              google::protobuf::RepeatedField<uint32_t>* checksums) {
    tensors_.push_back({std::move(name), array});
    bytes_.push_back(bytes);
    offsets_.push_back(offsets);
    checksums->Add(Crc32(bytes));
  }

  // Fills in the offsets, in the order of Add.
  absl::StatusOr<SafetensorsHead> MakeHead() {
    absl::StatusOr<SafetensorsHead> head =
        MakeSafetensorsHead(tensors_, {{"parley_checkpoint", absl::StrCat(kCheckpointFormat)}});
    if (!head.ok()) return head.status();
    for (size_t i = 0; i < offsets_.size(); ++i) offsets_[i]->Add(head->offset[i]);
    return head;
  }

  absl::Span<const std::byte> bytes(size_t i) const { return bytes_[i]; }

 private:
  std::vector<SafetensorsTensor> tensors_;
  std::vector<absl::Span<const std::byte>> bytes_;
  std::vector<google::protobuf::RepeatedField<uint64_t>*> offsets_;
};

absl::Span<const std::byte> BytesOf(absl::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

// Adds to the message of an error what it is about.
absl::Status Of(const absl::Status& status, absl::string_view what) {
  return absl::Status(status.code(), absl::StrCat(what, ": ", status.message()));
}

}  // namespace

absl::StatusOr<pb::CheckpointFile> WriteCheckpointFile(FileSystem* files,
                                                       const std::string& directory,
                                                       const std::string& name,
                                                       absl::Span<const PartitionRecord> partitions,
                                                       absl::Span<const WorkerRecord> workers) {
  const std::string path = absl::StrCat(directory, "/", name);
  pb::CheckpointFile description;
  description.set_name(name);
  Arrays arrays;
  for (const PartitionRecord& record : partitions) {
    pb::CheckpointPartition* saved = description.add_partition();
    saved->set_table(record.table);
    saved->set_partition(record.partition);
    *saved->mutable_state() = record.state.header;
    const auto tensor = [&](absl::string_view array) {
      return PartitionTensor(record.table_name, record.partition, array);
    };
    absl::Status status =
        arrays.Add(record.state, tensor, saved->mutable_offset(), saved->mutable_crc32());
    if (!status.ok()) return Of(status, absl::StrCat("'", path, "': ", tensor("")));
    if (record.server_state.empty()) continue;
    saved->set_server_state_bytes(record.server_state.size());
    pb::StateArray array;
    array.set_dtype("U8");
    array.add_shape(record.server_state.size());
    arrays.AddOne(tensor("server_state"), array, BytesOf(record.server_state),
                  saved->mutable_offset(), saved->mutable_crc32());
  }
  for (const WorkerRecord& record : workers) {
    pb::WorkerState* saved = description.add_worker();
    saved->set_rank(record.rank);
    *saved->mutable_state() = record.state.header;
    const auto tensor = [&](absl::string_view array) { return WorkerTensor(record.rank, array); };
    absl::Status status =
        arrays.Add(record.state, tensor, saved->mutable_offset(), saved->mutable_crc32());
    if (!status.ok()) return Of(status, absl::StrCat("'", path, "': ", tensor("")));
  }
  absl::StatusOr<SafetensorsHead> head = arrays.MakeHead();
  if (!head.ok()) return Of(head.status(), absl::StrCat("'", path, "'"));
  description.set_bytes(head->file_bytes);

  absl::StatusOr<std::unique_ptr<WritableFile>> file = files->Create(path);
  if (!file.ok()) return file.status();
  FileHash hash;
  const auto append = [&](absl::Span<const std::byte> bytes) {
    hash.Add(bytes);
    return (*file)->Append(bytes);
  };
  absl::Status status = append(BytesOf(head->bytes));
  for (size_t i = 0; status.ok() && i < head->write_order.size(); ++i) {
    status = append(arrays.bytes(head->write_order[i]));
  }
  if (status.ok()) status = (*file)->Sync();
  if (status.ok()) status = files->SyncDirectory(directory);
  if (!status.ok()) return status;
  description.set_blake2b(hash.Hex());
  return description;
}

}  // namespace parley
