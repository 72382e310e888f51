#include "ps/table/sparse_partition.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"

namespace parley {
namespace {

uint32_t LoadBits(const uint8_t* at) {
  uint32_t bits;
  std::memcpy(&bits, at, sizeof(bits));
  return bits;
}

// Ticks are kept to 32 bits: the later of two that are less than 2^31 apart.
bool IsLater(uint32_t tick, uint32_t than) { return static_cast<int32_t>(tick - than) > 0; }

// Two chains over a row's key and stored weights, which add up over rows in any order.
void AddRowDigest(uint64_t key, const uint8_t* weights, uint32_t bytes, uint64_t* low,
                  uint64_t* high) {
  uint64_t a = KeyHash(key ^ 0x9E3779B97F4A7C15), b = KeyHash(key + 0xD1B54A32D192ED03);
  for (uint32_t at = 0; at < bytes; at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, weights + at, std::min<uint32_t>(8, bytes - at));
    a = std::rotl((a ^ word) * 0xFF51AFD7ED558CCD, 31);
    b = std::rotl((b + word) * 0xC4CEB9FE1A85EC53, 29) ^ word;
  }
  *low += KeyHash(a);
  *high += KeyHash(b + a);
}

}  // namespace

absl::StatusOr<std::unique_ptr<SparsePartition>> SparsePartition::Create(const pb::TableSpec& table,
                                                                         uint32_t index,
                                                                         BufferPool* pool) {
  absl::StatusOr<SparseLayout> layout = SparseLayout::Create(table);
  if (!layout.ok()) return layout.status();
  if (index >= layout->partitions()) {
    return absl::InvalidArgumentError(absl::StrFormat("table '%s': partition %d of %d partitions",
                                                      table.name(), index, layout->partitions()));
  }
  absl::StatusOr<RowOptimizer> optimizer = RowOptimizer::Create(table);
  if (!optimizer.ok()) return optimizer.status();
  return std::unique_ptr<SparsePartition>(
      new SparsePartition(table, index, *layout, *std::move(optimizer), pool));
}

SparsePartition::SparsePartition(const pb::TableSpec& table, uint32_t index, SparseLayout layout,
                                 RowOptimizer optimizer, BufferPool* pool)
    : table_(table.name()),
      index_(index),
      layout_(layout),
      eviction_(table.sparse().eviction()),
      pool_(pool),
      optimizer_(std::move(optimizer)),
      format_(optimizer_.format()),
      rows_(layout.partition_bits(), index, format_.bytes),
      touched_(layout.partition_bits()) {
  if (eviction_.min_frequency() > 1) {
    candidates_.emplace(eviction_.min_frequency(),
                        std::max(kMinCandidates, kMaxCandidates / layout.partitions()));
  }
}

absl::Status SparsePartition::CheckKeys(KeyList keys) const {
  // One pass without a branch; which key it was is asked only when there is one.
  bool all = true;
  for (size_t i = 0; i < keys.size(); ++i) all &= layout_.PartitionOf(keys[i]) == index_;
  if (all) return absl::OkStatus();
  for (size_t i = 0; i < keys.size(); ++i) {
    const uint64_t key = keys[i];
    if (layout_.PartitionOf(key) == index_) continue;
    return absl::InvalidArgumentError(
        absl::StrFormat("table '%s': key %d of the list is %d, whose hash is of partition %d; "
                        "allowed here: keys of partition %d",
                        table_, i, key, layout_.PartitionOf(key), index_));
  }
  // What was wrong is not any more: somebody still writes the list.
  return absl::InvalidArgumentError(
      absl::StrFormat("table '%s': the list of %d keys for partition %d changed while it was read",
                      table_, keys.size(), index_));
}

void SparsePartition::Apply(absl::Span<const GradientView> gradients, StepInfo info) {
  ++version_;
  Step step;
  step.pass = optimizer_.Pass(info.inverse_weight);
  step.scalars = optimizer_.ScalarsOfStep(info.step);
  step.tick = static_cast<uint32_t>(info.step);

  const GradientView* only = nullptr;
  int with_keys = 0;
  for (const GradientView& gradient : gradients) {
    if (gradient.keys.empty()) continue;
    only = &gradient;
    ++with_keys;
  }
  if (with_keys > 1) {
    merger_.Merge(gradients, layout_.dim());
    for (uint64_t at = 0; at < merger_.keys(); at += RowTable::kBatch) {
      const uint64_t n = std::min<uint64_t>(RowTable::kBatch, merger_.keys() - at);
      UpdateBatch(step, merger_.hashes() + at, static_cast<uint32_t>(n), merger_.gradients(),
                  merger_.first() + at);
    }
  } else if (with_keys == 1) {
    std::array<uint64_t, RowTable::kBatch> hashes;
    std::array<const float*, RowTable::kBatch> values;
    for (uint64_t at = 0; at < only->keys.size(); at += RowTable::kBatch) {
      const uint64_t n = std::min<uint64_t>(RowTable::kBatch, only->keys.size() - at);
      for (uint64_t i = 0; i < n; ++i) {
        hashes[i] = KeyHash(only->keys[at + i]);
        values[i] = only->values + (at + i) * layout_.dim();
      }
      UpdateBatch(step, hashes.data(), static_cast<uint32_t>(n), values.data(), nullptr);
    }
  }
}

void SparsePartition::UpdateBatch(Step& step, const uint64_t* hashes, uint32_t n,
                                  const float* const* gradients, const uint32_t* first) {
  std::array<uint8_t*, RowTable::kBatch> row;
  rows_.Find(hashes, n, row.data());
  if (std::find(row.begin(), row.begin() + n, nullptr) != row.begin() + n) {
    CreateMissing(step.tick, hashes, n, row.data());
  }
  if (format_.tick_at != RowFormat::kNone) Touch(step.tick, n, row.data());
  if (touched_.knows()) touched_.Touch(hashes, n);

  std::array<RuleScalars, RowTable::kBatch> scalars;
  RowUpdatePass& pass = step.pass;
  pass.scalars = &step.scalars.later;
  if (format_.updates_at != RowFormat::kNone) {
    for (uint32_t i = 0; i < n; ++i) {
      if (row[i] == nullptr) continue;
      const uint32_t before = LoadBits(row[i] + format_.updates_at);
      const uint32_t update = before + (before != ~uint32_t{0});
      std::memcpy(row[i] + format_.updates_at, &update, sizeof(update));
      scalars[i] = optimizer_.ForUpdate(step.scalars, update);
    }
    pass.scalars = scalars.data();
    pass.scalars_step = 1;
  }
  pass.rows = n;
  pass.row = row.data();
  pass.gradients = gradients;
  pass.first = first;
  BestRowKernels().update(pass);
}

void SparsePartition::CreateMissing(uint32_t tick, const uint64_t* hashes, uint32_t n,
                                    uint8_t** row) {
  std::array<bool, RowTable::kBatch> dropped = {};
  for (uint32_t i = 0; i < n; ++i) {
    if (row[i] != nullptr) continue;
    uint8_t* created = nullptr;  // by the same key, earlier in this batch
    rows_.Find(&hashes[i], 1, &created);
    if (created != nullptr) continue;
    if (candidates_.has_value() && !candidates_->Count(hashes[i])) {
      dropped[i] = true;
      continue;
    }
    created = rows_.Insert(hashes[i]);
    optimizer_.InitialiseRow(KeyOfHash(hashes[i]), created);
    if (format_.tick_at != RowFormat::kNone) {
      std::memcpy(created + format_.tick_at, &tick, sizeof(tick));
    }
  }
  // Those found before may have moved.
  rows_.Find(hashes, n, row);
  for (uint32_t i = 0; i < n; ++i) {
    if (dropped[i]) row[i] = nullptr;
  }
}

uint32_t SparsePartition::TickOf(const uint8_t* row) const {
  return LoadBits(row + format_.tick_at);
}

void SparsePartition::Touch(uint32_t tick, uint32_t n, uint8_t* const* row) const {
  for (uint32_t i = 0; i < n; ++i) {
    if (row[i] != nullptr && IsLater(tick, TickOf(row[i]))) {
      std::memcpy(row[i] + format_.tick_at, &tick, sizeof(tick));
    }
  }
}

double SparsePartition::SumOfSquares(absl::Span<const GradientView>, double) { return 0; }

Buffer SparsePartition::Read(KeyList keys) {
  const uint64_t dim = layout_.dim();
  Buffer answer = pool_->Allocate(keys.size() * dim * sizeof(float));
  float* out = answer.mutable_floats();
  const RowKernels& kernels = BestRowKernels();
  std::array<uint64_t, RowTable::kBatch> hashes;
  std::array<uint8_t*, RowTable::kBatch> row;
  for (uint64_t at = 0; at < keys.size(); at += RowTable::kBatch) {
    const uint64_t n = std::min<uint64_t>(RowTable::kBatch, keys.size() - at);
    for (uint64_t i = 0; i < n; ++i) hashes[i] = KeyHash(keys[at + i]);
    rows_.Find(hashes.data(), static_cast<uint32_t>(n), row.data());
    kernels.read(n, dim, format_.storage, row.data(), out);
    for (uint64_t i = 0; i < n; ++i, out += dim) {
      if (row[i] == nullptr) optimizer_.ReadInitial(keys[at + i], out);
    }
  }
  return answer;
}

void SparsePartition::EndStep(uint64_t tick) {
  now_ = std::max(now_, tick);
  if (candidates_.has_value()) candidates_->EndStep();
  if (eviction_.max_age() > 0) DropOld();
  if (eviction_.max_rows() > 0 && rows_.rows() > eviction_.max_rows()) DropSurplus();
}

void SparsePartition::DropOld() {
  const uint64_t steps =
      std::min(kMaxSweepSteps, std::bit_floor(std::max<uint64_t>(1, eviction_.max_age() / 4)));
  // The part of this partition's range whose turn it is.
  const int bits = layout_.partition_bits() + std::countr_zero(steps);
  const uint64_t part = uint64_t{index_} * steps + now_ % steps;
  const uint64_t first = bits == 0 ? 0 : part << (64 - bits);
  const uint64_t last = bits == 0 ? RowTable::kLastHash : first + (RowTable::kLastHash >> bits);
  const uint32_t now = static_cast<uint32_t>(now_);
  const uint64_t max_age = eviction_.max_age();
  evicted_ += rows_.EraseIf(first, last, [&](uint64_t hash, const uint8_t* row) {
    const uint32_t tick = TickOf(row);
    if (IsLater(tick, now) || now - tick < max_age) return false;
    NoteDropped(hash);
    return true;
  });
}

void SparsePartition::DropSurplus() {
  const uint64_t max_rows = eviction_.max_rows();
  uint64_t surplus = rows_.rows() - (max_rows - max_rows / 16);
  // By age: how many rows; the oldest ages that fit into the surplus go as a whole. Ages of rows
  // that a faster worker has touched ahead of now_ count as 0.
  const uint32_t now = static_cast<uint32_t>(now_);
  const auto age_of = [&](const uint8_t* row) {
    const uint32_t tick = TickOf(row);
    return IsLater(tick, now) ? 0 : now - tick;
  };
  std::map<uint32_t, uint64_t, std::greater<>> by_age;
  rows_.ForEach(0, RowTable::kLastHash,
                [&](uint64_t, const uint8_t* row) { ++by_age[age_of(row)]; });
  uint32_t cut = 0;  // older ones go, and `surplus` of this age
  for (const auto& [age, count] : by_age) {
    cut = age;
    if (count >= surplus) break;
    surplus -= count;
  }
  std::vector<uint64_t> hashes;
  rows_.ForEach(0, RowTable::kLastHash, [&](uint64_t hash, const uint8_t* row) {
    if (age_of(row) == cut) hashes.push_back(hash);
  });
  std::nth_element(hashes.begin(), hashes.begin() + (surplus - 1), hashes.end());
  const uint64_t last = hashes[surplus - 1];
  evicted_ += rows_.EraseIf(0, RowTable::kLastHash, [&](uint64_t hash, const uint8_t* row) {
    const uint32_t age = age_of(row);
    if (age < cut || (age == cut && hash > last)) return false;
    NoteDropped(hash);
    return true;
  });
}

uint64_t SparsePartition::memory_bytes() const {
  return sizeof(*this) + rows_.memory_bytes() + merger_.memory_bytes() + optimizer_.memory_bytes() +
         touched_.memory_bytes() + (candidates_.has_value() ? candidates_->memory_bytes() : 0);
}

void SparsePartition::AddCounts(pb::ServerCounts::Rows* rows) const {
  uint64_t low = 0, high = 0;
  rows_.ForEach(0, RowTable::kLastHash, [&](uint64_t hash, const uint8_t* row) {
    AddRowDigest(KeyOfHash(hash), row, format_.weight_bytes, &low, &high);
  });
  rows->set_rows(rows->rows() + rows_.rows());
  rows->set_evicted(rows->evicted() + evicted_);
  rows->set_bytes(rows->bytes() + memory_bytes());
  rows->set_digest_low(rows->digest_low() + low);
  rows->set_digest_high(rows->digest_high() + high);
}

}  // namespace parley
