#include "tools/parley/checkpoint_export.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "ps/base/dense_layout.h"
#include "ps/base/sparse_layout.h"
#include "ps/checkpoint/safetensors.h"

namespace parley {
namespace {

constexpr char kWeights[] = "weights", kKeys[] = "keys", kRows[] = "rows", kRemoved[] = "removed";

// What the optimizer and eviction keep of each row, besides slots.
bool IsOfRows(absl::string_view array) {
  return array == kRows || absl::StartsWith(array, "slot") || array == "accumulators" ||
         array == "updates" || array == "ticks";
}

absl::Status Wrong(const pb::TableSpec& table, uint32_t partition, absl::string_view why) {
  return absl::DataLossError(
      absl::StrCat("table '", table.name(), "', partition ", partition, ": ", why));
}

ExportedTensor Tensor(std::string name, absl::string_view dtype, std::vector<uint64_t> shape,
                      Buffer bytes) {
  ExportedTensor tensor{std::move(name), {}, std::move(bytes)};
  tensor.array.set_dtype(dtype.data(), dtype.size());
  for (const uint64_t n : shape) tensor.array.add_shape(n);
  return tensor;
}

class Exporter {
 public:
  Exporter(FileSystem* files, const FoundCheckpoint& checkpoint, bool slots)
      : files_(files), checkpoint_(checkpoint), slots_(slots) {
    std::map<std::string, int> tables;
    for (const pb::TableSpec& table : checkpoint.manifest.table()) {
      for (const pb::TensorSpec& tensor : table.tensor()) ++tables[tensor.name()];
    }
    for (const auto& [name, count] : tables) {
      if (count > 1) ambiguous_.insert(name);
    }
  }

  absl::Status AddDense(const pb::TableSpec& table) {
    absl::StatusOr<DenseLayout> layout = DenseLayout::Create(table);
    if (!layout.ok()) return layout.status();
    std::map<std::string, Buffer> whole;  // by array
    for (uint32_t p = 0; p < layout->partitions(); ++p) {
      absl::StatusOr<SavedPartition> saved = Read(table, p);
      if (!saved.ok()) return saved.status();
      const TableState& state = saved->states.back();
      if (state.Find(kWeights) == nullptr) return Wrong(table, p, "has no weights");
      const Range range = layout->partition(p);
      for (int i = 0; i < state.header.array_size(); ++i) {
        const pb::StateArray& array = state.header.array(i);
        if (array.name() != kWeights && !(slots_ && absl::StartsWith(array.name(), "slot"))) {
          continue;
        }
        if (array.dtype() != "F32" || state.bytes[i].size() != range.size() * sizeof(float)) {
          return Wrong(table, p, absl::StrCat(array.name(), " are not ", range.size(), " of F32"));
        }
        Buffer& all = whole[array.name()];
        if (p == 0) all = Buffer::Allocate(layout->elements() * sizeof(float));
        if (all.empty()) return Wrong(table, p, absl::StrCat("has ", array.name(), ", 0 has none"));
        std::memcpy(all.mutable_data() + range.begin * sizeof(float), state.bytes[i].data(),
                    state.bytes[i].size());
      }
    }
    for (const auto& [array, bytes] : whole) {
      for (int t = 0; t < table.tensor_size(); ++t) {
        const pb::TensorSpec& spec = table.tensor(t);
        std::string name = spec.name();
        if (ambiguous_.count(name) != 0) name = absl::StrCat(table.name(), ".", name);
        if (array != kWeights) absl::StrAppend(&name, ".", array);
        const Range range = layout->tensor(t);
        tensors_.push_back(
            Tensor(std::move(name), "F32", {spec.shape().begin(), spec.shape().end()},
                   bytes.Slice(range.begin * sizeof(float), range.size() * sizeof(float))));
      }
    }
    return absl::OkStatus();
  }

  absl::Status AddSparse(const pb::TableSpec& table) {
    absl::StatusOr<SparseLayout> layout = SparseLayout::Create(table);
    if (!layout.ok()) return layout.status();
    // Where the newest bytes of a row are.
    struct Place {
      const TableState* state;
      uint64_t row;
    };
    std::map<uint64_t, Place> rows;
    std::vector<SavedPartition> all(layout->partitions());  // what the places refer to
    for (uint32_t p = 0; p < layout->partitions(); ++p) {
      absl::StatusOr<SavedPartition> saved = Read(table, p);
      if (!saved.ok()) return saved.status();
      all[p] = *std::move(saved);
      for (const TableState& state : all[p].states) {
        absl::StatusOr<std::vector<uint64_t>> keys = Keys(state, kKeys);
        absl::StatusOr<std::vector<uint64_t>> removed = Keys(state, kRemoved);
        if (!keys.ok()) return Wrong(table, p, keys.status().message());
        if (!removed.ok()) return Wrong(table, p, removed.status().message());
        for (const uint64_t key : *removed) rows.erase(key);
        for (uint64_t row = 0; row < keys->size(); ++row) rows[(*keys)[row]] = {&state, row};
      }
    }
    Buffer keys = Buffer::Allocate(rows.size() * sizeof(uint64_t));
    uint64_t at = 0;
    for (const auto& [key, place] : rows) {
      std::memcpy(keys.mutable_data() + at++ * sizeof(key), &key, sizeof(key));
    }
    tensors_.push_back(Tensor(absl::StrCat(table.name(), ".", kKeys), "U64", {rows.size()}, keys));
    // All partitions have the same arrays; the first says which.
    const pb::TableState& like = all[0].states[0].header;
    for (const pb::StateArray& array : like.array()) {
      if (!IsOfRows(array.name()) || (array.name() != kRows && !slots_)) continue;
      std::vector<uint64_t> shape(array.shape().begin(), array.shape().end());
      if (shape.empty()) continue;
      uint64_t row_bytes = DtypeBytes(array.dtype());
      for (size_t d = 1; d < shape.size(); ++d) row_bytes *= shape[d];
      shape[0] = rows.size();
      Buffer bytes = Buffer::Allocate(rows.size() * row_bytes);
      uint64_t to = 0;
      for (const auto& [key, place] : rows) {
        const Buffer* from = place.state->Find(array.name());
        if (from == nullptr || from->size() < (place.row + 1) * row_bytes) {
          return Wrong(table, layout->PartitionOf(key),
                       absl::StrCat("has no ", array.name(), " of key ", key));
        }
        std::memcpy(bytes.mutable_data() + to, from->data() + place.row * row_bytes, row_bytes);
        to += row_bytes;
      }
      tensors_.push_back(Tensor(absl::StrCat(table.name(), ".", array.name()), array.dtype(),
                                std::move(shape), std::move(bytes)));
    }
    return absl::OkStatus();
  }

  std::vector<ExportedTensor> Take() { return std::move(tensors_); }

 private:
  absl::StatusOr<SavedPartition> Read(const pb::TableSpec& table, uint32_t partition) {
    return ReadPartition(files_, checkpoint_.directory, checkpoint_.manifest, table.id(), partition,
                         &pool_);
  }

  static absl::StatusOr<std::vector<uint64_t>> Keys(const TableState& state,
                                                    const std::string& array) {
    std::vector<uint64_t> keys;
    const Buffer* bytes = state.Find(array);
    if (bytes == nullptr) {
      if (array == kRemoved) return keys;
      return absl::DataLossError(absl::StrCat("has no ", array));
    }
    if (bytes->size() % sizeof(uint64_t) != 0) {
      return absl::DataLossError(absl::StrCat(array, " are not U64"));
    }
    keys.resize(bytes->size() / sizeof(uint64_t));
    if (!keys.empty()) std::memcpy(keys.data(), bytes->data(), bytes->size());
    return keys;
  }

  FileSystem* const files_;
  const FoundCheckpoint& checkpoint_;
  const bool slots_;
  std::set<std::string> ambiguous_;  // names of tensors of more than one table
  BufferPool pool_;
  std::vector<ExportedTensor> tensors_;
};

absl::Span<const std::byte> BytesOf(absl::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

// The pieces one after another, beside `path` and renamed.
absl::Status WritePieces(FileSystem* files, const std::string& path,
                         const std::vector<absl::Span<const std::byte>>& pieces) {
  const std::string beside = path + ".new";
  {
    absl::StatusOr<std::unique_ptr<WritableFile>> file = files->Create(beside);
    if (!file.ok()) return file.status();
    absl::Status status;
    for (size_t i = 0; status.ok() && i < pieces.size(); ++i) status = (*file)->Append(pieces[i]);
    if (status.ok()) status = (*file)->Sync();
    if (!status.ok()) {
      files->Remove(beside).IgnoreError();  // the first error is the one to tell
      return status;
    }
  }
  return files->Rename(beside, path);
}

Buffer WidenedBf16(const Buffer& from) {
  Buffer wide = Buffer::Allocate(from.size() * 2);
  for (size_t i = 0; i < from.size(); i += 2) {
    const std::byte zero[2] = {};
    std::memcpy(wide.mutable_data() + 2 * i, zero, 2);
    std::memcpy(wide.mutable_data() + 2 * i + 2, from.data() + i, 2);
  }
  return wide;
}

}  // namespace

absl::StatusOr<std::vector<ExportedTensor>> ExportTensors(FileSystem* files,
                                                          const FoundCheckpoint& checkpoint,
                                                          bool slots) {
  Exporter exporter(files, checkpoint, slots);
  for (const pb::TableSpec& table : checkpoint.manifest.table()) {
    absl::Status status = table.has_sparse() ? exporter.AddSparse(table) : exporter.AddDense(table);
    if (!status.ok()) return status;
  }
  return exporter.Take();
}

absl::Status WriteSafetensors(FileSystem* files, const std::string& path,
                              const std::vector<ExportedTensor>& tensors) {
  std::vector<SafetensorsTensor> named;
  for (const ExportedTensor& tensor : tensors) named.push_back({tensor.name, tensor.array});
  absl::StatusOr<SafetensorsHead> head = MakeSafetensorsHead(named, {{"producer", "parley"}});
  if (!head.ok()) return head.status();
  std::vector<absl::Span<const std::byte>> pieces = {BytesOf(head->bytes)};
  for (const size_t i : head->write_order) {
    pieces.push_back({tensors[i].bytes.data(), tensors[i].bytes.size()});
  }
  return WritePieces(files, path, pieces);
}

absl::Status WriteNpy(FileSystem* files, const std::string& directory,
                      const std::vector<ExportedTensor>& tensors) {
  static const std::map<std::string, std::string> kDescr = {
      {"F32", "<f4"}, {"F16", "<f2"}, {"BF16", "<f4"}, {"F64", "<f8"},
      {"U64", "<u8"}, {"U32", "<u4"}, {"U16", "<u2"},  {"U8", "|u1"},
      {"I64", "<i8"}, {"I32", "<i4"}, {"I16", "<i2"},  {"I8", "|i1"}};
  if (absl::Status status = files->MakeDirectory(directory); !status.ok()) return status;
  std::set<std::string> names;
  for (const ExportedTensor& tensor : tensors) {
    const std::string path =
        absl::StrCat(directory, "/", absl::StrReplaceAll(tensor.name, {{"/", "_"}}), ".npy");
    const auto descr = kDescr.find(tensor.array.dtype());
    if (descr == kDescr.end() || !names.insert(path).second) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tensor '", tensor.name, "' of ", tensor.array.dtype(), " has no npy file of its own"));
    }
    const auto& shape = tensor.array.shape();
    std::string head =
        absl::StrCat("{'descr': '", descr->second, "', 'fortran_order': False, 'shape': (",
                     absl::StrJoin(shape, ", "), shape.size() == 1 ? "," : "", "), }");
    // Magic, version 1.0, length: 10 bytes; all of it a multiple of 64 that ends in a newline.
    head.resize((10 + head.size() + 1 + 63) / 64 * 64 - 10 - 1, ' ');
    head += '\n';
    std::string begin("\x93NUMPY\x01\x00", 8);
    begin += static_cast<char>(head.size() & 0xFF);
    begin += static_cast<char>(head.size() >> 8);
    const Buffer bytes = tensor.array.dtype() == "BF16" ? WidenedBf16(tensor.bytes) : tensor.bytes;
    absl::Status status =
        WritePieces(files, path, {BytesOf(begin), BytesOf(head), {bytes.data(), bytes.size()}});
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace parley
