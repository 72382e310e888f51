#include "ps/table/row_table.h"

namespace parley {

RowTable::RowTable(int partition_bits, uint32_t partition, uint32_t row_bytes)
    : row_bytes_(row_bytes) {}

void RowTable::Find(const uint64_t* hashes, uint32_t n, uint8_t** found) const {
  for (uint32_t i = 0; i < n; ++i) {
    auto row = rows_.find(hashes[i]);
    found[i] = row == rows_.end() ? nullptr : row->second.get();
  }
}

uint8_t* RowTable::Insert(uint64_t hash) {
  return rows_.emplace(hash, std::make_unique<uint8_t[]>(row_bytes_)).first->second.get();
}

void RowTable::ForEach(uint64_t first, uint64_t last,
                       absl::FunctionRef<void(uint64_t hash, const uint8_t* row)> visit) const {
  for (const auto& [hash, row] : rows_) {
    if (hash >= first && hash <= last) visit(hash, row.get());
  }
}

uint64_t RowTable::EraseIf(uint64_t first, uint64_t last,
                           absl::FunctionRef<bool(uint64_t hash, const uint8_t* row)> drop) {
  return absl::erase_if(rows_, [&](const auto& entry) {
    return entry.first >= first && entry.first <= last && drop(entry.first, entry.second.get());
  });
}

}  // namespace parley
