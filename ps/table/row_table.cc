#include "ps/table/row_table.h"

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>
#include <vector>

namespace parley {
namespace {

uint64_t Load64(const uint8_t* at) {
  uint64_t value;
  std::memcpy(&value, at, sizeof(value));
  return value;
}

uint32_t RoundUpToEven(uint32_t n) { return (n + 1) / 2 * 2; }

}  // namespace

// A block: this header, [capacity] tags, [capacity] rests of rest_bytes each, padding to
// row_alignment_, [capacity] rows, padding to a whole line. The tags of a full bucket end with the
// first line.
struct RowTable::Bucket {
  uint8_t count;
  uint8_t capacity;
  uint8_t depth;  // bits of the hash below the partition's that all rows share
  uint8_t unused;
  uint32_t prefix;  // those bits

  uint8_t* bytes() { return reinterpret_cast<uint8_t*>(this); }
  const uint8_t* bytes() const { return reinterpret_cast<const uint8_t*>(this); }
  const uint8_t* tags() const { return bytes() + sizeof(Bucket); }
  const uint8_t* rests() const { return tags() + capacity; }

  // Bit i is set if row i has this tag. Looks at the whole first line, whatever the capacity.
  uint64_t Match(uint8_t tag) const {
    const __m256i* line = reinterpret_cast<const __m256i*>(bytes());
    const __m256i wanted = _mm256_set1_epi8(static_cast<char>(tag));
    const uint32_t low = static_cast<uint32_t>(
        _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_load_si256(line), wanted)));
    const uint32_t high = static_cast<uint32_t>(
        _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_load_si256(line + 1), wanted)));
    const uint64_t all = (uint64_t{high} << 32 | low) >> sizeof(Bucket);
    return all & ((uint64_t{1} << count) - 1);
  }
};

namespace {

// What entries without a bucket point to, so that a look-up need not ask.
alignas(64) uint8_t no_rows[64] = {};

}  // namespace

RowTable::RowTable(int partition_bits, uint32_t partition, uint32_t row_bytes)
    : partition_bits_(partition_bits),
      partition_(partition),
      row_bytes_(row_bytes),
      row_alignment_(std::min<uint32_t>(64, row_bytes & -row_bytes)),
      // Large rows: fewer to copy when a bucket grows.
      max_capacity_(std::clamp<uint32_t>(8192 / row_bytes / 2 * 2, 4, kMaxBucketRows)),
      directory_(2 * sizeof(Bucket*)) {
  static_assert(sizeof(Bucket) + kMaxBucketRows == 64);
  for (int depth = 0; depth < 64; ++depth) {
    const int unknown = std::max(0, 56 - partition_bits - depth);
    rest_bytes_[depth] = static_cast<uint8_t>((unknown + 7) / 8);
  }
  PointTo(0, 2, reinterpret_cast<Bucket*>(no_rows));
}

uint64_t RowTable::memory_bytes() const {
  return memory_.bytes() + directory_.size() + overflow_.capacity() * 17 +
         overflow_.size() * (row_bytes_ + 16);
}

uint64_t RowTable::FirstEntry(const Bucket& bucket) const {
  return uint64_t{bucket.prefix} << (directory_bits_ - bucket.depth);
}
uint64_t RowTable::Entries(const Bucket& bucket) const {
  return uint64_t{1} << (directory_bits_ - bucket.depth);
}
void RowTable::PointTo(uint64_t first, uint64_t entries, Bucket* bucket) {
  std::fill_n(directory() + first, entries, bucket);
}

size_t RowTable::RowsAt(uint32_t capacity, uint32_t rest_bytes) const {
  const size_t end = sizeof(Bucket) + capacity * (1 + rest_bytes);
  return (end + row_alignment_ - 1) & ~size_t{row_alignment_ - 1};
}

size_t RowTable::BlockBytes(uint32_t capacity, uint32_t depth) const {
  const size_t bytes = RowsAt(capacity, rest_bytes_[depth]) + size_t{capacity} * row_bytes_;
  // Whatever the rows, the first line is there and so are 8 bytes behind the begin of any rest.
  return (std::max<size_t>(bytes, 64) + 63) / 64 * 64;
}

uint8_t* RowTable::RowOf(const Bucket& bucket, uint32_t i) const {
  const size_t at = RowsAt(bucket.capacity, rest_bytes_[bucket.depth]) + size_t{i} * row_bytes_;
  return const_cast<uint8_t*>(bucket.bytes()) + at;
}

bool RowTable::IsHash(const Bucket& bucket, uint32_t i, uint64_t hash) const {
  const uint32_t rest_bytes = rest_bytes_[bucket.depth];
  const uint64_t difference = Load64(bucket.rests() + i * rest_bytes) ^ (hash >> 8);
  return (difference & ((uint64_t{1} << 8 * rest_bytes) - 1)) == 0;
}

uint64_t RowTable::HashOf(const Bucket& bucket, uint32_t i) const {
  const uint32_t rest_bytes = rest_bytes_[bucket.depth];
  const uint64_t rest =
      Load64(bucket.rests() + i * rest_bytes) & ((uint64_t{1} << 8 * rest_bytes) - 1);
  // A rest may begin above where the prefix ends; then those bits are the same.
  const int known = partition_bits_ + bucket.depth;
  const uint64_t top = uint64_t{partition_} << bucket.depth | bucket.prefix;
  return (known == 0 ? 0 : top << (64 - known)) | rest << 8 | bucket.tags()[i];
}

void RowTable::SetHash(Bucket& bucket, uint32_t i, uint64_t hash) {
  const uint32_t rest_bytes = rest_bytes_[bucket.depth];
  const uint64_t rest = hash >> 8;
  bucket.bytes()[sizeof(Bucket) + i] = static_cast<uint8_t>(hash);
  std::memcpy(bucket.bytes() + sizeof(Bucket) + bucket.capacity + i * rest_bytes, &rest,
              rest_bytes);
}

void RowTable::Find(const uint64_t* hashes, uint32_t n, uint8_t** found) const {
  // Each loop asks for what the next one needs, for the whole batch, so that the misses overlap.
  std::array<const Bucket*, kBatch> bucket;
  std::array<uint64_t, kBatch> matches;
  for (uint32_t i = 0; i < n; ++i) __builtin_prefetch(directory() + IndexOf(hashes[i]));
  for (uint32_t i = 0; i < n; ++i) {
    bucket[i] = directory()[IndexOf(hashes[i])];
    __builtin_prefetch(bucket[i]);
  }
  const uint32_t lines = std::min<uint32_t>((row_bytes_ + 127 - row_alignment_) / 64, 8);
  for (uint32_t i = 0; i < n; ++i) {
    matches[i] = bucket[i]->Match(static_cast<uint8_t>(hashes[i]));
    const uint32_t rest_bytes = rest_bytes_[bucket[i]->depth];
    for (uint64_t left = matches[i]; left != 0; left &= left - 1) {
      const uint32_t at = static_cast<uint32_t>(std::countr_zero(left));
      __builtin_prefetch(bucket[i]->rests() + at * rest_bytes);
      const uint8_t* row = RowOf(*bucket[i], at);
      __builtin_prefetch(row);
      for (uint32_t line = 1; line < lines; ++line) __builtin_prefetch(row + line * 64);
    }
  }
  for (uint32_t i = 0; i < n; ++i) {
    uint8_t* row = nullptr;
    for (uint64_t left = matches[i]; left != 0; left &= left - 1) {
      const uint32_t at = static_cast<uint32_t>(std::countr_zero(left));
      if (!IsHash(*bucket[i], at, hashes[i])) continue;
      row = RowOf(*bucket[i], at);
      break;
    }
    found[i] = row;
  }
  if (overflow_.empty()) return;
  for (uint32_t i = 0; i < n; ++i) {
    if (found[i] != nullptr) continue;
    const auto row = overflow_.find(hashes[i]);
    if (row != overflow_.end()) found[i] = row->second.get();
  }
}

uint8_t* RowTable::Insert(uint64_t hash) {
  // Counted only when it is there: all that makes room may throw.
  for (;;) {
    Bucket* const bucket = directory()[IndexOf(hash)];
    if (bucket->capacity == 0) {
      const uint64_t entry = IndexOf(hash);
      PointTo(entry, 1, NewBucket(2, directory_bits_, static_cast<uint32_t>(entry)));
    } else if (bucket->count < bucket->capacity) {
      ++rows_;
      return Append(*bucket, hash);
    } else if (bucket->capacity < max_capacity_) {
      Resize(bucket, bucket->capacity + 2);
    } else if (bucket->depth < directory_bits_) {
      Split(bucket);
    } else if (MayDouble()) {
      Double();
    } else {
      auto row = std::make_unique<uint8_t[]>(row_bytes_);
      uint8_t* const inserted = (overflow_[hash] = std::move(row)).get();
      ++rows_;
      return inserted;
    }
  }
}

uint8_t* RowTable::Append(Bucket& bucket, uint64_t hash) {
  const uint32_t i = bucket.count++;
  SetHash(bucket, i, hash);
  return RowOf(bucket, i);
}

void RowTable::CopyRow(const Bucket& from, uint32_t i, Bucket& to) {
  std::memcpy(Append(to, HashOf(from, i)), RowOf(from, i), row_bytes_);
}

RowTable::Bucket* RowTable::NewBucket(uint32_t capacity, uint32_t depth, uint32_t prefix) {
  Bucket* const bucket = reinterpret_cast<Bucket*>(memory_.Allocate(BlockBytes(capacity, depth)));
  ++buckets_;
  *bucket = {.count = 0,
             .capacity = static_cast<uint8_t>(capacity),
             .depth = static_cast<uint8_t>(depth),
             .unused = 0,
             .prefix = prefix};
  return bucket;
}

void RowTable::FreeBucket(Bucket* bucket) {
  --buckets_;
  const size_t bytes = BlockBytes(bucket->capacity, bucket->depth);
  memory_.Free(bucket->bytes(), bytes, [&](uint8_t* from, uint8_t* to) {
    std::memcpy(to, from, bytes);
    Bucket* const moved = reinterpret_cast<Bucket*>(to);
    PointTo(FirstEntry(*moved), Entries(*moved), moved);
  });
}

void RowTable::Resize(Bucket* bucket, uint32_t capacity) {
  Bucket* const resized = NewBucket(capacity, bucket->depth, bucket->prefix);
  const uint32_t count = bucket->count, rest_bytes = rest_bytes_[bucket->depth];
  resized->count = bucket->count;
  std::memcpy(resized->bytes() + sizeof(Bucket), bucket->tags(), count);
  std::memcpy(resized->bytes() + sizeof(Bucket) + capacity, bucket->rests(), count * rest_bytes);
  std::memcpy(RowOf(*resized, 0), RowOf(*bucket, 0), size_t{count} * row_bytes_);
  PointTo(FirstEntry(*resized), Entries(*resized), resized);
  FreeBucket(bucket);
}

void RowTable::Split(Bucket* bucket) {
  const uint32_t depth = bucket->depth + 1u;
  const int bit = 64 - partition_bits_ - static_cast<int>(depth);
  std::array<uint32_t, 2> counts = {};
  for (uint32_t i = 0; i < bucket->count; ++i) ++counts[HashOf(*bucket, i) >> bit & 1];
  std::array<Bucket*, 2> halves;
  for (uint32_t side = 0; side < 2; ++side) {
    halves[side] = counts[side] == 0
                       ? reinterpret_cast<Bucket*>(no_rows)
                       : NewBucket(RoundUpToEven(counts[side]), depth, bucket->prefix << 1 | side);
  }
  for (uint32_t i = 0; i < bucket->count; ++i) {
    CopyRow(*bucket, i, *halves[HashOf(*bucket, i) >> bit & 1]);
  }
  const uint64_t first = FirstEntry(*bucket), half = Entries(*bucket) / 2;
  PointTo(first, half, halves[0]);
  PointTo(first + half, half, halves[1]);
  FreeBucket(bucket);
}

bool RowTable::MayDouble() const {
  const uint64_t size = directory_size() * 2;
  const uint64_t buckets = buckets_ + expected_buckets_;
  return size <= std::max(kMinDirectory, kMaxSparseness * buckets) && directory_bits_ < 32 &&
         partition_bits_ + directory_bits_ < 48;
}

void RowTable::Double() {
  MappedMemory doubled(2 * directory_size() * sizeof(Bucket*));
  Bucket** const to = reinterpret_cast<Bucket**>(doubled.data());
  for (uint64_t i = 0; i < directory_size(); ++i) to[2 * i] = to[2 * i + 1] = directory()[i];
  directory_ = std::move(doubled);
  ++directory_bits_;
}

void RowTable::ForEach(uint64_t first, uint64_t last,
                       absl::FunctionRef<void(uint64_t hash, const uint8_t* row)> visit) const {
  for (uint64_t entry = IndexOf(first); entry <= IndexOf(last);) {
    const Bucket& bucket = *directory()[entry];
    if (bucket.capacity == 0) {
      ++entry;
      continue;
    }
    for (uint32_t i = 0; i < bucket.count; ++i) {
      const uint64_t hash = HashOf(bucket, i);
      if (hash >= first && hash <= last) visit(hash, RowOf(bucket, i));
    }
    entry = FirstEntry(bucket) + Entries(bucket);
  }
  for (const auto& [hash, row] : overflow_) {
    if (hash >= first && hash <= last) visit(hash, row.get());
  }
}

void RowTable::ForEachInOrder(
    absl::FunctionRef<void(uint64_t hash, const uint8_t* row)> visit) const {
  using Row = std::pair<uint64_t, const uint8_t*>;
  std::vector<Row> overflow;
  for (const auto& [hash, row] : overflow_) overflow.emplace_back(hash, row.get());
  std::sort(overflow.begin(), overflow.end());
  auto next = overflow.begin();
  std::array<Row, kMaxBucketRows> rows;
  // Buckets are in order in the directory, rows in a bucket are not.
  for (uint64_t entry = 0; entry < directory_size();) {
    const Bucket& bucket = *directory()[entry];
    if (bucket.capacity == 0) {
      ++entry;
      continue;
    }
    for (uint32_t i = 0; i < bucket.count; ++i) {
      rows[i] = {HashOf(bucket, i), RowOf(bucket, i)};
    }
    std::sort(rows.begin(), rows.begin() + bucket.count);
    for (uint32_t i = 0; i < bucket.count; ++i) {
      for (; next != overflow.end() && next->first < rows[i].first; ++next) {
        visit(next->first, next->second);
      }
      visit(rows[i].first, rows[i].second);
    }
    entry = FirstEntry(bucket) + Entries(bucket);
  }
  for (; next != overflow.end(); ++next) visit(next->first, next->second);
}

uint64_t RowTable::EraseInBucket(uint64_t entry,
                                 absl::FunctionRef<bool(uint64_t, const uint8_t*)> drop) {
  Bucket* const bucket = directory()[entry];
  const uint32_t before = bucket->count;
  for (uint32_t i = before; i-- > 0;) {
    if (!drop(HashOf(*bucket, i), RowOf(*bucket, i))) continue;
    const uint32_t last = --bucket->count;
    if (i == last) continue;
    SetHash(*bucket, i, HashOf(*bucket, last));
    std::memcpy(RowOf(*bucket, i), RowOf(*bucket, last), row_bytes_);
  }
  const uint32_t left = bucket->count;
  if (left == 0) {
    PointTo(FirstEntry(*bucket), Entries(*bucket), reinterpret_cast<Bucket*>(no_rows));
    FreeBucket(bucket);
  } else if (RoundUpToEven(left) < bucket->capacity) {
    Resize(bucket, RoundUpToEven(left));
  }
  return before - left;
}

uint64_t RowTable::EraseIf(uint64_t first, uint64_t last,
                           absl::FunctionRef<bool(uint64_t hash, const uint8_t* row)> drop) {
  const auto wanted = [&](uint64_t hash, const uint8_t* row) {
    return hash >= first && hash <= last && drop(hash, row);
  };
  uint64_t erased = 0;
  for (uint64_t entry = IndexOf(first); entry <= IndexOf(last);) {
    const Bucket& bucket = *directory()[entry];
    uint64_t next = entry + 1;
    if (bucket.capacity > 0) {
      next = FirstEntry(bucket) + Entries(bucket);
      erased += EraseInBucket(entry, wanted);
    }
    entry = next;
  }
  erased += absl::erase_if(overflow_,
                           [&](const auto& row) { return wanted(row.first, row.second.get()); });
  rows_ -= erased;
  return erased;
}

}  // namespace parley
