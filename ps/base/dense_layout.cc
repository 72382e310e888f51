#include "ps/base/dense_layout.h"

#include "absl/strings/str_format.h"

namespace parley {

absl::StatusOr<DenseLayout> DenseLayout::Create(const pb::TableSpec& table) {
  if (table.partition_elements() == 0 || table.partition_elements() > kMaxElements) {
    return absl::InvalidArgumentError(
        absl::StrFormat("table '%s': partition_elements is %d, allowed is 1..%d", table.name(),
                        table.partition_elements(), kMaxElements));
  }
  if (table.tensor().empty()) {
    return absl::InvalidArgumentError(absl::StrFormat("table '%s' has no tensors", table.name()));
  }
  DenseLayout layout;
  layout.per_partition_ = table.partition_elements();
  for (const pb::TensorSpec& tensor : table.tensor()) {
    uint64_t size = 1;
    for (uint32_t extent : tensor.shape()) {
      // Each factor is checked before the product can overflow: size <= 2^34 and extent < 2^32.
      if (extent == 0 || size * (extent / 4096.0) > kMaxElements / 4096.0) {
        return absl::InvalidArgumentError(absl::StrFormat(
            "table '%s', tensor '%s': extent %d makes it empty or larger than %d elements",
            table.name(), tensor.name(), extent, kMaxElements));
      }
      size *= extent;
    }
    if (layout.elements_ + size > kMaxElements) {
      return absl::InvalidArgumentError(
          absl::StrFormat("table '%s', tensor '%s': the table has over %d elements", table.name(),
                          tensor.name(), kMaxElements));
    }
    layout.tensors_.push_back({layout.elements_, layout.elements_ + size});
    layout.elements_ += size;
  }
  if ((layout.elements_ - 1) / layout.per_partition_ >= kMaxPartitions) {
    return absl::InvalidArgumentError(
        absl::StrFormat("table '%s': %d elements in partitions of %d make over %d partitions",
                        table.name(), layout.elements_, layout.per_partition_, kMaxPartitions));
  }
  return layout;
}

Range DenseLayout::PartitionsOf(Range elements) const {
  if (elements.size() == 0) return {0, 0};
  return {elements.begin / per_partition_, (elements.end - 1) / per_partition_ + 1};
}

}  // namespace parley
