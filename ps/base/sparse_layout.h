// How the rows of a sparse table are spread: by the hash of their key over a fixed number of
// partitions.
//
// The hash is a bijection, so a partition that knows its range of hashes need not store all of a
// key. Pure functions, thread-safe.
#ifndef PARLEY_PS_BASE_SPARSE_LAYOUT_H_
#define PARLEY_PS_BASE_SPARSE_LAYOUT_H_

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/cluster.pb.h"

namespace parley {

// The finaliser of MurmurHash3 (Appleby): every bit of the key reaches every bit of the hash, and
// no two keys share a hash.
constexpr uint64_t KeyHash(uint64_t key) {
  key = (key ^ (key >> 33)) * 0xFF51AFD7ED558CCD;
  key = (key ^ (key >> 33)) * 0xC4CEB9FE1A85EC53;
  return key ^ (key >> 33);
}

// The inverse: the key that has this hash.
constexpr uint64_t KeyOfHash(uint64_t hash) {
  hash = (hash ^ (hash >> 33)) * 0x9CB4B2F8129337DB;
  hash = (hash ^ (hash >> 33)) * 0x4F74430C22A54005;
  return hash ^ (hash >> 33);
}

class SparseLayout {
 public:
  static constexpr uint32_t kMaxPartitions = 65536;
  static constexpr uint32_t kMaxDim = 4096;

  // kInvalidArgument names the field of table.sparse(), its value and what is allowed.
  static absl::StatusOr<SparseLayout> Create(const pb::TableSpec& table);

  uint32_t dim() const { return dim_; }
  uint32_t partitions() const { return uint32_t{1} << bits_; }
  // A partition holds the keys whose hashes begin with its number.
  int partition_bits() const { return bits_; }
  uint32_t PartitionOfHash(uint64_t hash) const {
    return bits_ == 0 ? 0 : static_cast<uint32_t>(hash >> (64 - bits_));
  }
  uint32_t PartitionOf(uint64_t key) const { return PartitionOfHash(KeyHash(key)); }

 private:
  uint32_t dim_ = 0;
  int bits_ = 0;
};

// Partitions of any table, dense or sparse. Errors as of the layouts.
absl::StatusOr<uint32_t> TablePartitions(const pb::TableSpec& table);

// 16 bytes that stand for a list of keys (uint64, little-endian, any alignment) and its order. Not
// cryptographic: a worker that makes two lists collide harms itself alone, for lists are remembered
// per worker.
std::array<char, 16> KeyDigest(std::string_view keys);

}  // namespace parley

#endif  // PARLEY_PS_BASE_SPARSE_LAYOUT_H_
