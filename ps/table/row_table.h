// RowTable: from the hash of a key to its row, a run of bytes; small in memory and quick to search
// in batches.
//
// Extendible hashing (Fagin, Nievergelt, Pippenger, Strong, ACM TODS 1979): a directory, indexed by
// the hash's bits below those of the partition, points to buckets of up to 56 rows. A bucket is one
// block: a header, a one-byte tag a row (the hash's low byte), what of the hash neither the tag nor
// the directory knows, and the rows. It grows two rows at a time and splits in two by the next bit
// when it is full, so there is no pause for rehashing; doubling the directory copies pointers. A
// look-up touches three cache lines besides the directory: header and tags, the rest of the hash,
// the row.
//
// The hash is a bijection of the key, so keys that somebody chose can have as many equal bits as he
// likes. Therefore the directory grows only while buckets are filled (kMaxSparseness); rows that
// find neither room nor a split go to an ordinary hash map with a secret seed.
//
// Throws std::bad_alloc; then the table is only good for reading: every row that was there is
// found, and counted. Not thread-safe.
#ifndef PARLEY_PS_TABLE_ROW_TABLE_H_
#define PARLEY_PS_TABLE_ROW_TABLE_H_

#include <array>
#include <cstdint>
#include <memory>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "ps/table/block_memory.h"

namespace parley {

class RowTable {
 public:
  static constexpr uint32_t kBatch = 64;
  static constexpr uint64_t kLastHash = ~uint64_t{0};
  static constexpr uint32_t kMaxBucketRows = 56;  // tags of a cache line, less the header
  // The directory has at most this many entries for each bucket, or kMinDirectory if that is more.
  static constexpr uint64_t kMaxSparseness = 16;
  static constexpr uint64_t kMinDirectory = 1024;

  // For rows of `row_bytes`, a positive multiple of 4, whose hashes begin with the `partition_bits`
  // (0 to 16) bits of `partition`.
  RowTable(int partition_bits, uint32_t partition, uint32_t row_bytes);
  RowTable(const RowTable&) = delete;
  RowTable& operator=(const RowTable&) = delete;

  uint64_t rows() const { return rows_; }
  uint64_t overflow_rows() const { return overflow_.size(); }
  uint64_t directory_size() const { return uint64_t{1} << directory_bits_; }
  uint64_t memory_bytes() const;

  // found[i] = the row of hashes[i], null if there is none. REQUIRES: n <= kBatch.
  void Find(const uint64_t* hashes, uint32_t n, uint8_t** found) const;

  // A row of uninitialised bytes. Rows found before may have moved. REQUIRES: there is none.
  uint8_t* Insert(uint64_t hash);

  // So many rows are about to be inserted beside those that are here, in whatever order: the
  // directory may grow as if they were here, or rows that come ascending by hash would find a
  // directory too small for where they crowd. 0: they have come.
  void Expect(uint64_t rows) { expected_buckets_ = rows / max_capacity_; }

  // Calls visit(hash, row) for every row, ascending by hash.
  void ForEachInOrder(absl::FunctionRef<void(uint64_t hash, const uint8_t* row)> visit) const;
  // Calls visit(hash, row) for every row with first <= hash <= last, in no particular order.
  void ForEach(uint64_t first, uint64_t last,
               absl::FunctionRef<void(uint64_t hash, const uint8_t* row)> visit) const;
  // Erases every row with first <= hash <= last for which `drop` is true; returns how many. Rows
  // found before may have moved.
  uint64_t EraseIf(uint64_t first, uint64_t last,
                   absl::FunctionRef<bool(uint64_t hash, const uint8_t* row)> drop);

 private:
  struct Bucket;  // the header of a block

  uint64_t IndexOf(uint64_t hash) const {
    return (hash << partition_bits_) >> (64 - directory_bits_);
  }
  Bucket** directory() const { return reinterpret_cast<Bucket**>(directory_.data()); }
  // A bucket's place in the directory: its first entry, and how many point to it.
  uint64_t FirstEntry(const Bucket& bucket) const;
  uint64_t Entries(const Bucket& bucket) const;
  void PointTo(uint64_t first, uint64_t entries, Bucket* bucket);

  size_t RowsAt(uint32_t capacity, uint32_t rest_bytes) const;
  size_t BlockBytes(uint32_t capacity, uint32_t depth) const;
  uint8_t* RowOf(const Bucket& bucket, uint32_t i) const;
  uint64_t HashOf(const Bucket& bucket, uint32_t i) const;
  bool IsHash(const Bucket& bucket, uint32_t i, uint64_t hash) const;
  void SetHash(Bucket& bucket, uint32_t i, uint64_t hash);

  Bucket* NewBucket(uint32_t capacity, uint32_t depth, uint32_t prefix);
  void FreeBucket(Bucket* bucket);
  void Resize(Bucket* bucket, uint32_t capacity);
  void Split(Bucket* bucket);
  bool MayDouble() const;
  void Double();
  uint8_t* Append(Bucket& bucket, uint64_t hash);
  void CopyRow(const Bucket& from, uint32_t i, Bucket& to);
  // Erases within the bucket at `entry` of the directory; returns how many.
  uint64_t EraseInBucket(uint64_t entry, absl::FunctionRef<bool(uint64_t, const uint8_t*)> drop);

  const int partition_bits_;
  const uint32_t partition_;
  const uint32_t row_bytes_;
  const uint32_t row_alignment_;  // in a block
  const uint32_t max_capacity_;
  std::array<uint8_t, 64> rest_bytes_;  // by depth: of a hash, what tag and directory do not know
  int directory_bits_ = 1;
  uint64_t buckets_ = 0;
  uint64_t expected_buckets_ = 0;  // at least so many more
  uint64_t rows_ = 0;
  MappedMemory directory_;
  BlockMemory memory_;
  absl::flat_hash_map<uint64_t, std::unique_ptr<uint8_t[]>> overflow_;
};

}  // namespace parley

#endif  // PARLEY_PS_TABLE_ROW_TABLE_H_
