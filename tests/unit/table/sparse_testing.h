// A sparse table of all its partitions, as a test sees it.
#ifndef PARLEY_TESTS_UNIT_TABLE_SPARSE_TESTING_H_
#define PARLEY_TESTS_UNIT_TABLE_SPARSE_TESTING_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "ps/base/sparse_layout.h"
#include "ps/table/table_partition.h"
#include "tests/unit/table/row_model.h"
#include "tests/unit/table/table_testing.h"

namespace parley {

// `sparse`: SparseSpec, `optimizer`: Optimizer, both as text.
inline pb::TableSpec SparseTableSpec(const std::string& sparse, const std::string& optimizer,
                                     uint64_t seed = 9) {
  pb::TableSpec table;
  table.set_id(3);
  table.set_name("rows");
  table.set_seed(seed);
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(sparse, table.mutable_sparse()));
  *table.mutable_optimizer() = ParseOptimizer(optimizer);
  return table;
}

class SparseTable {
 public:
  explicit SparseTable(const pb::TableSpec& table) : dim_(table.sparse().dim()) {
    layout_ = *SparseLayout::Create(table);
    for (uint32_t p = 0; p < layout_.partitions(); ++p) {
      auto partition = TablePartition::Create(table, p, &pool_);
      EXPECT_TRUE(partition.ok()) << partition.status();
      partitions_.push_back(*std::move(partition));
    }
  }

  // Sends each partition its part of each worker's gradients, at odd addresses.
  void Apply(const std::vector<RowModel::Gradients>& workers, const StepInfo& info) {
    for (uint32_t p = 0; p < partitions_.size(); ++p) {
      std::vector<std::vector<char>> bytes;
      std::vector<GradientView> views;
      for (const RowModel::Gradients& gradients : workers) {
        std::vector<char> keys(1), values(3);
        size_t count = 0;
        for (const auto& [key, gradient] : gradients) {
          if (layout_.PartitionOf(key) != p) continue;
          Append(&keys, &key, sizeof(key));
          Append(&values, gradient.data(), gradient.size() * sizeof(float));
          ++count;
        }
        bytes.push_back(std::move(keys));
        bytes.push_back(std::move(values));
        const std::vector<char>&k = bytes[bytes.size() - 2], &v = bytes.back();
        views.push_back({KeyList(reinterpret_cast<const std::byte*>(k.data() + 1), count),
                         reinterpret_cast<const float*>(v.data() + 3)});
        EXPECT_TRUE(partitions_[p]->CheckKeys(views.back().keys).ok());
      }
      partitions_[p]->Apply(views, info);
    }
  }

  void EndStep(uint64_t tick) {
    for (auto& partition : partitions_) partition->EndStep(tick);
  }

  // By key.
  std::map<uint64_t, std::vector<float>> Read(const std::vector<uint64_t>& keys) {
    std::map<uint64_t, std::vector<float>> rows;
    for (uint32_t p = 0; p < partitions_.size(); ++p) {
      std::vector<uint64_t> own;
      for (const uint64_t key : keys) {
        if (layout_.PartitionOf(key) == p) own.push_back(key);
      }
      const KeyList list(reinterpret_cast<const std::byte*>(own.data()), own.size());
      const Buffer answer = partitions_[p]->Read(list);
      EXPECT_EQ(answer.num_floats(), partitions_[p]->values(own.size()));
      for (size_t i = 0; i < own.size(); ++i) {
        const float* row = answer.floats() + i * dim_;
        rows[own[i]] = std::vector<float>(row, row + dim_);
      }
    }
    return rows;
  }

  pb::ServerCounts::Rows Counts() const {
    pb::ServerCounts::Rows rows;
    for (const auto& partition : partitions_) partition->AddCounts(&rows);
    return rows;
  }

  TablePartition& partition(uint32_t p) { return *partitions_[p]; }
  const SparseLayout& layout() const { return layout_; }

 private:
  static void Append(std::vector<char>* to, const void* bytes, size_t size) {
    const char* from = static_cast<const char*>(bytes);
    to->insert(to->end(), from, from + size);
  }

  const uint32_t dim_;
  BufferPool pool_;
  SparseLayout layout_;
  std::vector<std::unique_ptr<TablePartition>> partitions_;
};

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_TABLE_SPARSE_TESTING_H_
