// A naive sparse table to run beside the real one: an ordered map of rows, one key at a time.
#ifndef PARLEY_TESTS_UNIT_TABLE_ROW_MODEL_H_
#define PARLEY_TESTS_UNIT_TABLE_ROW_MODEL_H_

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "ps/base/sparse_layout.h"
#include "tests/unit/table/table_testing.h"

namespace parley {

// `value` with `digits` bits of precision and no exponent below `min_exponent`, to nearest even.
inline float RoundTo(float value, int digits, int min_exponent, double largest) {
  if (value == 0 || !std::isfinite(value)) return value;
  const int exponent = std::max(std::ilogb(value), min_exponent);
  const double unit = std::ldexp(1.0, exponent - digits + 1);
  const double rounded = std::nearbyint(value / unit) * unit;
  if (std::abs(rounded) > largest) return std::copysign(INFINITY, value);
  return static_cast<float>(rounded);
}

inline float RoundToRow(float value, pb::RowType type) {
  if (type == pb::FP16) return RoundTo(value, 11, -14, 65504);
  if (type == pb::BF16) return RoundTo(value, 8, -126, std::numeric_limits<float>::max());
  return value;
}

// All keys of all partitions; follows the text of table_partition.h and sparse_partition.h.
class RowModel {
 public:
  using Gradients = std::vector<std::pair<uint64_t, std::vector<float>>>;  // of one worker

  explicit RowModel(const pb::TableSpec& table)
      : table_(table), dim_(table.sparse().dim()), partitions_(table.sparse().partitions()) {
    const pb::Optimizer& config = table.optimizer();
    if (!config.has_ftrl() && !config.has_row_adagrad()) {
      auto optimizer = Optimizer::Create(config);
      EXPECT_TRUE(optimizer.ok()) << optimizer.status();
      dense_ = *std::move(optimizer);
    }
  }

  std::vector<float> Initial(uint64_t key) const {
    const pb::SparseSpec& sparse = table_.sparse();
    std::vector<float> values(dim_, 0.0f);
    if (sparse.init() == pb::TensorSpec::ZERO) return values;
    for (uint32_t e = 0; e < dim_; ++e) {
      const uint64_t stream = (uint64_t{5} << 56) ^ (e / 4);
      const float u = ToUnitFloat(Philox(table_.seed(), stream, key)[e % 4]);
      values[e] = RoundToRow((2 * u - 1) * sparse.bound(), sparse.row_type());
    }
    return values;
  }

  std::vector<float> Read(uint64_t key) const {
    const auto row = rows_.find(key);
    return row == rows_.end() ? Initial(key) : row->second.weights;
  }

  // One worker: every occurrence is an update; several: one update a key with the sum in order.
  void Apply(const std::vector<Gradients>& workers, const StepInfo& info) {
    if (workers.size() == 1) {
      for (const auto& [key, gradient] : workers[0]) Update(key, gradient, info);
      return;
    }
    std::map<uint64_t, std::vector<float>> sums;
    for (const Gradients& gradients : workers) {
      for (const auto& [key, gradient] : gradients) {
        auto [sum, is_first] = sums.try_emplace(key, gradient);
        if (is_first) continue;
        for (uint32_t i = 0; i < dim_; ++i) sum->second[i] = sum->second[i] + gradient[i];
      }
    }
    for (const auto& [key, sum] : sums) Update(key, sum, info);
  }

  void EndStep(uint64_t tick) {
    const pb::Eviction& eviction = table_.sparse().eviction();
    const uint64_t age = eviction.max_age();
    if (age > 0) {
      const uint64_t parts =
          std::min<uint64_t>(256, std::bit_floor(std::max<uint64_t>(1, age / 4)));
      evicted_ += std::erase_if(rows_, [&](const auto& entry) {
        // The bits of the hash below the partition's choose the step of the sweep.
        const uint64_t below = KeyHash(entry.first) << std::countr_zero(partitions_);
        const uint64_t part = parts == 1 ? 0 : below >> (64 - std::countr_zero(parts));
        return part == tick % parts && tick - entry.second.tick >= age;
      });
    }
    if (eviction.max_rows() > 0) DropSurplus(eviction.max_rows());
  }

  size_t rows() const { return rows_.size(); }
  uint64_t evicted() const { return evicted_; }

 private:
  struct Row {
    std::vector<float> weights;
    std::vector<std::vector<float>> slots;
    float accumulator = 0;
    uint64_t updates = 0;
    uint64_t tick = 0;
  };

  void DropSurplus(uint64_t max_rows) {
    std::map<uint32_t, std::vector<std::tuple<uint64_t, uint64_t, uint64_t>>> partitions;
    for (const auto& [key, row] : rows_) {
      const uint64_t hash = KeyHash(key);
      const uint32_t partition =
          partitions_ == 1 ? 0
                           : static_cast<uint32_t>(hash >> (64 - std::countr_zero(partitions_)));
      partitions[partition].emplace_back(row.tick, hash, key);
    }
    for (auto& [partition, rows] : partitions) {
      if (rows.size() <= max_rows) continue;
      std::sort(rows.begin(), rows.end());
      const size_t surplus = rows.size() - (max_rows - max_rows / 16);
      for (size_t i = 0; i < surplus; ++i) rows_.erase(std::get<2>(rows[i]));
      evicted_ += surplus;
    }
  }

  void Update(uint64_t key, const std::vector<float>& sum, const StepInfo& info) {
    auto found = rows_.find(key);
    if (found == rows_.end()) {
      const uint32_t wanted = table_.sparse().eviction().min_frequency();
      if (wanted > 1 && ++counts_[key] < wanted) return;
      counts_.erase(key);
      found = rows_.emplace(key, NewRow(key)).first;
    }
    Row& row = found->second;
    row.tick = std::max<uint64_t>(row.tick, info.step);
    ++row.updates;
    if (dense_ != nullptr) {
      StepInfo of_row = info;
      of_row.update = row.updates;
      std::vector<float*> slots;
      for (auto& slot : row.slots) slots.push_back(slot.data());
      const float* gradients[] = {sum.data()};
      dense_->Apply(dim_, row.weights.data(), row.weights.data(), slots.data(), gradients, of_row);
    } else {
      RowRule(row, sum, info);
    }
    for (float& w : row.weights) w = RoundToRow(w, table_.sparse().row_type());
  }

  Row NewRow(uint64_t key) const {
    Row row;
    row.weights = Initial(key);
    const int slots = dense_ != nullptr ? dense_->slots() : 2;
    for (int s = 0; s < slots; ++s) {
      row.slots.emplace_back(dim_, dense_ != nullptr ? dense_->initial_slot_value(s) : 0.0f);
    }
    row.accumulator = table_.optimizer().row_adagrad().initial_accumulator();
    return row;
  }

  // FTRL and row-wise Adagrad in float32, with the order of operations of the formulas.
  void RowRule(Row& row, const std::vector<float>& sum, const StepInfo& info) const {
    const pb::Optimizer& config = table_.optimizer();
    const float inverse_weight = static_cast<float>(info.inverse_weight);
    const float clip = config.clip_value() > 0 ? config.clip_value() : INFINITY;
    std::vector<float> g(dim_);
    double lanes[16] = {};
    for (uint32_t i = 0; i < dim_; ++i) {
      g[i] = std::clamp(sum[i] * inverse_weight, -clip, clip);
      if (config.weight_decay() != 0) g[i] = g[i] + config.weight_decay() * row.weights[i];
      lanes[i % 16] += static_cast<double>(g[i]) * g[i];
    }
    for (int half = 8; half > 0; half /= 2) {
      for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
    }
    const float lr = config.lr();
    row.accumulator += static_cast<float>(lanes[0] / dim_);
    const float root = std::sqrt(row.accumulator) + config.row_adagrad().eps();
    for (uint32_t i = 0; i < dim_; ++i) {
      float& w = row.weights[i];
      if (config.has_row_adagrad()) {
        w = w + (-lr * g[i]) / root;
        continue;
      }
      const pb::Ftrl& ftrl = config.ftrl();
      float &z = row.slots[0][i], &n = row.slots[1][i];
      const float squares = n + g[i] * g[i];
      const float sigma = (std::sqrt(squares) - std::sqrt(n)) / lr;
      z = (z + g[i]) - sigma * w;
      n = squares;
      const float beyond = z < 0 ? z + ftrl.l1() : z - ftrl.l1();
      w = std::abs(z) <= ftrl.l1() ? 0 : -beyond / ((ftrl.beta() + std::sqrt(n)) / lr + ftrl.l2());
    }
  }

  const pb::TableSpec table_;
  const uint32_t dim_;
  const uint32_t partitions_;
  std::unique_ptr<Optimizer> dense_;
  std::map<uint64_t, Row> rows_;
  std::map<uint64_t, uint32_t> counts_;
  uint64_t evicted_ = 0;
};

}  // namespace parley

#endif  // PARLEY_TESTS_UNIT_TABLE_ROW_MODEL_H_
