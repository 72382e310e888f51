#include "ps/table/touched_rows.h"

#include <algorithm>
#include <bit>
#include <new>

namespace parley {

void TouchedRows::Begin(uint64_t rows) {
  const int bits = std::clamp<int>(std::bit_width(rows) + 3, 12, 40);
  shift_ = 64 - bits;
  max_gone_ = std::max(kMinGone, 2 * rows);
  gone_ = std::vector<uint64_t>();
  try {
    bits_.assign((size_t{1} << bits) / 64, 0);
  } catch (const std::bad_alloc&) {
    Stop();
  }
}

void TouchedRows::Stop() {
  bits_ = std::vector<uint64_t>();  // gives back the memory, which {} would not
  gone_ = std::vector<uint64_t>();
}

void TouchedRows::Remove(uint64_t hash) {
  gone_.push_back(hash);
  if (gone_.size() < max_gone_) return;
  // Keys that come and go are there many times.
  SortGone();
  if (gone_.size() > max_gone_ / 2) Stop();
}

void TouchedRows::SortGone() {
  std::sort(gone_.begin(), gone_.end());
  gone_.erase(std::unique(gone_.begin(), gone_.end()), gone_.end());
}

const std::vector<uint64_t>& TouchedRows::Gone() {
  SortGone();
  return gone_;
}

}  // namespace parley
