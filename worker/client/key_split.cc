#include "worker/client/key_split.h"

#include <algorithm>
#include <bit>

namespace parley {
namespace {

// Fibonacci hashing: the top bits of the product depend on all of the key.
uint32_t SlotOf(uint64_t key, int bits) {
  return static_cast<uint32_t>((key * 0x9E3779B97F4A7C15) >> (64 - bits));
}

constexpr uint32_t kAhead = 12;  // slots to fetch before they are looked at

}  // namespace

void KeySplitter::Split(const SparseLayout& layout, absl::Span<const uint64_t> keys,
                        BufferPool* pool, KeySplit* split) {
  const uint32_t n = static_cast<uint32_t>(keys.size());
  const uint32_t partitions = layout.partitions();
  partition_.resize(n);
  sorted_.resize(n);
  which_.resize(n);
  offset_.assign(partitions + 1, 0);
  split->positions.resize(n);
  split->first.resize(size_t{n} + 1);
  split->begin.resize(partitions + 1);
  split->key_bytes = pool->Allocate(n * sizeof(uint64_t));
  auto* out = reinterpret_cast<uint64_t*>(split->key_bytes.mutable_data());

  for (uint32_t i = 0; i < n; ++i) {
    partition_[i] = layout.PartitionOf(keys[i]);
    ++offset_[partition_[i] + 1];
  }
  for (uint32_t p = 0; p < partitions; ++p) offset_[p + 1] += offset_[p];
  // offset_[p] moves from the partition's beginning to its end: the next one's beginning.
  for (uint32_t i = 0; i < n; ++i) {
    const uint32_t to = offset_[partition_[i]]++;
    sorted_[to] = keys[i];
    split->positions[to] = i;
  }
  uint32_t unique = 0, from = 0;
  for (uint32_t p = 0; p < partitions; ++p) {
    split->begin[p] = unique;
    const uint32_t to = offset_[p];
    const uint32_t found = Dedupe(from, to, unique, out, split);
    if (found - unique < to - from) GroupPositions(from, to, unique, found, split);
    unique = found;
    from = to;
  }
  split->begin[partitions] = unique;
  split->first.resize(size_t{unique} + 1);
  split->first[unique] = n;
  split->key_bytes = split->key_bytes.Slice(0, unique * sizeof(uint64_t));
}

// Keys from..to of sorted_, all of one partition: writes each once to `out` from `unique` on, and
// to which_ which it is. Returns the number of unique keys so far.
uint32_t KeySplitter::Dedupe(uint32_t from, uint32_t to, uint32_t unique, uint64_t* out,
                             KeySplit* split) {
  if (from == to) return unique;
  const int bits = std::bit_width(2 * (to - from) - 1);  // at most half full
  if (table_.size() < (size_t{1} << bits)) table_.resize(size_t{1} << bits);
  uint32_t* const table = table_.data();
  std::fill_n(table, size_t{1} << bits, 0u);
  const uint32_t mask = (uint32_t{1} << bits) - 1;
  const uint32_t base = unique;
  for (uint32_t j = from; j < to; ++j) {
    if (j + kAhead < to) __builtin_prefetch(&table[SlotOf(sorted_[j + kAhead], bits)], 1);
    const uint64_t key = sorted_[j];
    uint32_t slot = SlotOf(key, bits);
    while (table[slot] != 0 && out[base + table[slot] - 1] != key) slot = (slot + 1) & mask;
    if (table[slot] == 0) {
      split->first[unique] = j;  // right if nothing repeats; else GroupPositions writes it anew
      out[unique] = key;
      table[slot] = ++unique - base;
    }
    which_[j] = base + table[slot] - 1;
  }
  return unique;
}

// Orders the partition's positions by key, keeping those of a key as they are.
void KeySplitter::GroupPositions(uint32_t from, uint32_t to, uint32_t unique_from,
                                 uint32_t unique_to, KeySplit* split) {
  uint32_t* const first = split->first.data();
  std::fill(first + unique_from, first + unique_to, 0u);
  for (uint32_t j = from; j < to; ++j) ++first[which_[j]];
  uint32_t next = from;
  for (uint32_t u = unique_from; u < unique_to; ++u) {
    const uint32_t count = first[u];
    first[u] = next;
    next += count;
  }
  grouped_.assign(split->positions.begin() + from, split->positions.begin() + to);
  for (uint32_t j = from; j < to; ++j) split->positions[first[which_[j]]++] = grouped_[j - from];
  // Each stands at its end now, which is where the next begins.
  for (uint32_t u = unique_to; u-- > unique_from + 1;) first[u] = first[u - 1];
  first[unique_from] = from;
}

}  // namespace parley
