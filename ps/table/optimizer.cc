#include "ps/table/optimizer.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "ps/table/decimal.h"
#include "ps/table/optimizer_config.h"
#include "ps/table/optimizer_kernels.h"
#include "ps/table/optimizer_rules.h"
#include "ps/table/row_kernels.h"

namespace parley {
namespace {

bool HasAvx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq");
}

const OptimizerKernels* BestKernels() {
  return HasAvx512() ? &kernels_avx512::kKernels : &kernels_avx2::kKernels;
}

// Set by ForceOptimizerKernelIsa alone; null: the best. Which of the two runs cannot be seen in the
// results.
std::atomic<const OptimizerKernels*> forced_kernels{nullptr};

const OptimizerKernels& Kernels() {
  const OptimizerKernels* forced = forced_kernels.load(std::memory_order_relaxed);
  return forced != nullptr ? *forced : *BestKernels();
}

class RuleOptimizer : public Optimizer {
 public:
  explicit RuleOptimizer(const pb::Optimizer& config)
      : Optimizer(config),
        rule_(RuleOf(config)),
        numbers_(config),
        // Decoupled decay is in AdamW's rule.
        weight_decay_(config.has_adamw() ? 0 : config.weight_decay()),
        clip_(config.clip_value() > 0 ? config.clip_value()
                                      : std::numeric_limits<float>::infinity()) {}

  int slots() const override { return SlotsOf(rule_); }

  float initial_slot_value(int slot) const override {
    return rule_ == UpdateRule::kAdagrad ? config_.adagrad().initial_accumulator() : 0;
  }

  void Apply(uint64_t n, const float* weights_in, float* weights_out, float* const* slots,
             absl::Span<const float* const> gradients, const StepInfo& info) const override {
    UpdatePass pass = Numbers(info);
    pass.n = n;
    pass.weights_in = weights_in;
    pass.weights_out = weights_out;
    for (int s = 0; s < this->slots(); ++s) pass.slots[s] = slots[s];
    pass.sum.gradients = gradients.data();
    pass.sum.count = gradients.size();
    Kernels().update(pass);
  }

  UpdatePass Numbers(const StepInfo& info) const override {
    UpdatePass pass;
    pass.sum.inverse_weight = static_cast<float>(info.inverse_weight);
    pass.sum.norm_scale = static_cast<float>(info.norm_scale);
    pass.sum.clip = clip_;
    pass.weight_decay = weight_decay_;
    pass.rule = rule_;
    pass.scalars = numbers_.Scalars(LearningRate(info.step), info.update);
    return pass;
  }

 private:
  const UpdateRule rule_;
  const RuleNumbers numbers_;
  const float weight_decay_;
  const float clip_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Optimizer>> Optimizer::Create(const pb::Optimizer& config) {
  if (absl::Status status = CheckOptimizer(config); !status.ok()) return status;
  return std::make_unique<RuleOptimizer>(config);
}

Optimizer::Optimizer(const pb::Optimizer& config)
    : config_(config), learning_rates_(config), clip_norm_(DecimalOf(config.clip_norm())) {}

double Optimizer::SumOfSquares(uint64_t n, absl::Span<const float* const> gradients,
                               double inverse_weight) {
  GradientSum sum;
  sum.gradients = gradients.data();
  sum.count = gradients.size();
  sum.inverse_weight = static_cast<float>(inverse_weight);
  sum.clip = std::numeric_limits<float>::infinity();
  return Kernels().sum_of_squares(n, sum);
}

void Optimizer::Sum(uint64_t n, absl::Span<const float* const> gradients, float* out) {
  GradientSum sum;
  sum.gradients = gradients.data();
  sum.count = gradients.size();
  Kernels().sum(n, sum, out);
}

double Optimizer::NormScale(double sum_of_squares) const {
  if (clip_norm_ == 0) return 1;
  const double scale = clip_norm_ / (std::sqrt(sum_of_squares) + 1e-6);
  // Written so that a gradient that is no number stays one, as in PyTorch, rather than passing
  // unclipped.
  return scale > 1 ? 1 : scale;
}

const RowKernels& BestRowKernels() {
  return &Kernels() == &kernels_avx512::kKernels ? kernels_avx512::kRowKernels
                                                 : kernels_avx2::kRowKernels;
}

const char* OptimizerKernelIsa() { return Kernels().isa; }

bool ForceOptimizerKernelIsa(const char* isa) {
  const OptimizerKernels* wanted = nullptr;
  if (std::strcmp(isa, "avx512") == 0 && HasAvx512()) wanted = &kernels_avx512::kKernels;
  if (std::strcmp(isa, "avx2") == 0) wanted = &kernels_avx2::kKernels;
  if (wanted == nullptr && isa[0] != '\0') return false;
  forced_kernels.store(wanted, std::memory_order_relaxed);
  return true;
}

}  // namespace parley
