// Tables of every kind and option, random updates for them, and whether two partitions are the
// same.
#ifndef PARLEY_TESTS_UNIT_TABLE_STATE_TESTING_H_
#define PARLEY_TESTS_UNIT_TABLE_STATE_TESTING_H_

#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "ps/table/table_partition.h"
#include "tests/unit/table/sparse_testing.h"

namespace parley {

inline const std::vector<std::string>& DenseRules() {
  static const auto* const rules = new std::vector<std::string>{
      "sgd {}",
      "sgd { momentum: 0.9 dampening: 0.1 }",
      "sgd { momentum: 0.9 nesterov: true }",
      "adagrad { lr_decay: 0.1 initial_accumulator: 0.1 }",
      "adadelta {}",
      "rmsprop {}",
      "rmsprop { momentum: 0.9 }",
      "rmsprop { centered: true }",
      "rmsprop { centered: true momentum: 0.9 }",
      "adam {}",
      "adam { amsgrad: true }",
      "adamw {}",
  };
  return *rules;
}

inline pb::TableSpec DenseTableSpec(const std::string& optimizer, uint64_t elements) {
  pb::TableSpec table;
  table.set_id(2);
  table.set_name("weights");
  table.set_seed(5);
  table.set_partition_elements(elements);
  pb::TensorSpec* tensor = table.add_tensor();
  tensor->add_shape(static_cast<uint32_t>(2 * elements));
  tensor->set_init(pb::TensorSpec::UNIFORM);
  tensor->set_bound(0.25f);
  *table.mutable_optimizer() = ParseOptimizer(optimizer);
  return table;
}

// With and without decay and clipping; sparse ones of all types, with and without eviction.
inline std::vector<pb::TableSpec> DenseTables() {
  std::vector<pb::TableSpec> tables;
  for (const std::string& rule : DenseRules()) {
    tables.push_back(DenseTableSpec("lr: 0.1 " + rule, 37));
    tables.push_back(DenseTableSpec("lr: 0.1 weight_decay: 0.01 clip_value: 0.2 " + rule, 4111));
  }
  return tables;
}

inline std::vector<pb::TableSpec> SparseTables() {
  std::vector<std::string> rules = DenseRules();
  rules.push_back("ftrl { l1: 0.05 l2: 0.1 }");
  rules.push_back("row_adagrad { initial_accumulator: 0.1 }");
  std::vector<pb::TableSpec> tables;
  for (const std::string& rule : rules) {
    tables.push_back(SparseTableSpec("dim: 16 partitions: 2", "lr: 0.1 " + rule));
    tables.push_back(
        SparseTableSpec("dim: 5 partitions: 1 row_type: FP16 bound: 0.5 "
                        "eviction { max_age: 7 }",
                        "lr: 0.1 weight_decay: 0.01 clip_value: 0.2 " + rule));
    tables.push_back(
        SparseTableSpec("dim: 3 partitions: 4 row_type: BF16 "
                        "eviction { min_frequency: 3 max_rows: 60 }",
                        "lr: 0.1 " + rule));
  }
  return tables;
}

inline std::vector<pb::TableSpec> AllTables() {
  std::vector<pb::TableSpec> tables = DenseTables();
  for (const pb::TableSpec& table : SparseTables()) tables.push_back(table);
  return tables;
}

// What the workers bring in one step, at odd addresses.
class StepGradients {
 public:
  void Add(const std::vector<uint64_t>& keys, const std::vector<float>& values) {
    const char* const key_bytes = reinterpret_cast<const char*>(keys.data());
    const char* const value_bytes = reinterpret_cast<const char*>(values.data());
    std::vector<char>& k = bytes_.emplace_back(1);
    k.insert(k.end(), key_bytes, key_bytes + keys.size() * sizeof(uint64_t));
    std::vector<char>& v = bytes_.emplace_back(3);
    v.insert(v.end(), value_bytes, value_bytes + values.size() * sizeof(float));
    keys_.push_back(keys.size());
  }

  std::vector<GradientView> views() const {
    std::vector<GradientView> views;
    for (size_t w = 0; w < keys_.size(); ++w) {
      views.push_back(
          {KeyList(reinterpret_cast<const std::byte*>(bytes_[2 * w].data() + 1), keys_[w]),
           reinterpret_cast<const float*>(bytes_[2 * w + 1].data() + 3)});
    }
    return views;
  }

 private:
  std::vector<std::vector<char>> bytes_;  // keys and values by worker
  std::vector<size_t> keys_;
};

// Partition 0 of a table and random updates of it.
class StateHistory {
 public:
  StateHistory(const pb::TableSpec& spec, uint64_t seed, size_t universe = 300)
      : spec_(spec), random_(seed) {
    if (!spec.has_sparse()) return;
    const SparseLayout layout = *SparseLayout::Create(spec);
    for (uint64_t k = 0; keys_.size() < universe; ++k) {
      const uint64_t key = k * k * 977 + (k % 3 == 0 ? uint64_t{1} << 63 : 0);
      if (layout.PartitionOf(key) == 0) keys_.push_back(key);
    }
  }

  std::unique_ptr<TablePartition> Create(BufferPool* pool) const {
    auto partition = TablePartition::Create(spec_, 0, pool);
    EXPECT_TRUE(partition.ok()) << partition.status();
    return *std::move(partition);
  }

  StepGradients Gradients(size_t workers, size_t most_keys = 60) {
    StepGradients gradients;
    for (size_t w = 0; w < workers; ++w) {
      if (!spec_.has_sparse()) {
        gradients.Add({}, RandomVector(random_(), spec_.partition_elements()));
        continue;
      }
      std::set<uint64_t> chosen;
      const size_t pushes = random_() % (most_keys + 1);
      for (size_t i = 0; i < pushes; ++i) {
        // Squared, so that some keys are frequent and some are rare.
        const double u = std::uniform_real_distribution<double>()(random_);
        chosen.insert(keys_[static_cast<size_t>(u * u * static_cast<double>(keys_.size()))]);
      }
      std::vector<uint64_t> keys(chosen.begin(), chosen.end());
      std::shuffle(keys.begin(), keys.end(), random_);
      gradients.Add(keys, RandomVector(random_(), keys.size() * spec_.sparse().dim()));
    }
    return gradients;
  }

  StepInfo Info() const {
    StepInfo info;
    info.step = tick_;
    info.inverse_weight = 1.0 / 3;
    info.norm_scale = 0.7;
    return info;
  }

  // The same step for each of them.
  void Step(const std::vector<TablePartition*>& partitions, size_t most_keys = 60) {
    const StepGradients gradients = Gradients(1 + random_() % 4, most_keys);
    for (TablePartition* partition : partitions) {
      partition->Apply(gradients.views(), Info());
      partition->EndStep(tick_);
    }
    ++tick_;
  }

  const std::vector<uint64_t>& keys() const { return keys_; }

 private:
  const pb::TableSpec spec_;
  std::mt19937_64 random_;
  std::vector<uint64_t> keys_;
  uint64_t tick_ = 0;
};

inline std::string BytesOf(const Buffer& buffer) {
  return std::string(reinterpret_cast<const char*>(buffer.data()), buffer.size());
}

// The header and all bytes.
inline std::vector<std::string> Contents(const TableState& state) {
  std::vector<std::string> contents = {state.header.DebugString()};
  for (const Buffer& array : state.bytes) contents.push_back(BytesOf(array));
  return contents;
}

// A copy that may be written to.
inline TableState CopyState(const TableState& state) {
  TableState copy;
  copy.header = state.header;
  for (const Buffer& array : state.bytes) copy.bytes.push_back(Buffer::Copy(BytesOf(array)));
  return copy;
}

inline bool SamePartition(TablePartition& a, TablePartition& b) {
  return a.Digest() == b.Digest() && a.version() == b.version() &&
         Contents(a.Save()) == Contents(b.Save());
}

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_TABLE_STATE_TESTING_H_
