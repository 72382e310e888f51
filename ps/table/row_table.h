// RowTable: from the hash of a key to its row, a run of bytes.
//
// Not thread-safe.
#ifndef PARLEY_PS_TABLE_ROW_TABLE_H_
#define PARLEY_PS_TABLE_ROW_TABLE_H_

#include <cstdint>
#include <memory>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"

namespace parley {

class RowTable {
 public:
  static constexpr uint32_t kBatch = 64;

  // For rows of `row_bytes`, a multiple of 4, whose hashes begin with the `partition_bits` bits of
  // `partition`.
  RowTable(int partition_bits, uint32_t partition, uint32_t row_bytes);

  uint64_t rows() const { return rows_.size(); }
  uint64_t memory_bytes() const { return rows_.capacity() * 17 + rows_.size() * row_bytes_; }

  // found[i] = the row of hashes[i], null if there is none. REQUIRES: n <= kBatch.
  void Find(const uint64_t* hashes, uint32_t n, uint8_t** found) const;

  // A row of uninitialised bytes. Rows found before may have moved. REQUIRES: there is none.
  uint8_t* Insert(uint64_t hash);

  // Calls visit(hash, row) for every row with first <= hash <= last, in no particular order.
  void ForEach(uint64_t first, uint64_t last,
               absl::FunctionRef<void(uint64_t hash, const uint8_t* row)> visit) const;
  // Erases every row with first <= hash <= last for which `drop` is true; returns how many. Rows
  // found before may have moved.
  uint64_t EraseIf(uint64_t first, uint64_t last,
                   absl::FunctionRef<bool(uint64_t hash, const uint8_t* row)> drop);

 private:
  const uint32_t row_bytes_;
  absl::flat_hash_map<uint64_t, std::unique_ptr<uint8_t[]>> rows_;
};

}  // namespace parley

#endif  // PARLEY_PS_TABLE_ROW_TABLE_H_
