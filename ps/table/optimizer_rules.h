// From configuration to the kernels' rule and numbers; internal to ps/table.
//
// Scalars are computed in float64 from the decimals that the configuration shows, and rounded to
// float32 once: as PyTorch does with Python's floats.
#ifndef PARLEY_PS_TABLE_OPTIMIZER_RULES_H_
#define PARLEY_PS_TABLE_OPTIMIZER_RULES_H_

#include <cstdint>

#include "proto/experiment.pb.h"
#include "ps/table/optimizer_kernels.h"

namespace parley {

// REQUIRES for all: CheckOptimizer(config) or CheckRowOptimizer(config) is OK.
UpdateRule RuleOf(const pb::Optimizer& config);
int SlotsOf(UpdateRule rule);

// Makes a rule's scalars. The decimals are read once, as by LearningRates.
class RuleNumbers {
 public:
  RuleNumbers() = default;  // of no rule
  explicit RuleNumbers(const pb::Optimizer& config);

  // `lr`: of this step. `update`: how often the weights have been updated, this one included.
  RuleScalars Scalars(double lr, uint64_t update) const;

 private:
  template <typename Config>
  void SetAdam(const Config& adam);

  pb::Optimizer::RuleCase rule_ = pb::Optimizer::RULE_NOT_SET;
  RuleScalars constant_;  // what neither step nor update changes
  double beta1_ = 0, beta2_ = 0, lr_decay_ = 0, weight_decay_ = 0;
};

}  // namespace parley

#endif  // PARLEY_PS_TABLE_OPTIMIZER_RULES_H_
