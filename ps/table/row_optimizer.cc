#include "ps/table/row_optimizer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ps/base/philox.h"
#include "ps/base/sparse_layout.h"
#include "ps/table/decimal.h"
#include "ps/table/fixed_math.h"
#include "ps/table/optimizer_config.h"

namespace parley {
namespace {

// Does the rule look at how often a row has been updated?
bool CountsUpdates(const pb::Optimizer& config) {
  return config.has_adam() || config.has_adamw() ||
         (config.has_adagrad() && config.adagrad().lr_decay() != 0) ||
         (config.has_sgd() && config.sgd().momentum() != 0 && config.sgd().dampening() != 0);
}

RowFormat FormatOf(const pb::TableSpec& table, UpdateRule rule) {
  const pb::SparseSpec& sparse = table.sparse();
  RowFormat format;
  format.dim = sparse.dim();
  format.storage = sparse.row_type() == pb::FP16   ? RowStorage::kFloat16
                   : sparse.row_type() == pb::BF16 ? RowStorage::kBfloat16
                                                   : RowStorage::kFloat32;
  format.weight_bytes = format.dim * (format.storage == RowStorage::kFloat32 ? 4 : 2);
  format.slots = static_cast<uint32_t>(SlotsOf(rule));
  format.slots_at = (format.weight_bytes + 3) / 4 * 4;
  uint32_t end = format.slots_at + format.slots * format.dim * sizeof(float);
  const auto add = [&end](bool wanted, uint32_t* at) {
    if (!wanted) return;
    *at = end;
    end += 4;
  };
  add(rule == UpdateRule::kRowAdagrad, &format.accumulator_at);
  add(CountsUpdates(table.optimizer()), &format.updates_at);
  add(sparse.eviction().max_age() > 0 || sparse.eviction().max_rows() > 0, &format.tick_at);
  format.bytes = end;
  return format;
}

}  // namespace

absl::StatusOr<RowOptimizer> RowOptimizer::Create(const pb::TableSpec& table) {
  const pb::SparseSpec& sparse = table.sparse();
  if (absl::Status status = CheckRowOptimizer(table.optimizer()); !status.ok()) {
    return absl::Status(status.code(),
                        absl::StrCat("table '", table.name(), "': ", status.message()));
  }
  if (!std::isfinite(sparse.bound()) || sparse.bound() < 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("table '%s': bound is %g, allowed is 0 or more, finite", table.name(),
                        static_cast<double>(sparse.bound())));
  }
  RowOptimizer optimizer;
  optimizer.config_ = table.optimizer();
  optimizer.learning_rates_ = LearningRates(table.optimizer());
  optimizer.numbers_ = RuleNumbers(table.optimizer());
  optimizer.rule_ = RuleOf(table.optimizer());
  optimizer.format_ = FormatOf(table, optimizer.rule_);
  optimizer.seed_ = table.seed();
  optimizer.bound_ = sparse.init() == pb::TensorSpec::UNIFORM ? sparse.bound() : 0;
  const pb::Optimizer& config = optimizer.config_;
  const bool w = config.has_adamw();
  optimizer.beta1_ = DecimalOf(w ? config.adamw().beta1() : config.adam().beta1());
  optimizer.beta2_ = DecimalOf(w ? config.adamw().beta2() : config.adam().beta2());
  optimizer.lr_decay_ = DecimalOf(config.adagrad().lr_decay());
  return optimizer;
}

void RowOptimizer::InitialValues(uint64_t key, float* values) const {
  const uint32_t dim = format_.dim;
  if (bound_ == 0) {
    std::memset(values, 0, dim * sizeof(float));
    return;
  }
  // The key counts the blocks and a row's blocks are streams, since a key has all 64 bits.
  for (uint32_t e = 0; e < dim; e += 4) {
    const std::array<uint32_t, 4> block = Philox(seed_, Stream(RandomPurpose::kRow, e / 4), key);
    const uint32_t n = std::min<uint32_t>(4, dim - e);
    // As for dense tensors: 2u - 1 is exact, the one rounding is the product's.
    for (uint32_t i = 0; i < n; ++i) values[e + i] = (2 * ToUnitFloat(block[i]) - 1) * bound_;
  }
}

void RowOptimizer::InitialiseRow(uint64_t key, uint8_t* row) const {
  std::array<float, SparseLayout::kMaxDim> values;
  InitialValues(key, values.data());
  std::memset(row + format_.weight_bytes, 0, format_.bytes - format_.weight_bytes);
  BestRowKernels().write(format_.dim, format_.storage, values.data(), row);
  // Other slots begin at zero.
  if (rule_ == UpdateRule::kAdagrad && config_.adagrad().initial_accumulator() != 0) {
    std::fill_n(values.begin(), format_.dim, config_.adagrad().initial_accumulator());
    std::memcpy(row + format_.slots_at, values.data(), format_.dim * sizeof(float));
  }
  if (rule_ == UpdateRule::kRowAdagrad) {
    const float initial = config_.row_adagrad().initial_accumulator();
    std::memcpy(row + format_.accumulator_at, &initial, sizeof(initial));
  }
}

void RowOptimizer::ReadInitial(uint64_t key, float* values) const {
  if (format_.storage == RowStorage::kFloat32) return InitialValues(key, values);
  std::array<float, SparseLayout::kMaxDim> wide;
  std::array<uint8_t, SparseLayout::kMaxDim * sizeof(uint16_t)> narrow;
  InitialValues(key, wide.data());
  BestRowKernels().write(format_.dim, format_.storage, wide.data(), narrow.data());
  const uint8_t* const row = narrow.data();
  BestRowKernels().read(1, format_.dim, format_.storage, &row, values);
}

RowUpdatePass RowOptimizer::Pass(double inverse_weight) const {
  RowUpdatePass pass;
  pass.dim = format_.dim;
  pass.storage = format_.storage;
  pass.inverse_weight = static_cast<float>(inverse_weight);
  pass.clip =
      config_.clip_value() > 0 ? config_.clip_value() : std::numeric_limits<float>::infinity();
  pass.weight_decay = config_.has_adamw() ? 0 : config_.weight_decay();  // AdamW's is in its rule
  pass.rule = rule_;
  pass.slots_at = format_.slots_at;
  pass.accumulator_at = format_.accumulator_at;
  return pass;
}

RowOptimizer::StepScalars RowOptimizer::ScalarsOfStep(uint64_t step) const {
  StepScalars scalars;
  scalars.lr = learning_rates_.Of(step);
  scalars.first = numbers_.Scalars(scalars.lr, 1);
  scalars.later = numbers_.Scalars(scalars.lr, 2);
  return scalars;
}

RowOptimizer::Bias RowOptimizer::BiasOf(uint32_t update) const {
  Bias bias;
  if (config_.has_adagrad()) {
    bias.divisor = 1 + (static_cast<double>(update) - 1) * lr_decay_;
  } else if (!config_.has_sgd()) {
    bias.divisor = 1 - IntegerPower(beta1_, update);
    bias.bias2_sqrt = static_cast<float>(std::sqrt(1 - IntegerPower(beta2_, update)));
  }
  return bias;
}

RuleScalars RowOptimizer::ForUpdate(const StepScalars& step, uint32_t update) {
  RuleScalars k = update <= 1 ? step.first : step.later;
  if (update <= 1) return k;
  while (biases_.size() < update && biases_.size() < kMaxBiases) {
    biases_.push_back(BiasOf(static_cast<uint32_t>(biases_.size()) + 1));
  }
  const Bias bias = update <= biases_.size() ? biases_[update - 1] : BiasOf(update);
  k.minus_lr = static_cast<float>(-(step.lr / bias.divisor));
  k.bias2_sqrt = bias.bias2_sqrt;
  return k;
}

}  // namespace parley
