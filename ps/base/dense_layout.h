// How a dense table lies in memory: its tensors end to end, cut into partitions of equal size.
//
// The cut depends on the table alone, never on the number of servers: partitions are what moves
// between owners. Immutable after Create; copies are cheap enough to keep one per node.
#ifndef PARLEY_PS_BASE_DENSE_LAYOUT_H_
#define PARLEY_PS_BASE_DENSE_LAYOUT_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/cluster.pb.h"

namespace parley {

struct Range {
  uint64_t begin = 0;
  uint64_t end = 0;  // one past the last
  uint64_t size() const { return end - begin; }
};

class DenseLayout {
 public:
  // Upper bounds on what a peer may ask this node to hold.
  static constexpr uint64_t kMaxElements = uint64_t{1} << 34;
  static constexpr uint64_t kMaxPartitions = uint64_t{1} << 20;

  // kInvalidArgument names the tensor and the value: no tensors, an empty or huge shape, no
  // partition size.
  static absl::StatusOr<DenseLayout> Create(const pb::TableSpec& table);

  uint64_t elements() const { return elements_; }
  uint32_t partitions() const {
    return static_cast<uint32_t>((elements_ + per_partition_ - 1) / per_partition_);
  }
  size_t tensors() const { return tensors_.size(); }

  Range tensor(size_t index) const { return tensors_[index]; }  // elements of the table
  Range partition(uint32_t index) const {
    const uint64_t begin = uint64_t{index} * per_partition_;
    return {begin, std::min(begin + per_partition_, elements_)};
  }
  // The partitions that hold any of `elements`. Empty in, empty out.
  Range PartitionsOf(Range elements) const;

 private:
  uint64_t elements_ = 0;
  uint64_t per_partition_ = 1;
  std::vector<Range> tensors_;
};

}  // namespace parley

#endif  // PARLEY_PS_BASE_DENSE_LAYOUT_H_
