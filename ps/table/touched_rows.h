// TouchedRows: which rows of a partition may have changed since it was saved, and which are gone.
//
// A row's bit is found by the leading bits of its hash, about eight bits for a row that was there
// when it began: a byte a row, one store a touch, and an untouched row counts as touched now and
// then (an eighth of the part that was touched, if that is small). Those that are gone are listed,
// up to twice as many as there were rows; past that everything counts as changed. Not thread-safe.
#ifndef PARLEY_PS_TABLE_TOUCHED_ROWS_H_
#define PARLEY_PS_TABLE_TOUCHED_ROWS_H_

#include <cstdint>
#include <vector>

namespace parley {

class TouchedRows {
 public:
  static constexpr uint64_t kMinGone = uint64_t{1} << 16;

  // Of hashes that all begin with the same `partition_bits` bits.
  explicit TouchedRows(int partition_bits) : partition_bits_(partition_bits) {}

  // Nothing is touched and nothing gone, of about `rows` rows. Without memory for it: as Stop.
  void Begin(uint64_t rows);
  // Nothing is known any more, until Begin.
  void Stop();
  // False before Begin, after Stop, and when more is gone than is worth a list.
  bool knows() const { return !bits_.empty(); }

  // REQUIRES for all below: knows().
  void Touch(const uint64_t* hashes, uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) {
      const uint64_t bit = BitOf(hashes[i]);
      bits_[bit / 64] |= uint64_t{1} << bit % 64;
    }
  }
  bool IsTouched(uint64_t hash) const {
    const uint64_t bit = BitOf(hash);
    return bits_[bit / 64] >> bit % 64 & 1;
  }
  // May be there again. Throws std::bad_alloc.
  void Remove(uint64_t hash);
  // Each once, ascending.
  const std::vector<uint64_t>& Gone();

  uint64_t memory_bytes() const { return (bits_.capacity() + gone_.capacity()) * 8; }

 private:
  uint64_t BitOf(uint64_t hash) const { return hash << partition_bits_ >> shift_; }
  void SortGone();

  const int partition_bits_;
  int shift_ = 0;
  std::vector<uint64_t> bits_;  // empty: knows nothing
  std::vector<uint64_t> gone_;
  uint64_t max_gone_ = 0;
};

}  // namespace parley

#endif  // PARLEY_PS_TABLE_TOUCHED_ROWS_H_
