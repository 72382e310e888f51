#include "ps/base/sparse_layout.h"

#include <cstring>

#include "absl/strings/str_format.h"
#include "ps/base/dense_layout.h"

namespace parley {

absl::StatusOr<SparseLayout> SparseLayout::Create(const pb::TableSpec& table) {
  const pb::SparseSpec& sparse = table.sparse();
  if (sparse.dim() < 1 || sparse.dim() > kMaxDim) {
    return absl::InvalidArgumentError(absl::StrFormat("table '%s': dim is %d, allowed is 1..%d",
                                                      table.name(), sparse.dim(), kMaxDim));
  }
  if (!std::has_single_bit(sparse.partitions()) || sparse.partitions() > kMaxPartitions) {
    return absl::InvalidArgumentError(
        absl::StrFormat("table '%s': partitions is %d, allowed is a power of two in 1..%d",
                        table.name(), sparse.partitions(), kMaxPartitions));
  }
  SparseLayout layout;
  layout.dim_ = sparse.dim();
  layout.bits_ = std::countr_zero(sparse.partitions());
  return layout;
}

absl::StatusOr<uint32_t> TablePartitions(const pb::TableSpec& table) {
  if (table.has_sparse()) {
    absl::StatusOr<SparseLayout> layout = SparseLayout::Create(table);
    if (!layout.ok()) return layout.status();
    return layout->partitions();
  }
  absl::StatusOr<DenseLayout> layout = DenseLayout::Create(table);
  if (!layout.ok()) return layout.status();
  return layout->partitions();
}

std::array<char, 16> KeyDigest(std::string_view keys) {
  // Two chains that depend on the order, in pairs so that neither waits for the other's multiply.
  uint64_t low = 0x9E3779B97F4A7C15, high = 0xD1B54A32D192ED03;
  for (size_t i = 0; i + sizeof(uint64_t) <= keys.size(); i += sizeof(uint64_t)) {
    uint64_t key = 0;
    std::memcpy(&key, keys.data() + i, sizeof(key));
    low = std::rotl((low ^ key) * 0xFF51AFD7ED558CCD, 31);
    high = std::rotl((high + key) * 0xC4CEB9FE1A85EC53, 29) ^ key;
  }
  low = KeyHash(low ^ keys.size());
  high = KeyHash(high + low);
  std::array<char, 16> digest;
  std::memcpy(digest.data(), &low, sizeof(low));
  std::memcpy(digest.data() + sizeof(low), &high, sizeof(high));
  return digest;
}

}  // namespace parley
