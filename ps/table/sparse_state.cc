// SparsePartition's saved state: sums, saving, loading, digest.
#include <algorithm>
#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/table/sparse_partition.h"
#include "ps/table/state_arrays.h"
#include "ps/table/state_digest.h"

namespace parley {
namespace {

// A part of every row, and the array that it is saved in.
struct Column {
  std::string name;
  const char* dtype;
  uint32_t at;     // bytes from the begin of the row
  uint32_t bytes;  // of a row
  bool is_vector;  // [rows, dim]; else [rows]

  std::vector<uint64_t> Shape(uint64_t rows, uint64_t dim) const {
    return is_vector ? std::vector<uint64_t>{rows, dim} : std::vector<uint64_t>{rows};
  }
};

std::vector<Column> ColumnsOf(const RowFormat& format) {
  const char* dtype = format.storage == RowStorage::kFloat16    ? "F16"
                      : format.storage == RowStorage::kBfloat16 ? "BF16"
                                                                : "F32";
  std::vector<Column> columns = {{"rows", dtype, 0, format.weight_bytes, true}};
  const uint32_t slot_bytes = format.dim * sizeof(float);
  for (uint32_t s = 0; s < format.slots; ++s) {
    columns.push_back(
        {absl::StrCat("slot", s), "F32", format.slots_at + s * slot_bytes, slot_bytes, true});
  }
  const auto add = [&](const char* name, const char* type, uint32_t at) {
    if (at != RowFormat::kNone) columns.push_back({name, type, at, 4, false});
  };
  add("accumulators", "F32", format.accumulator_at);
  add("updates", "U32", format.updates_at);
  add("ticks", "U32", format.tick_at);
  return columns;
}

// Writes rows side by side into arrays of their columns.
class RowWriter {
 public:
  RowWriter(const RowFormat& format, uint64_t rows, BufferPool* pool)
      : columns_(ColumnsOf(format)), rows_(rows), dim_(format.dim) {
    arrays_.push_back(pool->Allocate(rows * sizeof(uint64_t)));
    for (const Column& column : columns_) arrays_.push_back(pool->Allocate(rows * column.bytes));
  }

  void Add(uint64_t hash, const uint8_t* row) {
    const uint64_t key = KeyOfHash(hash);
    std::memcpy(arrays_[0].mutable_data() + written_ * sizeof(key), &key, sizeof(key));
    for (size_t c = 0; c < columns_.size(); ++c) {
      const Column& column = columns_[c];
      std::memcpy(arrays_[c + 1].mutable_data() + written_ * column.bytes, row + column.at,
                  column.bytes);
    }
    ++written_;
  }

  void MoveTo(TableState* state) {
    state->Add("keys", "U64", {rows_}, std::move(arrays_[0]));
    for (size_t c = 0; c < columns_.size(); ++c) {
      state->Add(columns_[c].name, columns_[c].dtype, columns_[c].Shape(rows_, dim_),
                 std::move(arrays_[c + 1]));
    }
  }

 private:
  const std::vector<Column> columns_;
  const uint64_t rows_;
  const uint64_t dim_;
  std::vector<Buffer> arrays_;  // keys, then by column
  uint64_t written_ = 0;
};

Buffer CopyOf(const void* bytes, size_t size, BufferPool* pool) {
  Buffer buffer = pool->Allocate(size);
  if (size > 0) std::memcpy(buffer.mutable_data(), bytes, size);
  return buffer;
}

uint32_t CountAt(const std::byte* counts, size_t i) {
  uint32_t count;
  std::memcpy(&count, counts + i * sizeof(count), sizeof(count));
  return count;
}

std::vector<uint64_t> SortedHashes(KeyList keys) {
  std::vector<uint64_t> hashes(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) hashes[i] = KeyHash(keys[i]);
  // As Save writes them they are.
  if (!std::is_sorted(hashes.begin(), hashes.end())) std::sort(hashes.begin(), hashes.end());
  return hashes;
}

}  // namespace

// What Load takes, checked.
struct SparsePartition::LoadedState {
  bool changes = false;
  KeyList keys, removed, candidates;
  std::vector<uint64_t> removed_hashes;  // ascending
  std::vector<Column> columns;           // of the rows of `keys`
  std::vector<const std::byte*> values;  // by column
  const std::byte* candidate_counts = nullptr;
  const std::byte* counters = nullptr;
};

SummedGradient SparsePartition::Sum(absl::Span<const GradientView> gradients) {
  const uint64_t dim = layout_.dim();
  SummedGradient sum;
  const GradientView* only = nullptr;
  int with_keys = 0;
  for (const GradientView& gradient : gradients) {
    if (gradient.keys.empty()) continue;
    only = &gradient;
    ++with_keys;
  }
  if (with_keys <= 1) {
    const uint64_t keys = only == nullptr ? 0 : only->keys.size();
    sum.keys = pool_->Allocate(keys * sizeof(uint64_t));
    sum.values = pool_->Allocate(keys * dim * sizeof(float));
    for (uint64_t i = 0; i < keys; ++i) {
      const uint64_t key = only->keys[i];
      std::memcpy(sum.keys.mutable_data() + i * sizeof(key), &key, sizeof(key));
    }
    if (keys > 0) std::memcpy(sum.values.mutable_data(), only->values, sum.values.size());
    return sum;
  }
  merger_.Merge(gradients, dim);
  const uint32_t* const first = merger_.first();
  sum.keys = pool_->Allocate(merger_.keys() * sizeof(uint64_t));
  sum.values = pool_->Allocate(merger_.keys() * dim * sizeof(float));
  for (uint64_t k = 0; k < merger_.keys(); ++k) {
    const uint64_t key = KeyOfHash(merger_.hashes()[k]);
    std::memcpy(sum.keys.mutable_data() + k * sizeof(key), &key, sizeof(key));
    Optimizer::Sum(dim, {merger_.gradients() + first[k], first[k + 1] - first[k]},
                   sum.values.mutable_floats() + k * dim);
  }
  return sum;
}

void SparsePartition::SaveTable(TableState* state) {
  state->header.set_version(version_);
  const uint64_t counters[] = {evicted_, now_};
  state->Add("counters", "U64", {2}, CopyOf(counters, sizeof(counters), pool_));
  if (!candidates_.has_value()) return;
  std::vector<std::pair<uint64_t, uint32_t>> candidates;
  candidates.reserve(candidates_->size());
  candidates_->ForEach(
      [&](uint64_t hash, uint32_t count) { candidates.emplace_back(hash, count); });
  std::sort(candidates.begin(), candidates.end());
  const uint64_t n = candidates.size();
  Buffer keys = pool_->Allocate(n * sizeof(uint64_t));
  Buffer counts = pool_->Allocate(n * sizeof(uint32_t));
  for (uint64_t i = 0; i < n; ++i) {
    const uint64_t key = KeyOfHash(candidates[i].first);
    const uint32_t count = candidates[i].second;
    std::memcpy(keys.mutable_data() + i * sizeof(key), &key, sizeof(key));
    std::memcpy(counts.mutable_data() + i * sizeof(count), &count, sizeof(count));
  }
  state->Add("candidates", "U64", {n}, std::move(keys));
  state->Add("candidate_counts", "U32", {n}, std::move(counts));
}

TableState SparsePartition::Save() {
  TableState state;
  RowWriter writer(format_, rows_.rows(), pool_);
  rows_.ForEachInOrder([&](uint64_t hash, const uint8_t* row) { writer.Add(hash, row); });
  writer.MoveTo(&state);
  SaveTable(&state);
  return state;
}

TableState SparsePartition::SaveChanges() {
  if (!touched_.knows()) return Save();
  TableState state;
  state.header.set_changes_only(true);
  uint64_t rows = 0;
  rows_.ForEach(0, RowTable::kLastHash,
                [&](uint64_t hash, const uint8_t*) { rows += touched_.IsTouched(hash); });
  RowWriter writer(format_, rows, pool_);
  rows_.ForEachInOrder([&](uint64_t hash, const uint8_t* row) {
    if (touched_.IsTouched(hash)) writer.Add(hash, row);
  });
  writer.MoveTo(&state);

  std::vector<uint64_t> removed;
  for (const uint64_t hash : touched_.Gone()) {
    uint8_t* row = nullptr;  // it may have come back
    rows_.Find(&hash, 1, &row);
    if (row == nullptr) removed.push_back(KeyOfHash(hash));
  }
  state.Add("removed", "U64", {removed.size()},
            CopyOf(removed.data(), removed.size() * sizeof(uint64_t), pool_));
  SaveTable(&state);
  return state;
}

void SparsePartition::MarkSaved() { touched_.Begin(rows_.rows()); }

absl::Status SparsePartition::CheckState(const TableState& state, LoadedState* loaded) const {
  StateArrays arrays(state, absl::StrFormat("table '%s', partition %d", table_, index_));
  if (absl::Status status = arrays.Check(/*changes_allowed=*/true); !status.ok()) return status;
  loaded->changes = state.header.changes_only();
  if (loaded->changes && state.header.version() < version_) {
    return arrays.Error(absl::StrFormat("changes up to version %d, allowed are from %d on",
                                        state.header.version(), version_));
  }
  const auto take_keys = [&](absl::string_view name, KeyList* keys) {
    const absl::StatusOr<KeyList> taken = arrays.TakeKeys(name);
    if (!taken.ok()) return taken.status();
    *keys = *taken;
    if (absl::Status status = CheckKeys(*keys); !status.ok()) {
      return arrays.Error(absl::StrCat("array '", name, "': ", status.message()));
    }
    return absl::OkStatus();
  };
  const auto take = [&](absl::string_view name, absl::string_view dtype,
                        const std::vector<uint64_t>& shape, const std::byte** bytes) {
    const absl::StatusOr<const std::byte*> taken = arrays.Take(name, dtype, shape);
    if (taken.ok()) *bytes = *taken;
    return taken.status();
  };
  if (absl::Status status = take_keys("keys", &loaded->keys); !status.ok()) return status;
  loaded->columns = ColumnsOf(format_);
  for (const Column& column : loaded->columns) {
    const std::vector<uint64_t> shape = column.Shape(loaded->keys.size(), format_.dim);
    absl::Status status =
        take(column.name, column.dtype, shape, &loaded->values.emplace_back(nullptr));
    if (!status.ok()) return status;
  }
  if (absl::Status status = take("counters", "U64", {2}, &loaded->counters); !status.ok()) {
    return status;
  }
  if (candidates_.has_value()) {
    absl::Status status = take_keys("candidates", &loaded->candidates);
    if (status.ok()) {
      status =
          take("candidate_counts", "U32", {loaded->candidates.size()}, &loaded->candidate_counts);
    }
    if (!status.ok()) return status;
  }
  if (loaded->changes) {
    if (absl::Status status = take_keys("removed", &loaded->removed); !status.ok()) return status;
  }
  if (absl::Status status = arrays.CheckAllTaken(); !status.ok()) return status;
  return CheckLists(arrays, loaded);
}

absl::Status SparsePartition::CheckLists(const StateArrays& arrays, LoadedState* loaded) const {
  std::vector<uint64_t> hashes = SortedHashes(loaded->keys);
  loaded->removed_hashes = SortedHashes(loaded->removed);
  const auto check_distinct = [&](absl::string_view name, const std::vector<uint64_t>& sorted) {
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    if (twice == sorted.end()) return absl::OkStatus();
    return arrays.Error(
        absl::StrFormat("array '%s' has key %d twice, allowed is once", name, KeyOfHash(*twice)));
  };
  absl::Status status = check_distinct("keys", hashes);
  if (status.ok()) status = check_distinct("removed", loaded->removed_hashes);
  if (status.ok()) status = check_distinct("candidates", SortedHashes(loaded->candidates));
  if (!status.ok()) return status;
  for (const uint64_t hash : loaded->removed_hashes) {
    if (!std::binary_search(hashes.begin(), hashes.end(), hash)) continue;
    return arrays.Error(absl::StrFormat("key %d is in 'keys' and in 'removed', allowed is in one",
                                        KeyOfHash(hash)));
  }
  for (size_t i = 0; i < loaded->candidates.size(); ++i) {
    const uint32_t count = CountAt(loaded->candidate_counts, i);
    if (count > 0 && count < candidates_->wanted()) continue;
    return arrays.Error(
        absl::StrFormat("array 'candidate_counts' has %d for key %d, allowed are "
                        "1 to %d",
                        count, loaded->candidates[i], candidates_->wanted() - 1));
  }
  return absl::OkStatus();
}

absl::Status SparsePartition::Load(const TableState& state) {
  LoadedState loaded;
  if (absl::Status status = CheckState(state, &loaded); !status.ok()) return status;
  touched_.Stop();
  if (!loaded.changes) {
    rows_.EraseIf(0, RowTable::kLastHash, [](uint64_t, const uint8_t*) { return true; });
  } else if (!loaded.removed.empty()) {
    rows_.EraseIf(0, RowTable::kLastHash, [&](uint64_t hash, const uint8_t*) {
      return std::binary_search(loaded.removed_hashes.begin(), loaded.removed_hashes.end(), hash);
    });
  }
  rows_.Expect(loaded.keys.size());
  for (size_t i = 0; i < loaded.keys.size(); ++i) {
    const uint64_t hash = KeyHash(loaded.keys[i]);
    uint8_t* row = nullptr;
    if (loaded.changes) rows_.Find(&hash, 1, &row);
    if (row == nullptr) row = rows_.Insert(hash);
    // What no column fills are the bytes between narrow weights and slots.
    std::memset(row + format_.weight_bytes, 0, format_.slots_at - format_.weight_bytes);
    for (size_t c = 0; c < loaded.columns.size(); ++c) {
      const Column& column = loaded.columns[c];
      std::memcpy(row + column.at, loaded.values[c] + i * column.bytes, column.bytes);
    }
  }
  rows_.Expect(0);
  if (candidates_.has_value()) {
    candidates_->Clear();
    for (size_t i = 0; i < loaded.candidates.size(); ++i) {
      candidates_->Set(KeyHash(loaded.candidates[i]), CountAt(loaded.candidate_counts, i));
    }
  }
  version_ = state.header.version();
  const KeyList counters(loaded.counters, 2);
  evicted_ = counters[0];
  now_ = counters[1];
  return absl::OkStatus();
}

uint64_t SparsePartition::Digest() const {
  // Sums, since neither rows nor candidates have an order.
  std::array<uint64_t, 5> parts = {version_, evicted_, now_, 0, 0};
  rows_.ForEach(0, RowTable::kLastHash, [&](uint64_t hash, const uint8_t* row) {
    parts[3] += DigestBytes(row, format_.bytes, hash);
  });
  if (candidates_.has_value()) {
    candidates_->ForEach([&](uint64_t hash, uint32_t count) {
      parts[4] += DigestBytes(&count, sizeof(count), hash);
    });
  }
  return DigestBytes(parts.data(), sizeof(parts), rows_.rows());
}

}  // namespace parley
