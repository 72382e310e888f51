#include "worker/client/key_split.h"

#include <algorithm>
#include <bit>

namespace parley {
namespace {

// Fibonacci hashing: the top bits of the product depend on all of the key.
uint32_t SlotOf(uint64_t key, int bits) {
  return static_cast<uint32_t>((key * 0x9E3779B97F4A7C15) >> (64 - bits));
}

constexpr uint32_t kSlotsAhead = 12;  // fetched before they are looked at

}  // namespace

void KeySplitter::Split(const SparseLayout& layout, absl::Span<const uint64_t> keys,
                        BufferPool* pool, KeySplit* split) {
  const uint32_t n = static_cast<uint32_t>(keys.size());
  const uint32_t partitions = layout.partitions();
  partition_.resize(n);
  sorted_.resize(n);
  offset_.assign(partitions + 1, 0);
  split->positions.resize(n);
  split->first.resize(size_t{n} + 1);
  split->begin.resize(partitions + 1);
  split->key_bytes = pool->Allocate(n * sizeof(uint64_t));
  auto* out = reinterpret_cast<uint64_t*>(split->key_bytes.mutable_data());

  {
    const uint64_t* const in = keys.data();
    uint16_t* const partition = partition_.data();
    uint32_t* const offset = offset_.data();
    uint64_t* const sorted = sorted_.data();
    uint32_t* const positions = split->positions.data();
    for (uint32_t i = 0; i < n; ++i) {
      const uint32_t p = layout.PartitionOf(in[i]);
      static_assert(SparseLayout::kMaxPartitions <= 1 << 16);
      partition[i] = static_cast<uint16_t>(p);
      ++offset[p + 1];
    }
    for (uint32_t p = 0; p < partitions; ++p) offset[p + 1] += offset[p];
    // offset[p] moves from the partition's beginning to its end: the next one's beginning.
    for (uint32_t i = 0; i < n; ++i) {
      const uint32_t to = offset[partition[i]]++;
      sorted[to] = in[i];
      positions[to] = i;
    }
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
// to which_ which of those it is. Returns the number of unique keys so far.
uint32_t KeySplitter::Dedupe(uint32_t from, uint32_t to, uint32_t unique, uint64_t* out,
                             KeySplit* split) {
  if (from == to) return unique;
  const int bits = std::bit_width(2 * (to - from) - 1);  // at most half full
  if (table_.size() < (size_t{1} << bits)) table_.resize(size_t{1} << bits);
  uint32_t* const table = table_.data();
  std::fill_n(table, size_t{1} << bits, 0u);
  const uint32_t mask = (uint32_t{1} << bits) - 1;
  const uint32_t n = to - from;
  if (which_.size() < n) which_.resize(n);
  uint32_t* const which = which_.data();
  uint32_t* const first = split->first.data() + unique;
  const uint64_t* const sorted = sorted_.data() + from;
  uint64_t* const kept = out + unique;
  uint32_t found = 0;
  for (uint32_t j = 0; j < n; ++j) {
    if (j + kSlotsAhead < n) __builtin_prefetch(&table[SlotOf(sorted[j + kSlotsAhead], bits)], 1);
    const uint64_t key = sorted[j];
    uint32_t slot = SlotOf(key, bits);
    uint32_t entry = table[slot];
    while (entry != 0 && kept[entry - 1] != key) {
      slot = (slot + 1) & mask;
      entry = table[slot];
    }
    if (entry == 0) {
      first[found] = from + j;  // right if nothing repeats; else GroupPositions writes it anew
      kept[found] = key;
      entry = table[slot] = ++found;
    }
    which[j] = entry - 1;
  }
  return unique + found;
}

// Orders the partition's positions by key, keeping those of a key as they are.
void KeySplitter::GroupPositions(uint32_t from, uint32_t to, uint32_t unique_from,
                                 uint32_t unique_to, KeySplit* split) {
  const uint32_t n = to - from, found = unique_to - unique_from;
  uint32_t* const first = split->first.data() + unique_from;
  uint32_t* const positions = split->positions.data();
  const uint32_t* const which = which_.data();
  std::fill_n(first, found, 0u);
  for (uint32_t j = 0; j < n; ++j) ++first[which[j]];
  uint32_t next = from;
  for (uint32_t u = 0; u < found; ++u) {
    const uint32_t count = first[u];
    first[u] = next;
    next += count;
  }
  grouped_.assign(positions + from, positions + to);
  for (uint32_t j = 0; j < n; ++j) positions[first[which[j]]++] = grouped_[j];
  // Each stands at its end now, which is where the next begins.
  for (uint32_t u = found; u-- > 1;) first[u] = first[u - 1];
  first[0] = from;
}

}  // namespace parley
